"""The controls: keep all, random, tube."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.tokens.budgets import count_tokens
from onereel.tokens.scored import ScoredSelector, random_tokens
from onereel.tokens.selector import KeepAll, Tube
from onereel.types import TubeletGrid

GRID = TubeletGrid(4, 3, 5)
CLIPS = torch.zeros(3, 8, 3, 6, 10)
ratios = st.floats(0.001, 1.0)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_keep_all_keeps_all() -> None:
    selection = KeepAll().select(CLIPS, None, GRID, None)
    assert selection.keep_mask.shape == (3, 60)
    assert selection.keep_mask.all()
    assert KeepAll().num_kept(GRID) == 60


@given(ratio=ratios)
@settings(max_examples=30, deadline=None)
def test_random_keeps_the_exact_count(ratio: float) -> None:
    selector = random_tokens(ratio)
    mask = selector.select(CLIPS, None, GRID, generators(0, 1, 2)).keep_mask
    assert selector.num_kept(GRID) == count_tokens(ratio, 60)
    assert mask.sum(1).tolist() == [selector.num_kept(GRID)] * 3


@given(ratio=ratios)
@settings(max_examples=30, deadline=None)
def test_tube_keeps_the_exact_places_at_all_times(ratio: float) -> None:
    selector = Tube(ratio)
    mask = selector.select(CLIPS, None, GRID, generators(0, 1, 2)).keep_mask.reshape(3, 4, 15)
    assert (mask == mask[:, :1]).all()
    assert mask[:, 0].sum(1).tolist() == [count_tokens(ratio, 15)] * 3
    assert selector.num_kept(GRID) == int(mask[0].sum())


@pytest.mark.parametrize(("ratio", "count"), [(0.1, 156), (0.5, 784), (0.7, 1097), (1.0, 1568)])
def test_counts_at_16_frames_of_224(ratio: float, count: int) -> None:
    # The original's random policy keeps int(1568 p) - 1: 155, 783, 1096.
    assert random_tokens(ratio).num_kept(TubeletGrid(8, 14, 14)) == count


@pytest.mark.parametrize("selector", [random_tokens(0.4), Tube(0.4)])
def test_a_clips_draw_depends_on_its_own_generator_alone(selector: ScoredSelector | Tube) -> None:
    together = selector.select(CLIPS, None, GRID, generators(5, 6, 7)).keep_mask
    alone = selector.select(CLIPS[:1], None, GRID, generators(6)).keep_mask
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(together[0], together[1])


def test_random_is_uniform() -> None:
    clips = CLIPS[:1].expand(2000, -1, -1, -1, -1)
    mask = random_tokens(0.25).select(clips, None, GRID, generators(*range(2000))).keep_mask
    assert ((mask.float().mean(0) - 0.25).abs() < 0.05).all()  # 5 sigma


@pytest.mark.parametrize("given", [None, generators(0)])
def test_drawing_without_a_generator_per_clip_is_refused(
    given: list[torch.Generator] | None,
) -> None:
    with pytest.raises(ValueError, match=r"one generator per clip \(3\)"):
        random_tokens(0.5).select(CLIPS, None, GRID, given)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    for selector in (random_tokens, Tube):
        with pytest.raises(ConfigError, match="allowed: above 0, up to 1"):
            selector(ratio)


def test_tube_keeps_an_exact_budget_of_whole_tubes() -> None:
    selector = Tube(token_budget=24)
    mask = selector.select(CLIPS, None, GRID, generators(0, 1, 2)).keep_mask.reshape(3, 4, 15)
    assert selector.num_kept(GRID) == 24
    assert mask.sum((1, 2)).tolist() == [24] * 3
    assert (mask == mask[:, :1]).all()
    with pytest.raises(ConfigError, match="use 24 or 28"):
        Tube(token_budget=26).num_kept(GRID)
    with pytest.raises(ConfigError, match="4x3x5 tubelets has 60"):
        Tube(token_budget=64).num_kept(GRID)
