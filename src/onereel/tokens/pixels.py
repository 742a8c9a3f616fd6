"""Differences of pixels, patch by patch: what run-length tokens and their guards are made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.config import AugmentConfig
from onereel.errors import ConfigError
from onereel.tokens.cuda import fused_on_cuda
from onereel.tokens.tubelets import clip_grid
from onereel.types import TubeletGrid

Std = tuple[float, float, float]
STD: Std = AugmentConfig.std
"""Standard deviation of R, G, B in 0..1 that clips are normalised with unless a run says otherwise."""


def check_grid(clips: Tensor, grid: TubeletGrid, tubelet_size: int, patch_size: int) -> None:
    """Raise ValueError where tubelets of this size don't cut `clips` into `grid`."""
    if clip_grid(clips, tubelet_size, patch_size) != grid:
        raise ValueError(
            f"tubelets of {tubelet_size}x{patch_size}x{patch_size} don't cut "
            f"clips {tuple(clips.shape)} into {grid}"
        )


def check_noise_cell(noise_cell: int, patch_size: int) -> None:
    """Raise ConfigError where cells of `noise_cell` pixels don't fill a patch."""
    if noise_cell < 1 or patch_size % noise_cell:
        allowed = ", ".join(str(n) for n in range(1, patch_size + 1) if patch_size % n == 0)
        raise ConfigError(
            f"noise_cell is {noise_cell}; allowed with patches of {patch_size}: {allowed}"
        )


def as_floats(clips: Tensor, std: Std) -> Tensor:
    """float32 on the scale of normalised clips; of uint8 `(B, T, C, H, W)` up to a constant per channel."""
    if clips.dtype != torch.uint8:
        return clips.float()
    return clips.float().div_(torch.tensor(std, device=clips.device).mul_(255)[:, None, None])


def average_cells(frames: Tensor, cell: int) -> Tensor:
    """Mean over cells of `cell x cell` pixels: float `(B, K, C, H, W)` to `(B, K, C, H / cell, W / cell)`."""
    return F.avg_pool2d(frames.flatten(0, 1), cell).unflatten(0, frames.shape[:2])


def patch_difference(
    a: Tensor, b: Tensor, patch_size: int, std: Std = STD, noise_cell: int = 1
) -> Tensor:
    """Mean over channels and patch pixels of |a - b|: frames `(B, K, C, H, W)` to float32 `(B, K, gh, gw)`.

    uint8 frames are subtracted and summed as integers, a quarter of the time, and divided by 255 and `std`.

    Args:
        noise_cell: average a - b over cells of so many pixels squared first: noise falls by that factor.
    """
    if noise_cell == 1 and fused_on_cuda(a) and fused_on_cuda(b):
        from onereel.tokens import kernels

        return kernels.patch_difference(a, b, patch_size)
    if noise_cell == 1 and a.dtype == torch.uint8:
        return _byte_difference(a, b, patch_size, std)
    difference = as_floats(a, std) - as_floats(b, std)
    if noise_cell > 1:
        difference, patch_size = average_cells(difference, noise_cell), patch_size // noise_cell
    pixels = difference.abs_().mean(dim=2)
    # Rows before columns: the first mean then runs along whole lines, twice as fast as both at once.
    rows = pixels.unflatten(-2, (-1, patch_size)).mean(-2)
    return rows.unflatten(-1, (-1, patch_size)).mean(-1)


def _byte_difference(a: Tensor, b: Tensor, patch_size: int, std: Std) -> Tensor:
    levels = torch.maximum(a, b) - torch.minimum(a, b)  # |a - b| without leaving uint8
    # 16 bits hold the sum of 128 rows.
    total = torch.int16 if patch_size <= 128 else torch.int32
    rows = levels.unflatten(-2, (-1, patch_size)).sum(-2, dtype=total).float()
    sums = rows.unflatten(-1, (-1, patch_size)).sum(-1)
    # What one grey level of one pixel adds to the mean. Plain numbers: a tensor of them would have to be sent.
    weights = [1 / (len(std) * 255 * s * patch_size**2) for s in std]
    return sum(w * channel for w, channel in zip(weights, sums.unbind(2), strict=True))
