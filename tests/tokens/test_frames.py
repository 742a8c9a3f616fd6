"""Frame selection: drawn in proportion to kept tokens, without replacement, at true times."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.tokens.frames import FrameSelection, choose_tubelets
from onereel.tokens.run_length import RunLength
from onereel.tokens.runs import run_lengths
from onereel.tokens.scored import random_tokens
from onereel.tokens.selector import KeepAll, Tube
from onereel.types import TokenSelection, TubeletGrid

CANDIDATES = TubeletGrid(12, 14, 14)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def probability_of_set(chosen: tuple[int, ...], counts: list[int]) -> float:
    """Of drawing exactly these, one after the other in any order: the definition."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, probability = sum(counts), 1.0
        for k in order:
            probability *= counts[k] / left
            left -= counts[k]
        total += probability
    return total


def test_sets_come_as_often_as_drawing_one_after_the_other_gives_them():
    """Chi-square over all 10 sets of 3 of 5, at fixed seeds: 9 degrees of freedom, 99.9 % of which lie below 27.9."""
    counts, num_draws = [1, 2, 3, 6, 12], 20000
    rows = torch.tensor(counts).expand(num_draws, -1)
    chosen = choose_tubelets(rows, 3, generators(*range(num_draws)), draws=True)
    seen = Counter(map(tuple, chosen.tolist()))
    expected = {
        which: num_draws * probability_of_set(which, counts)
        for which in itertools.combinations(range(5), 3)
    }
    assert sum(expected.values()) == pytest.approx(num_draws)
    assert sum((seen[k] - e) ** 2 / e for k, e in expected.items()) < 27.9
    # The test can fail: the same draws are far from uniform.
    uniform = num_draws / len(expected)
    assert sum((seen[k] - uniform) ** 2 / uniform for k in expected) > 1000


def test_the_first_draw_is_proportional_to_the_counts():
    counts, num_draws = torch.tensor([5, 0, 20, 75]), 20000
    chosen = choose_tubelets(
        counts.expand(num_draws, -1), 1, generators(*range(num_draws)), draws=True
    )
    seen = torch.bincount(chosen.flatten(), minlength=4)
    assert seen[1] == 0
    expected = counts / 100 * num_draws
    assert (
        (seen - expected)[[0, 2, 3]] ** 2 / expected[[0, 2, 3]]
    ).sum() < 13.8  # 2 degrees, 99.9 %


@given(
    counts=st.lists(st.integers(0, 196), min_size=1, max_size=24),
    draws=st.booleans(),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_without_replacement_in_order_of_time_and_empty_ones_last(counts, draws, seed, data):
    num_chosen = data.draw(st.integers(1, len(counts)))
    chosen = choose_tubelets(torch.tensor([counts]), num_chosen, generators(seed), draws=draws)[0]
    times = chosen.tolist()
    assert times == sorted(set(times))
    assert len(times) == num_chosen
    num_full = sum(count > 0 for count in counts)
    assert sum(counts[k] > 0 for k in times) == min(num_full, num_chosen)


def test_without_draws_the_largest_counts_win_and_earlier_ones_where_they_tie():
    counts = torch.tensor([[3, 9, 1, 9, 3, 3], [0, 0, 0, 0, 0, 7]])
    chosen = choose_tubelets(counts, 4, draws=False)
    assert chosen.tolist() == [[0, 1, 3, 4], [0, 1, 2, 5]]


def test_a_clips_draw_depends_on_the_clip_alone():
    counts = torch.randint(0, 196, (4, 12), generator=torch.Generator().manual_seed(0))
    together = choose_tubelets(counts, 8, generators(5, 6, 7, 8), draws=True)
    for i in range(4):
        alone = choose_tubelets(counts[i : i + 1], 8, generators(5 + i), draws=True)
        assert torch.equal(alone[0], together[i])
    with pytest.raises(ValueError, match=r"one generator per clip \(4\), not none"):
        choose_tubelets(counts, 8, draws=True)


def moving_clips(batch: int = 2, gt: int = 6, seed: int = 0) -> torch.Tensor:
    """Clips in which another share of the patches changes at each time."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.zeros(batch, 2 * gt, 3, 64, 64)
    for b, t in itertools.product(range(batch), range(1, gt)):
        change = torch.rand(4, 4, generator=generator) < torch.rand((), generator=generator)
        pixels = change.repeat_interleave(16, 0).repeat_interleave(16, 1)
        clips[b, 2 * t :] += pixels * torch.randn((), generator=generator)
    return clips


def reference(frames, selector, clips, counts, draws_of):
    """One clip at a time: choose, cut the clip, select, put back."""
    batch, gt = len(clips), clips.shape[1] // 2
    per_time = clips.shape[-2] // 16 * (clips.shape[-1] // 16)
    mask = torch.zeros(batch, gt, per_time, dtype=torch.bool)
    runs = torch.zeros(batch, gt, per_time, dtype=torch.int64)
    for b in range(batch):
        times = draws_of(b, counts[b])
        part = torch.cat([clips[b : b + 1, 2 * t : 2 * t + 2] for t in times], dim=1)
        grid = TubeletGrid(len(times), clips.shape[-2] // 16, clips.shape[-1] // 16)
        inner = selector.select(part, None, grid, None)
        for k, t in enumerate(times):
            at = slice(k * per_time, (k + 1) * per_time)
            mask[b, t], runs[b, t] = inner.keep_mask[0, at], inner.run_lengths[0, at]
    return mask.flatten(1), runs.flatten(1)


@pytest.mark.parametrize("draws", [True, False])
@pytest.mark.parametrize("which", ["adjacent", "anchor"])
def test_selection_equals_a_loop_over_clips(draws, which):
    clips, grid = moving_clips(3), TubeletGrid(6, 4, 4)
    selector, frames = RunLength(0.1, which), FrameSelection(4)
    found = frames.select(selector, clips, None, grid, generators(1, 2, 3), draws=draws)
    counts = selector.select(clips, None, grid, None).keep_mask.unflatten(1, (6, 16)).sum(2)

    def times_of(b, counts):
        return choose_tubelets(counts[None], 4, generators(b + 1), draws=draws)[0].tolist()

    mask, runs = reference(frames, selector, clips, counts, times_of)
    assert torch.equal(found.keep_mask, mask)
    assert torch.equal(found.run_lengths, runs)
    # The selector sees the chosen tubelets as a clip: the first of them is kept whole, runs cover them exactly.
    assert found.run_lengths.sum(1).tolist() == [4 * 16] * 3


def test_the_selection_is_made_again_on_the_chosen_tubelets():
    """A place that changes within a dropped tubelet is new in the one after it, though not beside its neighbour."""
    clips = torch.zeros(1, 8, 3, 32, 32)
    clips[:, 2:, :, :16, :16] = (
        1.0  # one place changes at time 1, which keeps fewer tokens than times 0, 2 and 3
    )
    clips[:, 4:6] += 2.0
    grid = TubeletGrid(4, 2, 2)
    selector = RunLength(0.1)
    before = selector.select(clips, None, grid, None).keep_mask.view(4, 4)
    assert before.sum(1).tolist() == [4, 1, 4, 4]
    after = FrameSelection(3).select(selector, clips, None, grid, None, draws=False)
    assert after.keep_mask.view(4, 4).sum(1).tolist() == [4, 0, 4, 4]
    assert torch.equal(
        after.run_lengths.view(4, 4)[[0, 2, 3]].flatten(),
        run_lengths(torch.ones(1, 12, dtype=torch.bool), TubeletGrid(3, 2, 2)).flatten(),
    )


class ExactlyBiggest:
    """The `count` tokens of the brightest patches: an exact budget over whatever clip it is given."""

    needs_embeddings = False

    def __init__(self, count: int) -> None:
        self.count = count

    def num_kept(self, grid):
        return self.count

    def select(self, clips, embeddings, grid, generators):
        bright = clips.mean(2).unflatten(1, (grid.gt, 2)).mean(2)
        bright = bright.unflatten(-1, (grid.gw, 16)).mean(-1).unflatten(-2, (grid.gh, 16)).mean(-2)
        best = bright.flatten(1).topk(self.count).indices
        mask = torch.zeros(len(clips), grid.num_tokens, dtype=torch.bool)
        return TokenSelection(mask.scatter(1, best, True))


@pytest.mark.parametrize("count", [470, 940])
def test_exact_budgets_count_tokens_of_the_chosen_tubelets(count):
    """24 candidate frames, 12 tubelets, 8 chosen, 470 or 940 of their 1568 tokens (facts of EVEREST)."""
    clips = torch.randn(2, 24, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    frames = FrameSelection(8)
    assert frames.given_grid(CANDIDATES).num_tokens == 1568
    found = frames.select(
        ExactlyBiggest(count), clips, None, CANDIDATES, generators(1, 2), draws=True
    )
    kept = found.keep_mask.unflatten(1, (12, 196)).sum(2)
    assert kept.sum(1).tolist() == [count, count]
    assert ((kept > 0).sum(1) <= 8).all()


@pytest.mark.parametrize("selector", [KeepAll(), random_tokens(0.3), Tube(0.3)])
def test_controls_keep_their_budget_in_the_chosen_tubelets(selector):
    grid, frames = TubeletGrid(6, 4, 4), FrameSelection(4)
    found = frames.select(selector, moving_clips(), None, grid, generators(1, 2), draws=True)
    per_time = found.keep_mask.unflatten(1, (6, 16)).sum(2)
    assert found.num_kept == selector.num_kept(TubeletGrid(4, 4, 4))  # so that packing need not ask
    assert per_time.sum(1).tolist() == [found.num_kept] * 2
    assert ((per_time > 0).sum(1) <= 4).all()


def test_embeddings_travel_with_their_tubelets():
    class Embedded:
        needs_embeddings = True

        def num_kept(self, grid):
            return None

        def select(self, clips, embeddings, grid, generators):
            return TokenSelection(embeddings[..., 0] > 0)

    grid, frames = TubeletGrid(6, 4, 4), FrameSelection(4)
    embeddings = torch.randn(2, 96, 3, generator=torch.Generator().manual_seed(0))
    found = frames.select(Embedded(), moving_clips(), embeddings, grid, None, draws=False)
    times = choose_tubelets((embeddings[..., 0] > 0).unflatten(1, (6, 16)).sum(2), 4, draws=False)
    in_time = torch.zeros(2, 6, dtype=torch.bool).scatter(1, times, True)
    expected = (embeddings[..., 0] > 0) & in_time.repeat_interleave(16, 1)
    assert torch.equal(found.keep_mask, expected)


def test_as_many_candidates_as_tubelets_change_nothing():
    clips, grid = moving_clips(), TubeletGrid(6, 4, 4)
    selector = RunLength(0.1)
    plain = selector.select(clips, None, grid, None)
    found = FrameSelection(6).select(selector, clips, None, grid, None, draws=True)
    assert torch.equal(found.keep_mask, plain.keep_mask)
    assert torch.equal(found.run_lengths, plain.run_lengths)


def test_too_few_candidates_are_refused():
    with pytest.raises(
        ConfigError, match=r"6 tubelets in time, fewer than the 8 .*frame_selection"
    ):
        FrameSelection(8).given_grid(TubeletGrid(6, 4, 4))
