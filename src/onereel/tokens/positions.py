"""Position embeddings by coordinate (t, h, w) of the tubelet grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.types import TubeletGrid

SINCOS_BASE = 10000.0  # as in "Attention is all you need" section 3.5, MAE and V-JEPA


def _sincos_axis(length: int, dim: int, device: torch.device | None) -> Tensor:
    """`(length, dim)`: sines, then cosines, of the positions 0..length-1 at dim/2 frequencies."""
    exponents = torch.arange(dim // 2, dtype=torch.float64, device=device) / (dim // 2)
    positions = torch.arange(length, dtype=torch.float64, device=device)
    angles = positions[:, None] * SINCOS_BASE**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_positions(grid: TubeletGrid, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed factorised 3-D sine-cosine embedding, float32 `(N, dim)`, tokens in order (t, h, w).

    A third of `dim` goes to each axis, rounded down to an even number; time takes what is left over (V-JEPA shares
    likewise, and cuts off what is too much). Raises ValueError where `dim` is odd or below 6.
    """
    if dim < 6 or dim % 2:
        raise ValueError(f"sin-cos positions need an even dim of 6 or more, not {dim}")
    spatial = dim // 6 * 2
    time = _sincos_axis(grid.gt, dim - 2 * spatial, device)[:, None, None]
    rows = _sincos_axis(grid.gh, spatial, device)[None, :, None]
    columns = _sincos_axis(grid.gw, spatial, device)[None, None]
    axes = [axis.expand(*grid, -1) for axis in (time, rows, columns)]
    return torch.cat(axes, dim=-1).flatten(0, 2)


def flat_sincos_positions(
    grid: TubeletGrid, dim: int, device: torch.device | None = None
) -> Tensor:
    """VideoMAE's fixed table, float32 `(N, dim)`: sine-cosine of the running number of a token in its clip.

    Sines and cosines alternate (even values are sines). Raises ValueError where `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"sin-cos positions need an even dim, not {dim}")
    halves = _sincos_axis(grid.num_tokens, dim, device).unflatten(1, (2, dim // 2))
    return halves.transpose(1, 2).flatten(1)


def resize_positions(
    table: Tensor, old: TubeletGrid, new: TubeletGrid, *, align_corners: bool = False
) -> Tensor:
    """A table `(N, D)` made for grid `old`, trilinearly interpolated to grid `new`.

    `align_corners`: first and last places stay what they are, as by scipy's zoom, with which Scenic resizes ViViT's.
    """
    if old == new:
        return table
    volume = table.unflatten(0, tuple(old)).movedim(-1, 0)[None]
    resized = F.interpolate(
        volume.float(), size=tuple(new), mode="trilinear", align_corners=align_corners
    )
    return resized[0].flatten(1).T.to(table.dtype)


def flat_index(coordinates: Tensor, grid: TubeletGrid) -> Tensor:
    """Row of each `(t, h, w)` of `coordinates (M, 3)` in a table of `grid`: int64 `(M,)`."""
    t, h, w = coordinates.unbind(-1)
    return (t * grid.gh + h) * grid.gw + w


def gather_positions(table: Tensor, coordinates: Tensor, grid: TubeletGrid) -> Tensor:
    """The rows of `table (N, D)` at `coordinates (M, 3)`: `(M, D)`."""
    return F.embedding(flat_index(coordinates, grid), table)


def gather_space_time(
    space: Tensor, time: Tensor, coordinates: Tensor, old: TubeletGrid, new: TubeletGrid
) -> Tensor:
    """Rows of `space (gh * gw, D)` plus rows of `time (gt, D)` at `coordinates (M, 3)` of grid `new`: `(M, D)`.

    The tables are those of grid `old`; each is interpolated linearly where the grids differ on its axes (from 4 frames
    to 16, say, as AVION does).
    """
    frame = TubeletGrid(1, new.gh, new.gw)
    space = resize_positions(space, TubeletGrid(1, old.gh, old.gw), frame)
    time = resize_positions(time, TubeletGrid(old.gt, 1, 1), TubeletGrid(new.gt, 1, 1))
    t, h, w = coordinates.unbind(-1)
    return F.embedding(h * new.gw + w, space) + F.embedding(t, time)
