"""Guards of a budget: floors per tubelet, and scene cuts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.config import AugmentConfig
from onereel.data.augment import BatchAugment
from onereel.errors import ConfigError
from onereel.tokens.budgets import BatchCount, ClipCount, GroupCount
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.groups import per_tubelet
from onereel.tokens.guards import cap_cuts, find_cuts, with_floor
from onereel.tokens.pixels import Std
from onereel.tokens.redundancy import redundancy
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import PixelScore
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Batch, SampleKey, TubeletGrid

VIDEOMAE = TubeletGrid(8, 14, 14)


@given(floor=st.integers(1, 6), count=st.integers(24, 40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_floor_is_the_best_of_each_tubelet_and_the_rest_the_best_of_all(
    floor: int, count: int, seed: int
) -> None:
    grid = TubeletGrid(4, 2, 5)
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(2, 40, generator=generator) * 9).floor() + torch.arange(
        4
    ).repeat_interleave(10) * 20
    guarded = with_floor(scores, grid, floor)
    keep = ClipCount(token_budget=count).keep(guarded, grid)
    assert keep.sum(1).tolist() == [count] * 2
    for row, mask in zip(scores, keep, strict=True):
        first: set[int] = set()
        for t in range(4):
            inside = range(10 * t, 10 * t + 10)
            first |= set(sorted(inside, key=lambda i: (-row[i].item(), i))[:floor])
        rest = sorted(set(range(40)) - first, key=lambda i: (-row[i].item(), i))
        assert set(mask.nonzero().flatten().tolist()) == first | set(rest[: count - len(first)])
    assert torch.equal(guarded[guarded < math.inf], scores[guarded < math.inf])


def test_a_floor_fills_the_hole_that_a_static_beginning_leaves() -> None:
    embeddings = torch.zeros(1, 8, 196, 4)
    embeddings[:, 5:] = torch.randn(1, 3, 196, 4)
    for floor, fewest in ((0, 0), (10, 10)):
        selector = redundancy(ClipCount(0.3), min_per_tubelet=floor)
        keep = selector.select(embeddings, embeddings.flatten(1, 2), VIDEOMAE, None).keep_mask
        assert keep.sum() == 470
        assert keep.view(8, 196).sum(1).min() == fewest


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        (
            redundancy(ClipCount(token_budget=79), 10),
            "allowed with 79 tokens of 8 tubelets in time: 0 to 9",
        ),
        (redundancy(ClipCount(), 197), "0 to 196"),
        (group_dynamic(GroupCount(), 0, -1), "0 to 196"),
        (redundancy(BatchCount(0.5), 1), "not an exact count per clip"),
    ],
)
def test_a_floor_that_does_not_fit_is_answered(selector: ScoredSelector, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        selector.num_kept(VIDEOMAE)


def scene(seed: int, frames: int = 16, size: int = 224) -> torch.Tensor:
    """A still textured picture in which a textured square moves: `(frames, 3, size, size)`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 14, 14, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0]
    clip = picture.expand(frames, -1, -1, -1).clone()
    square = torch.randn(3, 48, 48, generator=generator)
    for t in range(frames):
        clip[t, :, 64:112, 8 * t : 8 * t + 48] = square
    return clip


def with_cut(at: int) -> torch.Tensor:
    return torch.cat([scene(0)[:at], scene(1)[at:]])[None]


@pytest.mark.parametrize(("at", "found"), [(8, [3]), (9, [3, 4]), (2, [0]), (1, [0]), (15, [6])])
def test_a_cut_is_found_where_frames_on_both_sides_are_compared(at: int, found: list[int]) -> None:
    assert find_cuts(with_cut(at), VIDEOMAE).nonzero()[:, 1].tolist() == found


def test_what_is_no_cut() -> None:
    still = scene(0)
    noise = torch.randn(16, 3, 224, 224) * 0.1
    flicker = torch.zeros(16, 1, 1, 1)
    flicker[8:] = 1.0
    clips = torch.stack([still, still + noise, still + flicker, noise, torch.zeros_like(still)])
    assert not find_cuts(clips, VIDEOMAE).any()
    assert find_cuts(torch.cat([torch.zeros(8, 3, 224, 224), still[8:]])[None], VIDEOMAE).sum() == 1
    assert find_cuts(clips[:, :2], TubeletGrid(1, 14, 14)).shape == (5, 0)


@pytest.mark.parametrize("std", [AugmentConfig.std, (0.5, 0.2, 0.1)])
@pytest.mark.parametrize("contrast", [4, 10, 40])
def test_bytes_and_floats_have_the_same_cuts(contrast: int, std: Std) -> None:
    """Of pale pictures too, in which the colours' means outweigh what is seen."""
    levels = (with_cut(8) * contrast + 128).clamp(0, 255).to(torch.uint8)
    mean, scale = (torch.tensor(v)[:, None, None] for v in (AugmentConfig.mean, std))
    floats = (levels.float() / 255 - mean) / scale
    found = find_cuts(levels, VIDEOMAE, std)
    assert torch.equal(found, find_cuts(floats, VIDEOMAE))
    assert found.sum() == 1


def embed(clips: torch.Tensor) -> torch.Tensor:
    patches = patchify(clips, 2, 16)
    weight = torch.randn(patches.shape[-1], 64, generator=torch.Generator().manual_seed(0))
    return patches @ weight / 30


@pytest.mark.parametrize("at", [8, 9])
def test_a_cut_no_longer_takes_the_budget(at: int) -> None:
    """EVEREST's rule gives the tubelet after a cut 196 of its 470 tokens."""
    clips = with_cut(at)
    kept = {}
    for capped in (False, True):
        selector = redundancy(ClipCount(0.3), cap_cuts=capped)
        keep = selector.select(clips, embed(clips), VIDEOMAE, None).keep_mask
        assert keep.sum() == 470
        kept[capped] = keep.view(8, 196).sum(1)
    assert kept[False][4] >= 190
    assert 98 <= kept[True][4] <= 150
    others = [t for t in range(8) if t not in (4, 5)]
    assert (kept[True][others] >= kept[False][others]).all()


def test_a_cut_in_the_beginning_is_copied_by_the_first_tubelet() -> None:
    clips = with_cut(2) + 0.05 * torch.randn(1, 16, 3, 224, 224)  # noise, so that scores differ
    selector = ScoredSelector(PixelScore(cap_cuts=True), ClipCount(0.3))
    counts = selector.select(clips, None, VIDEOMAE, None).keep_mask.view(8, 196).sum(1)
    assert counts[0] < 150
    assert counts[1] < 150


@given(gt=st.integers(1, 6), groups=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_capped_scores_equal_the_loop(gt: int, groups: int, seed: int) -> None:
    groups = min(groups, gt)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, gt, 3, 2, generator=generator)
    cuts = torch.rand(2, gt - 1, generator=generator) < 0.4
    is_cut = per_tubelet(cuts[..., None, None], groups).flatten(1)
    expected = scores.clone()
    for b in range(2):
        for t in range(gt):
            calm = [s for s in range(gt) if not is_cut[b, s]]
            source = next((s for s in calm if s > t), max(calm, default=t))
            for h in range(3):
                for w in range(2):
                    if is_cut[b, t] and (h + w) % 2:
                        expected[b, t, h, w] = scores[b, source, h, w]
    assert torch.equal(cap_cuts(scores, cuts, groups), expected)


def test_a_clip_without_cuts_is_left_alone() -> None:
    clips = scene(3)[None]
    grid = clip_grid(clips, 2, 16)
    plain, capped = (PixelScore(cap_cuts=on)(clips, None, grid, None) for on in (False, True))
    assert torch.equal(plain, capped)


FLUX_POOL = TubeletGrid(24, 16, 16)


def erased_batch() -> tuple[Batch, torch.Tensor]:
    """Three clips of 24 x 224² in which everything moves alike, erased as in training; and where, bool `(B, N)`."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(3, 24, 3, 16, 16, generator=generator).mul(20).cumsum(1).add(128)
    levels = frames.repeat_interleave(14, -1).repeat_interleave(14, -2)
    clips = levels.clamp(0, 255).to(torch.uint8)
    batch = Batch(clips, [SampleKey(0, i) for i in range(3)], num_clips=3)
    config = AugmentConfig(hflip_prob=0, erase_prob=1.0)
    batch = BatchAugment(config, None, seed=3, training=True)(batch, "cpu")
    assert batch.scoring_clips is not None
    differs = (batch.clips != batch.scoring_clips).any(2)
    inside = patchify(differs[:, :, None], 1, 14).float().mean(-1) > 0.5
    return batch, inside


@pytest.mark.parametrize("count", [2048, 1024])
def test_an_erased_box_keeps_its_share_of_the_budget(count: int) -> None:
    """Published, a box of noise on 19 % of the area takes .57 of 2048 and 1.00 of 1024 of 6144 tokens."""
    batch, inside = erased_batch()
    assert batch.scoring_clips is not None
    selector = group_dynamic(GroupCount(token_budget=count))

    def share_inside(seen: torch.Tensor) -> torch.Tensor:
        keep = selector.select(seen, patchify(seen, 1, 14), FLUX_POOL, None).keep_mask
        assert keep.sum(1).tolist() == [count] * 3
        return (keep & inside).sum(1) / count

    area = inside.float().mean(1)
    assert area.max() > 0.1
    assert (share_inside(batch.scoring_clips) - area).abs().max() < 0.05
    boxes = inside.view(3, *FLUX_POOL).repeat_interleave(14, -1).repeat_interleave(14, -2)
    noise = torch.where(boxes[:, :, None], torch.randn_like(batch.clips), batch.clips)
    assert (share_inside(noise) > 2 * area).all()  # the comparison can fail
    assert (share_inside(batch.clips) < 0.5 * area).all()
