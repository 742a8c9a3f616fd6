"""Score x budget, and the published presets, from end to end."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from onereel import build
from onereel.config import DataConfig, ModelConfig, RunConfig, TokensConfig
from onereel.errors import ConfigError
from onereel.tokens.budgets import (
    BatchCount,
    ClipCount,
    GroupCount,
    Quantile,
    Threshold,
    keep_first,
)
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.redundancy import redundancy
from onereel.tokens.run_length import RunLength
from onereel.tokens.scored import ScoredSelector, random_tokens
from onereel.tokens.scores import PixelScore
from onereel.tokens.selector import Selector
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Batch, SampleKey, TubeletGrid

VIDEOMAE = TubeletGrid(8, 14, 14)


def moving_square(frames: int = 16, size: int = 224) -> torch.Tensor:
    clips = torch.zeros(1, frames, 3, size, size)
    for t in range(frames):
        clips[:, t, :, 32:48, 16 * (t // 2) : 16 * (t // 2) + 16] = 1.0
    return clips


def embed(clips: torch.Tensor) -> torch.Tensor:
    """Tubelets of 2 x 16 x 16 seen through a fixed random projection."""
    patches = patchify(clips, 2, 16)
    weight = torch.randn(patches.shape[-1], 64, generator=torch.Generator().manual_seed(0))
    return patches @ weight / 30


def test_redundancy_keeps_the_published_counts_and_equal_first_tubelets() -> None:
    embeddings = torch.randn(2, 1568, 16)
    for selector, count in ((redundancy(), 940), (redundancy(ClipCount(0.3)), 470)):
        keep = selector.select(torch.zeros(2, 1), embeddings, VIDEOMAE, None).keep_mask
        assert keep.sum(1).tolist() == [count] * 2
        assert selector.num_kept(VIDEOMAE) == count
        # Equal scores, equal counts, but where the cut falls between the two copies of one score.
        first, second = keep.view(2, 8, 196)[:, 0], keep.view(2, 8, 196)[:, 1]
        assert ((first ^ second).sum(1) <= 1).all()
        assert (first >= second).all()


def test_the_best_tokens_are_the_places_that_a_patch_enters_or_leaves() -> None:
    clips = moving_square()
    ranking = redundancy().rank(clips, embed(clips), VIDEOMAE, None)
    moved = {(0, 0), (0, 1)} | {(t, t + d) for t in range(1, 8) for d in (-1, 0)}
    places = {(int(i) // 196, int(i) % 14) for i in ranking[0, : len(moved)]}
    assert all(int(i) % 196 // 14 == 2 for i in ranking[0, : len(moved)])
    assert places == moved


def test_four_groups_of_two_keep_equal_places_in_each_pair() -> None:
    embeddings = torch.randn(1, 8 * 16 * 16, 32)
    grid = TubeletGrid(8, 16, 16)
    keep = group_dynamic(GroupCount(token_budget=1024)).select(embeddings, embeddings, grid, None)
    pairs = keep.keep_mask.view(4, 2, 256)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert pairs.sum((1, 2)).tolist() == [256] * 4


def test_one_group_is_redundancy() -> None:
    embeddings = torch.randn(2, 1568, 8)
    one = group_dynamic(GroupCount(0.6, groups=1), groups=1)
    masks = [
        s.select(embeddings, embeddings, VIDEOMAE, None).keep_mask for s in (one, redundancy())
    ]
    assert torch.equal(*masks)


def chosen_by_loop(clip: torch.Tensor, groups: list[range], count: int) -> set[int]:
    """The published rule word for word: in each group the first tubelet copies the second, the best share is kept.

    Args:
        clip: embeddings `(gt, places, D)`.
        groups: times of each group, two or more each, all as long as one another.
    """
    places = clip.shape[1]
    chosen: set[int] = set()
    for g, times in enumerate(groups):
        importance = {}
        for t in times:
            other = t - 1 if t > times[0] else t + 1
            for place in range(places):
                distance = (clip[t, place] - clip[other, place]).double().norm().item()
                importance[t * places + place] = distance
        share = count // len(groups) + (g < count % len(groups))
        order = sorted(importance, key=lambda i: (-importance[i], i))
        # The two copies of a score tie; what float32 cannot tell apart is not asked.
        if 0 < share < len(order):
            gap = importance[order[share - 1]] - importance[order[share]]
            assume(gap == 0 or gap > 1e-5)
        chosen |= set(order[:share])
    return chosen


@example(gt=4, flux=False, share=0.25, seed=185)  # distances that differ by less than 1e-4
@given(
    gt=st.integers(2, 12),
    flux=st.booleans(),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_presets_equal_the_published_rules(gt: int, flux: bool, share: float, seed: int) -> None:
    num_groups = (1 if gt < 4 else 2 if gt == 4 or gt % 4 else 4) if flux and gt % 2 == 0 else 1
    each = gt // num_groups
    groups = [range(g * each, (g + 1) * each) for g in range(num_groups)]
    grid = TubeletGrid(gt, 2, 3)
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(2, grid.num_tokens, 5, generator=generator)
    count = max(1, int(share * grid.num_tokens))
    if num_groups > 1:
        selector = group_dynamic(GroupCount(token_budget=count))
    else:
        selector = redundancy(ClipCount(token_budget=count))
    keep = selector.select(embeddings, embeddings, grid, None).keep_mask
    for clip, mask in zip(embeddings, keep, strict=True):
        expected = chosen_by_loop(clip.view(gt, 6, 5), groups, count)
        assert set(mask.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("gt", [1, 2, 3, 4, 5, 7, 12])
def test_any_number_of_tubelets(gt: int) -> None:
    grid = TubeletGrid(gt, 3, 3)
    embeddings = torch.randn(2, grid.num_tokens, 8)
    for selector in (redundancy(), group_dynamic()):
        keep = selector.select(embeddings, embeddings, grid, None).keep_mask
        assert keep.sum(1).tolist() == [selector.num_kept(grid)] * 2


def test_the_choice_is_the_first_of_the_ranking() -> None:
    grid = TubeletGrid(8, 4, 4)
    embeddings = torch.randn(2, grid.num_tokens, 8)
    for count in (1, 17, 64, 128):
        selector = group_dynamic(GroupCount(token_budget=count))
        ranking = selector.rank(embeddings, embeddings, grid, None)
        keep = selector.select(embeddings, embeddings, grid, None).keep_mask
        assert torch.equal(keep, keep_first(ranking, count))


@pytest.mark.parametrize(
    "budget", [ClipCount(0.3), Quantile(0.3), BatchCount(0.3), GroupCount(0.3)]
)
def test_runs_of_a_budget_begin_at_a_kept_token(budget: ClipCount) -> None:
    """Tubelet 0 need not be kept: the lengths then cover what follows each place's first kept token."""
    clips = torch.randn(2, 16, 3, 64, 64)
    grid = clip_grid(clips, 2, 16)
    selection = ScoredSelector(PixelScore(), budget).select(clips, None, grid, None)
    assert selection.run_lengths is not None
    kept = selection.keep_mask.view(2, 8, 16)
    lengths = selection.run_lengths.view(2, 8, 16)
    begun = kept.int().cumsum(1) > 0
    assert not kept[:, 0].all()
    assert torch.equal(lengths.sum(1), begun.sum(1))
    assert (lengths[kept] >= 1).all()


def test_a_random_control_keeps_what_it_kept_before() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    grid = TubeletGrid(4, 3, 5)
    keep = random_tokens(0.4).select(torch.zeros(2, 1), None, grid, generators).keep_mask
    for row, seed in zip(keep, (1, 2), strict=True):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        assert set(row.nonzero().flatten().tolist()) == set(order[:24].tolist())


def config_of(**tokens: object) -> RunConfig:
    return RunConfig(
        data=DataConfig(num_frames=8, size=32),
        tokens=TokensConfig(**tokens),  # type: ignore[arg-type]
        model=ModelConfig(name="vit_micro_patch16_32"),
    )


@pytest.mark.parametrize(
    "tokens",
    [
        {"kind": "redundancy"},
        {"kind": "redundancy", "budget": "threshold", "threshold": 0.01},
        {"kind": "redundancy", "budget": "group", "groups": 2},
        {"kind": "group-dynamic"},
        {"kind": "group-dynamic", "token_budget": 7},
        {"kind": "run-length", "budget": "clip", "token_budget": 5, "length_embedding": True},
        {"kind": "run-length", "budget": "quantile"},
        {"kind": "run-length", "budget": "batch", "keep_ratio": 0.3},
        {"kind": "random", "budget": "group", "token_budget": 9},
        {"kind": "tube", "token_budget": 8},
        {"kind": "run-length", "noise_cell": 2, "follow_camera": True},
        {"kind": "run-length", "budget": "clip", "follow_camera": True, "cap_cuts": True},
        {"kind": "redundancy", "min_per_tubelet": 1, "cap_cuts": True},
        {"kind": "group-dynamic", "min_per_tubelet": 2, "cap_cuts": True},
    ],
    ids=str,
)
def test_every_setting_trains_by_its_name(tokens: dict[str, object]) -> None:
    config = config_of(**tokens)
    objective = build.build_objective(config, build.build_model(config, 4))
    clips = torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        clips, [SampleKey(0, i) for i in range(3)], labels=torch.tensor([0, 1, 3]), num_clips=3
    )
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for _ in range(2):
        out = objective(batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        assert out["loss"].isfinite()
    count = objective.model.selector.num_kept(TubeletGrid(4, 2, 2))
    total = out["stats"]["num_tokens"]
    assert total == 3 * count if count else 3 <= total <= 48
    if tokens.get("budget") == "batch":
        assert total == 3 * 4


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({"kind": "redundancy", "token_budget": 17}, "has 16"),
        ({"kind": "run-length", "token_budget": 5}, "add --tokens.budget clip"),
        ({"kind": "run-length", "budget": "clip", "reference": "anchor"}, "needs a threshold"),
        ({"kind": "run-length", "cap_cuts": True}, "guard an exact count"),
        (
            {"kind": "run-length", "noise_cell": 5},
            "noise_cell is 5; allowed with patches of 16: 1, 2",
        ),
        ({"kind": "redundancy", "min_per_tubelet": 4}, "0 to 2"),
        ({"kind": "redundancy", "budget": "batch", "min_per_tubelet": 1}, "use budget clip"),
        ({"kind": "tube", "budget": "group"}, "allowed for tube"),
        ({"kind": "tube", "token_budget": 6}, "use 4 or 8"),
        ({"kind": "group-dynamic", "groups": 5}, "allowed: 1 to 4"),
        ({"kind": "group-dynamic", "groups": 5, "budget": "clip"}, "allowed: 1 to 4"),
        ({"kind": "run-length", "keep_ratio": 0.5}, "keep_ratio is 0.5.*add --tokens.budget clip"),
        ({"kind": "redundancy", "noise_cell": 2}, "noise_cell .* run-length; set it to 1"),
        ({"kind": "random", "follow_camera": True}, "follow_camera .* run-length; set it to False"),
        ({"kind": "redundancy", "reference": "anchor"}, "reference .* set it to adjacent"),
        ({"kind": "random", "cap_cuts": True}, "run-length, redundancy, group-dynamic; set it"),
        ({"kind": "tube", "min_per_tubelet": 1}, "min_per_tubelet is 1, which tube"),
        ({"kind": "redundancy", "groups": 2}, "budget group"),
        ({"kind": "random", "budget": "threshold"}, "chance"),
        ({"kind": "redundency"}, "Did you mean 'redundancy'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_answered_before_anything_is_read(
    tokens: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        build.build_model(config_of(**tokens), 4)


CUDA_SELECTORS = {
    "run-length": RunLength(0.5),
    "anchor": RunLength(0.5, "anchor"),
    "guarded run-length": RunLength(0.5, noise_cell=2, follow_camera=True),
    "redundancy": redundancy(),
    "group-dynamic": group_dynamic(min_per_tubelet=3, cap_cuts=True),
    "pixels, batch": ScoredSelector(PixelScore(cap_cuts=True), BatchCount(0.3)),
    "pixels, quantile": ScoredSelector(PixelScore(), Quantile(0.3)),
    "random": random_tokens(0.3),
}


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("selector", CUDA_SELECTORS.values(), ids=CUDA_SELECTORS)
def test_cuda_chooses_as_the_cpu_does_without_waiting_for_it(selector: Selector) -> None:
    generator = torch.Generator().manual_seed(0)
    # Quarters add up exactly in any order, so that scores, ties among them too, are the same bits.
    steps = torch.randint(-2, 3, (2, 16, 3, 4, 4), generator=generator) / 4
    clips = steps.cumsum(1).repeat_interleave(16, -1).repeat_interleave(16, -2)
    embeddings = patchify(clips, 2, 16)[..., ::97].contiguous()
    grid = clip_grid(clips, 2, 16)

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    there = clips.cuda(), embeddings.cuda(), grid
    selector.select(*there, seeds())  # kernels are compiled, the order of turns is sent
    torch.cuda.set_sync_debug_mode("error")
    try:
        chosen = selector.select(*there, seeds())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = selector.select(clips, embeddings, grid, seeds())
    assert torch.equal(chosen.keep_mask.cpu(), expected.keep_mask)
    assert chosen.run_lengths is not None
    assert torch.equal(chosen.run_lengths.cpu(), expected.run_lengths)  # type: ignore[arg-type]


def test_presets_hold_the_published_settings() -> None:
    def built(**tokens: object) -> object:
        return build.build_selector(TokensConfig(**tokens), 2, 16)  # type: ignore[arg-type]

    assert built(kind="redundancy") == redundancy()
    assert built(kind="group-dynamic") == group_dynamic()
    assert built(kind="random") == random_tokens(0.5)
    assert redundancy().budget == ClipCount(0.6)
    own = built(kind="redundancy", budget="threshold", threshold=0.3)
    assert isinstance(own, ScoredSelector)
    assert own.budget == Threshold(0.3)
