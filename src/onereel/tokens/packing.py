"""Kept tokens of a batch, back to back (`Packed`): no padding, no per-clip loop, one host synchronisation at most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.tokens.cuda import fused_on_cuda
from onereel.tokens.positions import flat_index
from onereel.tokens.tubelets import clip_grid
from onereel.types import Packed, TokenSelection, TubeletGrid


def cumulative_lengths(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 `(B + 1,)`: where each clip begins, and the end."""
    bounds = [0, *itertools.accumulate(lengths)]
    # From pinned memory, or the copy would wait for all that the device still has to do.
    pinned = torch.tensor(bounds, dtype=torch.int32, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)


class TokenIndices(NamedTuple):
    """Which tokens of a batch, in packed order: clip after clip, and (t, h, w) within a clip.

    Attributes:
        lengths: tokens of each clip, on the host.
        indices: int64 `(4, M)`: clip, t, h, w of each token.
        frame_lengths: as in `Packed`.
    """

    lengths: tuple[int, ...]
    indices: Tensor
    frame_lengths: tuple[int, ...] | None = None


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Host `values` on `device`, without waiting for it."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def token_indices(
    keep_mask: Tensor, grid: TubeletGrid, num_kept: int | None = None
) -> TokenIndices:
    """The True of `keep_mask (B, N)`; `num_kept` of every clip, where it is known, spares a wait for the device.

    Raises ValueError where a clip keeps no token or the mask doesn't fit the grid.
    """
    if keep_mask.shape[1] != grid.num_tokens:
        raise ValueError(f"keep_mask has {keep_mask.shape[1]} tokens, {grid} has {grid.num_tokens}")
    counts = None
    if num_kept is None or not keep_mask.is_cuda:
        counts = keep_mask.unflatten(1, (grid.gt, -1)).sum(dim=2).tolist()
    lengths = (num_kept or 0,) * len(keep_mask) if counts is None else tuple(map(sum, counts))
    if 0 in lengths:
        raise ValueError(
            f"clip {lengths.index(0)} of the batch keeps no token; a selector must keep 1 or more"
        )
    # The count is known by now, so this nonzero need not ask the device.
    indices = torch.nonzero_static(keep_mask.unflatten(1, tuple(grid)), size=sum(lengths))
    frame_lengths = None if counts is None else tuple(itertools.chain.from_iterable(counts))
    return TokenIndices(lengths, indices.T, frame_lengths)


def _chosen(selection: TokenSelection, grid: TubeletGrid) -> TokenIndices:
    tokens = token_indices(selection.keep_mask, grid, selection.num_kept)
    if tokens.frame_lengths is None and selection.num_kept_per_frame is not None:
        frames = (selection.num_kept_per_frame,) * (len(selection.keep_mask) * grid.gt)
        return tokens._replace(frame_lengths=frames)
    return tokens


def _packed(
    values: Tensor, tokens: TokenIndices, run_lengths: Tensor | None, grid: TubeletGrid
) -> Packed:
    return Packed(
        values=values,
        lengths=tokens.lengths,
        cu_seqlens=cumulative_lengths(tokens.lengths, values.device),
        coordinates=tokens.indices[1:].T,
        grid=grid,
        run_lengths=None
        if run_lengths is None
        else run_lengths.unflatten(1, tuple(grid))[tuple(tokens.indices)],
        frame_lengths=tokens.frame_lengths,
    )


def pack(values: Tensor, selection: TokenSelection, grid: TubeletGrid) -> Packed:
    """The kept rows of `values (B, N, P)`, tokens of a clip in order (t, h, w).

    Raises ValueError where a clip keeps no token or the mask doesn't fit the grid.
    """
    tokens = _chosen(selection, grid)
    rows = values.unflatten(1, tuple(grid))[tuple(tokens.indices)]
    return _packed(rows, tokens, selection.run_lengths, grid)


def pack_clips(
    clips: Tensor, selection: TokenSelection, tubelet_size: int, patch_size: int
) -> Packed:
    """`pack(patchify(clips), ...)` that reads only the kept patches of `clips (B, T, C, H, W)`."""
    grid = clip_grid(clips, tubelet_size, patch_size)
    tokens = _chosen(selection, grid)
    return pack_at(clips, tokens, tubelet_size, patch_size, selection.run_lengths)


def pack_at(
    clips: Tensor,
    tokens: TokenIndices,
    tubelet_size: int,
    patch_size: int,
    run_lengths: Tensor | None = None,
) -> Packed:
    """The patches of `clips (B, T, C, H, W)` at `tokens`, with their `run_lengths (B, N)` if there are any."""
    grid = clip_grid(clips, tubelet_size, patch_size)
    values = _gather_patches(clips, tokens.indices, grid, tubelet_size, patch_size)
    return _packed(values, tokens, run_lengths, grid)


def _gather_patches(
    clips: Tensor, indices: Tensor, grid: TubeletGrid, tubelet_size: int, patch_size: int
) -> Tensor:
    """`(M, P)` patches at `indices (4, M)`.

    A patch is C * tubelet_size * patch_size rows of patch_size pixels, and a clip is a table of such rows, gathered
    here by number: on a CPU 3 to 6 times as fast as indexing a strided view of patches, which copies pixel by pixel.
    On CUDA a kernel of our own copies each patch at once.
    """
    if fused_on_cuda(clips):
        from onereel.tokens import kernels

        return kernels.gather_patches(clips.contiguous(), indices, tubelet_size, patch_size)
    _, num_frames, channels, height, _ = clips.shape
    b, t, h, w = indices
    first = ((b * num_frames + t * tubelet_size) * channels * height + h * patch_size) * grid.gw + w
    frame, channel, row = (
        torch.arange(n, device=clips.device) for n in (tubelet_size, channels, patch_size)
    )
    within = (frame[:, None] * channels + channel[:, None, None]) * height + row  # (c, t, p)
    rows = first[:, None] + within.flatten() * grid.gw
    pixels = clips.reshape(-1, patch_size).index_select(0, rows.flatten())
    return pixels.unflatten(0, rows.shape).flatten(1)


def pack_all(values: Tensor, grid: TubeletGrid) -> Packed:
    """Every row of `values (B, N, P)`: a reshape whose shapes depend on no data (dense use, export)."""
    batch, num_tokens, _ = values.shape
    ranges = [torch.arange(n, device=values.device) for n in grid]
    lengths = (num_tokens,) * batch
    return Packed(
        values=values.flatten(0, 1),
        lengths=lengths,
        cu_seqlens=cumulative_lengths(lengths, values.device),
        coordinates=torch.cartesian_prod(*ranges).repeat(batch, 1),
        grid=grid,
        frame_lengths=(grid.gh * grid.gw,) * (batch * grid.gt),
    )


def take(packed: Packed, lengths: tuple[int, ...], positions: Tensor) -> Packed:
    """Some tokens of `packed`: those at `positions (M,)`, rising, of which `lengths` are each clip's."""
    return Packed(
        values=packed.values[positions],
        lengths=lengths,
        cu_seqlens=cumulative_lengths(lengths, packed.device),
        coordinates=packed.coordinates[positions],
        grid=packed.grid,
        run_lengths=None if packed.run_lengths is None else packed.run_lengths[positions],
    )


class Frames(NamedTuple):
    """The tubelets in time of a batch's clips that hold a token; F of them.

    Attributes:
        tokens: each frame's tokens as a clip of its own, of grid (1, gh, gw).
        lengths: frames of each clip, on the host.
        coordinates: int64 `(F, 3)` (t, 0, 0) of each frame.
    """

    tokens: Packed
    lengths: tuple[int, ...]
    coordinates: Tensor


def by_frame(packed: Packed) -> Frames:
    """The tokens of `packed`, which lie in order (t, h, w) within each clip, frame by frame; values are not copied.

    A frame without tokens is absent. Where `packed.frame_lengths` is not known, this waits for the device.
    """
    grid = packed.grid
    counts = packed.frame_lengths or _count_per_frame(packed)
    held = [i for i, count in enumerate(counts) if count]
    lengths = tuple(counts[i] for i in held)
    per_clip = [0] * packed.batch_size
    for i in held:
        per_clip[i // grid.gt] += 1
    times = to_device(torch.tensor([i % grid.gt for i in held]), packed.device)
    places = packed.coordinates.clone()
    places[:, 0] = 0
    tokens = replace(
        packed,
        lengths=lengths,
        cu_seqlens=cumulative_lengths(lengths, packed.device),
        coordinates=places,
        grid=grid._replace(gt=1),
        frame_lengths=lengths,
    )
    return Frames(tokens, tuple(per_clip), F.pad(times[:, None], (0, 2)))


def _count_per_frame(packed: Packed) -> tuple[int, ...]:
    clip = per_token(torch.arange(packed.batch_size, device=packed.device), packed)
    frame = clip * packed.grid.gt + packed.coordinates[:, 0]
    counts = torch.bincount(frame, minlength=packed.batch_size * packed.grid.gt)
    return tuple(counts.tolist())


def concatenate(parts: Sequence[Packed]) -> Packed:
    """The clips of all `parts`, which are of one grid, in order; run lengths are left out."""
    lengths = tuple(itertools.chain.from_iterable(part.lengths for part in parts))
    return Packed(
        values=torch.cat([part.values for part in parts]),
        lengths=lengths,
        cu_seqlens=cumulative_lengths(lengths, parts[0].device),
        coordinates=torch.cat([part.coordinates for part in parts]),
        grid=parts[0].grid,
    )


def take_selected(packed: Packed, selection: TokenSelection) -> Packed:
    """The tokens of `packed` that a smaller choice keeps, all of which it must hold; nothing asks the device.

    Args:
        selection: with `num_kept`; its run lengths replace those of `packed`.
    """
    assert selection.num_kept is not None  # a choice by rank always knows
    lengths = (selection.num_kept,) * packed.batch_size
    clip = per_token(torch.arange(packed.batch_size, device=packed.device), packed)
    place = clip * packed.grid.num_tokens + flat_index(packed.coordinates, packed.grid)
    chosen = selection.keep_mask.flatten().index_select(0, place)
    positions = torch.nonzero_static(chosen, size=sum(lengths))[:, 0]
    part = take(replace(packed, run_lengths=None), lengths, positions)
    if selection.run_lengths is None:
        return part
    return replace(part, run_lengths=selection.run_lengths.flatten()[place[positions]])


def unpack(packed: Packed, fill: float = 0.0) -> Tensor:
    """`(B, N, D)`: the packed values at their places in the grid, `fill` where nothing was kept.

    Class tokens, whose coordinates are -1, have no place and are left out.
    """
    num_tokens = packed.grid.num_tokens
    clip = per_token(torch.arange(packed.batch_size, device=packed.values.device), packed)
    place = flat_index(packed.coordinates, packed.grid)
    place = torch.where(place < 0, num_tokens, place)  # one place more, for what has none
    dense = packed.values.new_full(
        (packed.batch_size, num_tokens + 1, packed.values.shape[1]), fill
    )
    return dense.index_put((clip, place), packed.values)[:, :num_tokens]


def kept_tokens(packed: Packed) -> Tensor:
    """bool `(B, N)`: which tubelets `packed` holds; class tokens (coordinates -1) are none."""
    clip = per_token(torch.arange(packed.batch_size, device=packed.values.device), packed)
    is_tubelet = packed.coordinates[:, 0] >= 0
    mask = torch.zeros(packed.batch_size, *packed.grid, dtype=torch.bool, device=clip.device)
    mask[(clip[is_tubelet], *packed.coordinates[is_tubelet].unbind(-1))] = True
    return mask.flatten(1)


def per_token(values: Tensor, packed: Packed) -> Tensor:
    """`values (..., B)`, one per clip, repeated for the tokens of each clip: `(..., M)`."""
    total = packed.values.shape[0]
    return values.repeat_interleave(packed.cu_seqlens.diff(), dim=-1, output_size=total)


def segment_sum(values: Tensor, packed: Packed) -> Tensor:
    """Sum over the tokens of each clip: `values (M, ...)` to `(B, ...)`; CUDA's has no order that may change."""
    lengths = packed.cu_seqlens.diff().long()
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


def segment_softmax(scores: Tensor, packed: Packed) -> Tensor:
    """The softmax of `scores (M, h)` over the tokens of each clip, without a loop over clips."""
    lengths = packed.cu_seqlens.diff().long()
    highest = torch.segment_reduce(scores.detach(), "max", lengths=lengths, unsafe=True)
    exps = (scores - per_token(highest.T, packed).T).exp()
    return exps / per_token(segment_sum(exps, packed).T, packed).T


def segment_mean(values: Tensor, lengths: Sequence[int], cu_seqlens: Tensor) -> Tensor:
    """Mean over the tokens of each clip: `values (M, D)` to `(B, D)`."""
    if len(set(lengths)) == 1:
        return values.unflatten(0, (len(lengths), lengths[0])).mean(dim=1)
    return torch.segment_reduce(values, "mean", lengths=cu_seqlens.diff().long(), unsafe=True)
