"""Run-length tokens against brute-force loops, the paper's rule and the tokens its authors published."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.tokens.run_length import RunLength, run_lengths
from onereel.tokens.tubelets import clip_grid, tubelet_grid
from onereel.types import TokenSelection, TubeletGrid

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
REFERENCES = ("adjacent", "anchor")


def select(clips: torch.Tensor, **settings: object) -> TokenSelection:
    selector = RunLength(**settings)  # type: ignore[arg-type]
    grid = clip_grid(clips, selector.tubelet_size, selector.patch_size)
    return selector.select(clips, None, grid, None)


def kept_by_loop(
    clip: torch.Tensor, threshold: float, reference: str, ts: int, p: int
) -> torch.Tensor:
    """The rule in words: per place, compare last frame of the tubelet with first frame of its reference."""
    gt, gh, gw = tubelet_grid(clip.shape[0], clip.shape[2], clip.shape[3], ts, p)
    keep = torch.zeros(gt, gh, gw, dtype=torch.bool)
    for h in range(gh):
        for w in range(gw):
            place = clip[:, :, h * p : (h + 1) * p, w * p : (w + 1) * p]
            head = 0
            keep[0, h, w] = True
            for k in range(1, gt):
                against = k - 1 if reference == "adjacent" else head
                difference = (place[(k + 1) * ts - 1] - place[against * ts]).abs().mean()
                if difference > threshold:
                    keep[k, h, w], head = True, k
    return keep.flatten()


def lengths_by_loop(keep: torch.Tensor, grid: TubeletGrid) -> torch.Tensor:
    kept = keep.reshape(tuple(grid))
    lengths = torch.zeros(tuple(grid), dtype=torch.int64)
    for t, h, w in kept.nonzero().tolist():
        stop = t + 1
        while stop < grid.gt and not kept[stop, h, w]:
            stop += 1
        lengths[t, h, w] = stop - t
    return lengths.flatten()


@given(
    seed=st.integers(0, 10**6),
    reference=st.sampled_from(REFERENCES),
    ts=st.integers(1, 3),
    p=st.sampled_from([1, 2, 7]),
    gt=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_mask_and_lengths_equal_the_loops(
    seed: int, reference: str, ts: int, p: int, gt: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A slow random walk: some differences fall below the threshold, some above.
    clips = torch.randn(2, gt * ts, 3, 2 * p, 3 * p, generator=generator).mul(0.3).cumsum(1)
    selection = select(clips, threshold=0.5, reference=reference, tubelet_size=ts, patch_size=p)
    grid = clip_grid(clips, ts, p)
    for b in range(2):
        keep = kept_by_loop(clips[b], 0.5, reference, ts, p)
        assert torch.equal(selection.keep_mask[b], keep)
        assert selection.run_lengths is not None
        assert torch.equal(selection.run_lengths[b], lengths_by_loop(keep, grid))


@given(seed=st.integers(0, 10**6), ratio=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_lengths_sum_to_the_volume(seed: int, ratio: float) -> None:
    grid = TubeletGrid(8, 3, 4)
    keep = torch.rand(2, grid.num_tokens, generator=torch.Generator().manual_seed(seed)) < ratio
    keep.view(2, *grid)[:, 0] = True
    lengths = run_lengths(keep, grid)
    assert lengths.dtype == torch.int64
    assert lengths.sum(1).tolist() == [grid.num_tokens] * 2
    assert (lengths[keep] >= 1).all()
    assert (lengths[~keep] == 0).all()


def test_lengths_are_in_token_order() -> None:
    # Rows are times, columns places; the original's order is [1, 2, 1, 4].
    keep = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 0]], dtype=torch.bool).reshape(1, -1)
    lengths = run_lengths(keep, TubeletGrid(4, 1, 2))
    assert lengths[keep].tolist() == [1, 4, 2, 1]


@pytest.mark.parametrize("reference", REFERENCES)
def test_more_threshold_never_keeps_more_when_adjacent_and_floor_and_ceiling_hold(
    reference: str,
) -> None:
    clips = torch.randn(2, 8, 3, 32, 32).mul(0.2).cumsum(1)
    masks = [
        select(clips, threshold=t, reference=reference).keep_mask
        for t in (-1.0, 0.0, 0.1, 0.2, 0.4, 1e9)
    ]
    assert masks[0].all()
    assert masks[-1].sum(1).tolist() == [4, 4]
    if reference == "adjacent":
        assert all((fewer <= more).all() for more, fewer in itertools.pairwise(masks))


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_difference_equal_to_the_threshold_is_dropped(reference: str) -> None:
    clips = torch.zeros(1, 4, 3, 16, 16)
    clips[:, 2:] = 0.5
    assert select(clips, threshold=0.5, reference=reference).keep_mask.tolist() == [[True, False]]
    assert select(clips, threshold=0.4999, reference=reference).keep_mask.all()


def still(frames: int = 16) -> torch.Tensor:
    return torch.zeros(1, frames, 3, 224, 224)


def step_from(frame: int) -> torch.Tensor:
    clips = still()
    clips[:, frame:] = 1.0
    return clips


def ramp(slope: float) -> torch.Tensor:
    return still() + slope * torch.arange(16.0)[:, None, None, None]


def grey_step(levels: int) -> torch.Tensor:
    clips = torch.zeros(1, 16, 3, 224, 224)
    clips[:, 8:] = levels / 255
    return (clips - MEAN) / STD


@pytest.mark.parametrize(
    ("clips", "per_tubelet"),
    [
        pytest.param(still(), [196] + [0] * 7, id="static"),
        pytest.param(torch.randn(1, 16, 3, 224, 224), [196] * 8, id="all motion"),
        pytest.param(ramp(0.030), [196] + [0] * 7, id="ramp, 3 frames .090"),
        pytest.param(ramp(0.034), [196] * 8, id="ramp, 3 frames .102"),
        pytest.param(step_from(8), [196, 0, 0, 0, 196, 0, 0, 0], id="step at 8"),
        pytest.param(step_from(9), [196, 0, 0, 0, 196, 196, 0, 0], id="step at 9"),
        pytest.param(grey_step(5), [196] + [0] * 7, id="5 grey levels"),
        pytest.param(grey_step(6), [196, 0, 0, 0, 196, 0, 0, 0], id="6 grey levels"),
    ],
)
def test_published_rule_at_224(clips: torch.Tensor, per_tubelet: list[int]) -> None:
    selection = select(clips)
    assert selection.keep_mask.reshape(8, 196).sum(1).tolist() == per_tubelet
    assert selection.run_lengths is not None
    assert selection.run_lengths.sum() == 1568


def test_a_static_clip_stands_for_all_its_tubelets() -> None:
    selection = select(still())
    assert selection.run_lengths is not None
    assert (selection.run_lengths[selection.keep_mask] == 8).all()


@pytest.mark.parametrize(("frames", "share"), [(16, 0.125), (64, 0.03125), (128, 0.015625)])
def test_the_floor_is_the_first_tubelet(frames: int, share: float) -> None:
    selection = select(torch.zeros(1, frames, 3, 32, 32))
    assert selection.keep_mask.float().mean() == share


def test_the_anchor_sees_a_slow_drift_and_the_neighbour_does_not() -> None:
    # .03 a frame: .09 to the neighbour; to the head .15 after two tubelets.
    kept = [select(ramp(0.03), reference=r).keep_mask.reshape(8, 196)[:, 0] for r in REFERENCES]
    assert kept[0].int().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert kept[1].int().tolist() == [1, 0, 1, 0, 1, 0, 1, 0]


def test_a_pulse_between_the_frames_compared_is_not_seen() -> None:
    clips = torch.zeros(1, 4, 3, 16, 16)
    clips[:, 1:3] = 5.0
    assert select(clips).keep_mask.tolist() == [[True, False]]


def test_which_frames_are_compared() -> None:
    # Only the frame named by a pair may change the mask: (later, earlier) = (3,0) (5,2) ... (15,12).
    pairs = [(2 * k + 1, 2 * k - 2) for k in range(1, 8)]
    assert pairs == [(3, 0), (5, 2), (7, 4), (9, 6), (11, 8), (13, 10), (15, 12)]
    for frame in range(16):
        clips = torch.zeros(1, 16, 3, 16, 16)
        clips[:, frame] = 1.0
        kept = [k for k in range(1, 8) if select(clips).keep_mask[0, k]]
        assert kept == [k for k, pair in enumerate(pairs, start=1) if frame in pair]


def test_threshold_in_grey_levels() -> None:
    levels = 0.1 * STD.flatten() * 255
    assert levels.tolist() == pytest.approx([5.8395, 5.7120, 5.7375], abs=1e-4)
    assert 1 / (1 / levels).mean() == pytest.approx(5.763, abs=1e-3)


@pytest.mark.parametrize(("sigma", "difference"), [(5, 0.0979), (6, 0.1175)])
def test_noise_that_the_threshold_tolerates(sigma: float, difference: float) -> None:
    frames = torch.randn(2, 3, 1000, 1000) * sigma / 255 / STD
    assert (frames[0] - frames[1]).abs().mean() == pytest.approx(difference, abs=2e-4)


def test_half_precision_clips_are_scored_in_full_precision() -> None:
    clips = torch.randn(1, 8, 3, 32, 32).bfloat16()
    assert torch.equal(select(clips).keep_mask, select(clips.float()).keep_mask)


def test_clips_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="tubelets of 2x16x16 don't cut clips"):
        RunLength().select(torch.zeros(1, 8, 3, 32, 32), None, TubeletGrid(8, 2, 2), None)


def test_a_misspelt_reference_is_answered() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'anchor'"):
        RunLength(reference="ancor")  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "tokens"), [(1, 31200), (2, 31500), (3, 27600)])
def test_every_token_that_the_authors_published(real_data: Path, number: int, tokens: int) -> None:
    folder = real_data / "rlt_reference"
    published = torch.from_numpy(np.load(folder / f"ucf101_{number}_mask.npz")["keep"])
    with av.open(str(folder / f"ucf101_{number}_gt.avi")) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    clip = torch.from_numpy(frames[: 2 * len(published)]).permute(0, 3, 1, 2) / 255
    kept = select(((clip - MEAN) / STD)[None], threshold=0.05).keep_mask[0]
    assert (
        published[1:].numel() == tokens
    )  # 90,300 decisions in all; the first tubelet is always kept
    assert torch.equal(kept.reshape(published.shape), published)
