"""Packing: the kept tokens of a batch, back to back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.tokens.budgets import ClipCount, GroupCount
from onereel.tokens.packing import (
    kept_tokens,
    pack,
    pack_all,
    pack_clips,
    per_token,
    segment_mean,
    unpack,
)
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import PixelScore
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed, TokenSelection, TubeletGrid

GRID = TubeletGrid(3, 2, 4)


def random_selection(batch: int, grid: TubeletGrid, seed: int = 0) -> TokenSelection:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, grid.num_tokens, generator=generator) < 0.4
    mask[:, 0] = True
    return TokenSelection(mask, torch.arange(mask.numel()).reshape(mask.shape))


def same(a: Packed, b: Packed) -> bool:
    return (
        torch.equal(a.values, b.values)
        and a.lengths == b.lengths
        and torch.equal(a.cu_seqlens, b.cu_seqlens)
        and torch.equal(a.coordinates, b.coordinates)
        and a.grid == b.grid
        and (
            a.run_lengths is b.run_lengths
            or (a.run_lengths is not None and torch.equal(a.run_lengths, b.run_lengths))
        )
    )


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_packing_equals_a_boolean_index_per_clip(seed: int, batch: int) -> None:
    selection = random_selection(batch, GRID, seed)
    values = torch.randn(batch, GRID.num_tokens, 5)
    packed = pack(values, selection, GRID)
    everywhere = torch.cartesian_prod(*(torch.arange(n) for n in GRID))
    bounds = packed.cu_seqlens.tolist()
    assert packed.cu_seqlens.dtype == torch.int32
    for b, mask in enumerate(selection.keep_mask):
        clip = slice(bounds[b], bounds[b + 1])
        assert packed.lengths[b] == mask.sum()
        assert torch.equal(packed.values[clip], values[b, mask])
        assert torch.equal(packed.coordinates[clip], everywhere[mask])
        assert packed.run_lengths is not None
        assert selection.run_lengths is not None
        assert torch.equal(packed.run_lengths[clip], selection.run_lengths[b, mask])


@given(seed=st.integers(0, 10**6), tubelet=st.integers(1, 3), patch=st.sampled_from([1, 4, 14]))
@settings(max_examples=30, deadline=None)
def test_packing_clips_equals_packing_their_patches(seed: int, tubelet: int, patch: int) -> None:
    selection = random_selection(3, GRID, seed)
    clips = torch.randn(3, 3 * tubelet, 3, 2 * patch, 4 * patch)
    whole = pack(patchify(clips, tubelet, patch), selection, GRID)
    assert same(pack_clips(clips, selection, tubelet, patch), whole)


def test_packing_clips_takes_views_and_gives_gradients() -> None:
    selection = random_selection(2, GRID)
    pixels = torch.randn(2, 3, 6, 8, 16, requires_grad=True)
    clips = pixels.transpose(1, 2)  # (B, C, T, H, W) seen as (B, T, C, H, W)
    fast = pack_clips(clips, selection, 2, 4).values
    slow = pack(patchify(clips, 2, 4), selection, GRID).values
    assert torch.equal(fast, slow)
    weights = torch.randn_like(fast)
    gradients = [torch.autograd.grad((v * weights).sum(), pixels)[0] for v in (fast, slow)]
    assert torch.equal(*gradients)


def test_permuting_clips_permutes_segments() -> None:
    selection = random_selection(4, GRID)
    values = torch.randn(4, GRID.num_tokens, 5)
    order = torch.tensor([2, 0, 3, 1])
    moved = pack(values[order], TokenSelection(selection.keep_mask[order]), GRID)
    packed = pack(values, selection, GRID)
    segments = packed.values.split(packed.lengths)
    assert torch.equal(moved.values, torch.cat([segments[b] for b in order]))
    assert moved.lengths == tuple(packed.lengths[b] for b in order)


def test_all_equals_a_full_mask() -> None:
    values = torch.randn(2, GRID.num_tokens, 5)
    full = TokenSelection(torch.ones(2, GRID.num_tokens, dtype=torch.bool))
    assert same(pack_all(values, GRID), pack(values, full, GRID))


def test_unpacking_puts_values_back_and_fills_the_rest() -> None:
    selection = random_selection(3, GRID)
    values = torch.randn(3, GRID.num_tokens, 5)
    dense = unpack(pack(values, selection, GRID), fill=-7.0)
    assert torch.equal(dense, values.masked_fill(~selection.keep_mask[..., None], -7.0))


def test_a_number_per_clip_spreads_over_its_tokens() -> None:
    packed = pack(torch.randn(3, GRID.num_tokens, 5), random_selection(3, GRID), GRID)
    spread = per_token(torch.tensor([[1, 2, 3], [4, 5, 6]]), packed)
    clips = torch.cat([torch.full((n,), b + 1) for b, n in enumerate(packed.lengths)])
    assert torch.equal(spread, torch.stack([clips, clips + 3]))


@pytest.mark.parametrize("lengths", [(4, 1, 9), (5, 5, 5), (3,)])
def test_segment_mean_is_the_mean_per_clip_gradients_too(lengths: tuple[int, ...]) -> None:
    values = torch.randn(sum(lengths), 6, requires_grad=True)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    mean = segment_mean(values, lengths, bounds)
    expected = torch.stack([clip.mean(0) for clip in values.split(lengths)])
    assert torch.allclose(mean, expected, atol=1e-6)
    weights = torch.randn_like(mean)
    gradients = [torch.autograd.grad((m * weights).sum(), values)[0] for m in (mean, expected)]
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("with_runs", [True, False])
def test_parts_of_a_packed_batch_are_packed_alone(with_runs: bool) -> None:
    selection = random_selection(5, GRID)
    values = torch.randn(5, GRID.num_tokens, 5)
    runs = torch.arange(5 * GRID.num_tokens).view(5, -1) if with_runs else None
    whole = pack(values, TokenSelection(selection.keep_mask, runs), GRID)
    for first, stop in ((0, 5), (0, 2), (2, 3), (3, 5)):
        clips = slice(first, stop)
        mask = TokenSelection(selection.keep_mask[clips], None if runs is None else runs[clips])
        assert same(whole.part(first, stop), pack(values[clips], mask, GRID))


@pytest.mark.gpu
def test_packed_tokens_are_pinned_and_moved_whole() -> None:
    packed = pack(torch.randn(3, GRID.num_tokens, 5), random_selection(3, GRID), GRID)
    pinned = packed.pin_memory()
    assert pinned.values.is_pinned()
    assert pinned.coordinates.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert moved.device.type == moved.cu_seqlens.device.type == "cuda"
    assert same(moved.to("cpu"), packed)


def test_a_clip_without_tokens_is_named() -> None:
    mask = torch.ones(3, GRID.num_tokens, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="clip 1 of the batch keeps no token"):
        pack(torch.randn(3, GRID.num_tokens, 5), TokenSelection(mask), GRID)


def test_a_mask_of_another_grid_is_refused() -> None:
    selection = TokenSelection(torch.ones(1, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="keep_mask has 7 tokens"):
        pack(torch.randn(1, GRID.num_tokens, 5), selection, GRID)


def test_kept_tokens_is_the_mask_that_was_packed() -> None:
    grid = TubeletGrid(2, 3, 2)
    mask = torch.rand(4, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[:, 0] = True
    packed = pack(torch.randn(4, 12, 5), TokenSelection(mask), grid)
    assert torch.equal(kept_tokens(packed), mask)


def test_a_count_that_is_given_is_not_asked_for() -> None:
    """Lengths come from `num_kept` where the budget fixes them, and the rest is the same."""
    values = torch.randn(2, 8, 3)
    mask = torch.tensor([[True, False] * 4, [False, True] * 4])
    grid = TubeletGrid(2, 2, 2)
    counted, fixed = (pack(values, TokenSelection(mask, None, n), grid) for n in (None, 4))
    assert counted.lengths == fixed.lengths == (4, 4)
    assert torch.equal(counted.values, fixed.values)
    assert torch.equal(counted.coordinates, fixed.coordinates)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("kind", ["clip", "group"])
def test_exact_budgets_are_packed_without_a_synchronisation(kind: str) -> None:
    budget = {"clip": ClipCount(0.5), "group": GroupCount(0.5)}[kind]
    selector = ScoredSelector(PixelScore(), budget)
    clips = torch.randn(2, 16, 3, 64, 64, device="cuda")
    grid = clip_grid(clips, 2, 16)
    pack_clips(clips, selector.select(clips, None, grid, None), 2, 16)  # compiles, fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        packed = pack_clips(clips, selector.select(clips, None, grid, None), 2, 16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert packed.lengths == (64, 64)
