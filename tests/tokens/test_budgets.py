"""Budgets against loops: exact counts, nested prefixes, ties by raster order."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.tokens.budgets import (
    BatchCount,
    Budget,
    ClipCount,
    GroupCount,
    Quantile,
    Threshold,
    count_tokens,
    keep_first,
    rank,
)
from onereel.tokens.groups import group_sizes
from onereel.types import TubeletGrid

GRID = TubeletGrid(4, 2, 3)
lengths = st.integers(1, 13)


def scores_of(grid: TubeletGrid, seed: int, batch: int = 2, ties: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(batch, grid.num_tokens, generator=generator)
    return (scores * 4).floor() if ties else scores


def best_by_loop(scores: torch.Tensor, count: int, allowed: range) -> set[int]:
    """The `count` best of the tokens `allowed`, the earlier one on a tie."""
    return set(sorted(allowed, key=lambda i: (-scores[i].item(), i))[:count])


@given(gt=lengths, seed=st.integers(0, 99), ties=st.booleans(), share=st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_a_clips_count_is_exact_and_its_best(gt: int, seed: int, ties: bool, share: float) -> None:
    grid = TubeletGrid(gt, 2, 3)
    scores = scores_of(grid, seed, ties=ties)
    budget = ClipCount(share)
    for row, keep in zip(scores, budget.keep(scores, grid), strict=True):
        expected = best_by_loop(row, budget.num_kept(grid), range(grid.num_tokens))
        assert set(keep.nonzero().flatten().tolist()) == expected


@given(
    gt=lengths, groups=st.integers(0, 5), seed=st.integers(0, 99), ties=st.booleans(), k=st.data()
)
@settings(max_examples=80, deadline=None)
def test_a_groups_share_is_exact_and_its_best(
    gt: int, groups: int, seed: int, ties: bool, k: st.DataObject
) -> None:
    grid = TubeletGrid(gt, 2, 3)
    groups = min(groups, gt)
    count = k.draw(st.integers(1, grid.num_tokens))
    scores = scores_of(grid, seed, ties=ties)
    keep = GroupCount(token_budget=count, groups=groups).keep(scores, grid)
    assert keep.sum(1).tolist() == [count] * 2
    sizes = [6 * size for size in group_sizes(gt, groups)]
    for row, mask in zip(scores, keep.split(1), strict=True):
        kept = set(mask.flatten().nonzero().flatten().tolist())
        start = 0
        shares = []
        for size in sizes:
            inside = range(start, start + size)
            shares.append(len(kept & set(inside)))
            assert kept & set(inside) == best_by_loop(row, shares[-1], inside)
            assert abs(shares[-1] - count * size / grid.num_tokens) < 1
            start += size
        if len(set(sizes)) == 1:
            each, more = divmod(count, len(sizes))
            assert shares == [each + (g < more) for g in range(len(sizes))]


@given(gt=lengths, groups=st.integers(0, 5), seed=st.integers(0, 99), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_budgets_of_one_ranking_are_its_prefixes(
    gt: int, groups: int, seed: int, ties: bool
) -> None:
    grid = TubeletGrid(gt, 2, 2)
    groups = min(groups, gt)
    scores = scores_of(grid, seed, ties=ties)
    ranking = rank(scores, grid, groups)
    assert torch.equal(ranking.sort(1).values, torch.arange(grid.num_tokens).expand(2, -1))
    masks = []
    for count in range(1, grid.num_tokens + 1):
        masks.append(keep_first(ranking, count))
        budget = GroupCount(token_budget=count, groups=groups)
        assert torch.equal(budget.keep(scores, grid), masks[-1])
    assert all((fewer <= more).all() for fewer, more in itertools.pairwise(masks))


@given(
    seed=st.integers(0, 99), ties=st.booleans(), count=st.integers(1, 24), batch=st.integers(1, 5)
)
@settings(max_examples=60, deadline=None)
def test_a_batchs_count_is_exact_with_one_of_each_clip(
    seed: int, ties: bool, count: int, batch: int
) -> None:
    scores = scores_of(GRID, seed, batch, ties)
    scores[0] -= 10  # a clip that would get nothing
    keep = BatchCount(token_budget=count).keep(scores, GRID)
    assert int(keep.sum()) == count * batch
    firsts = {24 * b + int(row.argmax()) for b, row in enumerate(scores)}
    others = [i for i in range(24 * batch) if i not in firsts]
    best = sorted(others, key=lambda i: (-scores.flatten()[i].item(), i))[: (count - 1) * batch]
    assert set(keep.flatten().nonzero().flatten().tolist()) == firsts | set(best)


@given(seed=st.integers(0, 99), ties=st.booleans(), count=st.integers(1, 24))
@settings(max_examples=60, deadline=None)
def test_a_quantile_keeps_what_is_above_the_cut(seed: int, ties: bool, count: int) -> None:
    scores = scores_of(GRID, seed, ties=ties)
    keep = Quantile(token_budget=count).keep(scores, GRID)
    for row, mask in zip(scores, keep, strict=True):
        falling = sorted(row.tolist(), reverse=True)
        cut = falling[count] if count < 24 else -1.0
        above = row > cut
        assert torch.equal(mask, above) if above.any() else mask.sum() == 1
        assert mask.sum() <= count
        assert ties or mask.sum() == count


def test_a_quantile_of_a_still_clip_keeps_one_token_and_a_count_keeps_its_count() -> None:
    still = torch.zeros(1, 24)
    assert Quantile(0.5).keep(still, GRID).nonzero().tolist() == [[0, 0]]
    assert ClipCount(0.5).keep(still, GRID).nonzero()[:, 1].tolist() == list(range(12))


def test_a_threshold_is_strict_and_keeps_one_token_at_least() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.2, 0.5], [0.6, 0.5, 0.7, 0.0]])
    keep = Threshold(0.5).keep(scores, TubeletGrid(2, 1, 2))
    assert keep.tolist() == [[False, True, False, False], [True, False, True, False]]
    assert Threshold(0.5).num_kept(GRID) is None


@pytest.mark.parametrize(
    "budget", [Threshold(0.5), Quantile(0.5), BatchCount(0.25), ClipCount(0.5)]
)
@pytest.mark.parametrize("where", [slice(None), slice(3, 5)])
def test_scores_that_are_not_finite_leave_each_clip_a_token(budget: Budget, where: slice) -> None:
    """That weights have become NaN is for the training loop to say, which sees the loss."""
    scores = scores_of(GRID, 0)
    scores[0, where] = torch.nan
    assert (budget.keep(scores, GRID).sum(dim=1) >= 1).all()


def test_published_counts() -> None:
    videomae = TubeletGrid(8, 14, 14)
    assert [ClipCount(r).num_kept(videomae) for r in (0.3, 0.1, 0.6)] == [470, 156, 940]
    # Flux: (frames, size, budget) at tubelet 1, patch 14, where the original keeps 1020, 3068 and 2046.
    for frames, size, count in ((12, 224, 1024), (24, 196, 3072), (14, 280, 2048)):
        grid = TubeletGrid(frames, size // 14, size // 14)
        keep = GroupCount(token_budget=count).keep(scores_of(grid, 0, batch=1), grid)
        assert int(keep.sum()) == count
        per_group = keep.view(len(group_sizes(frames)), -1).sum(1)
        assert per_group.tolist() == [count // len(per_group)] * len(per_group)


def test_shares_round_down_but_not_below_what_they_say() -> None:
    assert [count_tokens(r, n) for r, n in ((0.29, 100), (0.7, 10), (0.6, 1568))] == [29, 7, 940]
    assert count_tokens(0.001, 60) == 1
    assert count_tokens(1.0, 60) == 60


def test_published_groups_and_what_the_original_has_no_answer_for() -> None:
    assert {gt: len(group_sizes(gt)) for gt in (8, 12, 16, 20, 24)} == dict.fromkeys(
        (8, 12, 16, 20, 24), 4
    )
    assert {gt: len(group_sizes(gt)) for gt in (6, 10, 14, 18, 22)} == dict.fromkeys(
        (6, 10, 14, 18, 22), 2
    )
    assert [group_sizes(gt) for gt in (1, 2, 3, 4, 5, 7, 9)] == [
        *((1,), (2,), (3,), (2, 2)),  # the original makes groups of one at 4, and fails
        *((3, 2), (4, 3), (5, 4)),
    ]
    assert group_sizes(8, 3) == (3, 3, 2)
    with pytest.raises(ConfigError, match="allowed: 1 to 2, or 0"):
        group_sizes(2, 3)


@pytest.mark.parametrize("kind", [ClipCount, GroupCount, Quantile, BatchCount])
def test_a_budget_of_everything_is_known_as_such(kind: type) -> None:
    for budget in (kind(), kind(token_budget=24)):
        assert budget.num_kept(GRID) == 24
        assert budget.keep(torch.zeros(2, 24), GRID).all()


@pytest.mark.parametrize("kind", [ClipCount, GroupCount, Quantile, BatchCount])
def test_budgets_out_of_range_are_answered(kind: type) -> None:
    budget: Budget = kind(token_budget=25)
    with pytest.raises(
        ConfigError, match="token_budget is 25, but a clip of 4x2x3 tubelets has 24"
    ):
        budget.num_kept(GRID)
    with pytest.raises(ConfigError, match="allowed: above 0, up to 1"):
        kind(1.1)
    with pytest.raises(ConfigError, match="allowed: 0 or more"):
        kind(token_budget=-1)
