"""The two steps that touch every pixel of a batch, on CUDA: one pass over memory each, by Triton.

In PyTorch's own operations the mask and the gather take longer than a tenth of a forward pass that keeps few tokens.
Both stand beside their reference, which says when they may be used: `pixels.patch_difference`, `packing.pack_clips`.
"""

# The arguments of a kernel are pointers and numbers, and Triton reads annotations as its own.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def patch_difference(a: Tensor, b: Tensor, patch_size: int) -> Tensor:
    """As `pixels.patch_difference` of float frames whose lines lie one behind the other."""
    batch, frames, channels, height, width = a.shape
    out = a.new_empty(batch, frames, height // patch_size, width // patch_size, dtype=torch.float32)
    if out.numel() == 0:
        return out
    with torch.cuda.device(a.device):
        _patch_difference[(out.numel(),)](
            *(a, b, out, frames, *out.shape[2:], width),
            *(*a.stride()[:3], *b.stride()[:3]),
            channels=channels,
            patch=patch_size,
            block=triton.next_power_of_2(channels * patch_size**2),
        )
    return out


def gather_patches(clips: Tensor, indices: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """`(M, P)` patches, values in order (c, t, h, w), at `indices (4, M)` of contiguous `clips (B, T, C, H, W)`."""
    _, frames, channels, height, width = clips.shape
    num_values = channels * tubelet_size * patch_size**2
    out = clips.new_empty(indices.shape[1], num_values)
    with torch.cuda.device(clips.device):
        _gather_patches[(len(out),)](
            *(clips, indices, out, *indices.stride(), frames, height, width),
            channels=channels,
            tubelet=tubelet_size,
            patch=patch_size,
            block=triton.next_power_of_2(num_values),
        )
    return out


@triton.jit
def _patch_difference(
    a,
    b,
    out,
    frames,
    rows,
    columns,
    width,
    a_clip,
    a_frame,
    a_channel,
    b_clip,
    b_frame,
    b_channel,
    channels: tl.constexpr,
    patch: tl.constexpr,
    block: tl.constexpr,
):
    """One program per patch of one pair of frames."""
    number = tl.program_id(0).to(tl.int64)
    column, row = number % columns, number // columns % rows
    frame, clip = number // (columns * rows) % frames, number // (columns * rows * frames)
    value = tl.arange(0, block)
    inside = value < channels * patch * patch
    channel, y, x = value // (patch * patch), value // patch % patch, value % patch
    pixel = (row * patch + y) * width + column * patch + x
    at_a = clip * a_clip + frame * a_frame + channel * a_channel + pixel
    at_b = clip * b_clip + frame * b_frame + channel * b_channel + pixel
    left = tl.load(a + at_a, mask=inside, other=0).to(tl.float32)
    right = tl.load(b + at_b, mask=inside, other=0).to(tl.float32)
    tl.store(out + number, tl.sum(tl.abs(left - right)) / (channels * patch * patch))


@triton.jit
def _gather_patches(
    clips,
    indices,
    out,
    per_index,
    per_token,
    frames,
    height,
    width,
    channels: tl.constexpr,
    tubelet: tl.constexpr,
    patch: tl.constexpr,
    block: tl.constexpr,
):
    """One program per token."""
    token = tl.program_id(0).to(tl.int64)
    mine = indices + token * per_token
    clip, time = tl.load(mine), tl.load(mine + per_index)
    row, column = tl.load(mine + 2 * per_index), tl.load(mine + 3 * per_index)
    value = tl.arange(0, block)
    inside = value < channels * tubelet * patch * patch
    channel, t = value // (tubelet * patch * patch), value // (patch * patch) % tubelet
    y, x = value // patch % patch, value % patch
    frame = clip * frames + time * tubelet + t
    pixel = ((frame * channels + channel) * height + row * patch + y) * width + column * patch + x
    values = tl.load(clips + pixel, mask=inside, other=0)
    tl.store(out + token * (channels * tubelet * patch * patch) + value, values, mask=inside)
