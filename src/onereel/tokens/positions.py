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


def video_sincos_positions(
    grid: TubeletGrid, dim: int, device: torch.device | None = None
) -> Tensor:
    """The start of InternVideo2's and FluxViT's tables, float32 `(N, dim)`: a quarter for time, three for space.

    Of space, columns come before rows, as in their code. Raises ValueError where `dim` is not a multiple of 16.
    """
    if dim % 16:
        raise ValueError(f"these sin-cos positions need a dim that is a multiple of 16, not {dim}")
    time = _sincos_axis(grid.gt, dim // 4, device)[:, None, None]
    rows = _sincos_axis(grid.gh, dim // 8 * 3, device)[None, :, None]
    columns = _sincos_axis(grid.gw, dim // 8 * 3, device)[None, None]
    axes = [axis.expand(*grid, -1) for axis in (time, columns, rows)]
    return torch.cat(axes, dim=-1).flatten(0, 2)


def resize_bicubic(table: Tensor, old: TubeletGrid, new: TubeletGrid) -> Tensor:
    """A table `(N, D)` made for grid `old`, interpolated linearly in time and bicubically in space to grid `new`.

    Corners are not aligned (FluxViT's rule for its global positions).
    """
    if old == new:
        return table
    times = table.float().unflatten(0, (old.gt, -1)).permute(1, 2, 0)  # (gh * gw, D, gt)
    times = F.interpolate(times, size=new.gt, mode="linear", align_corners=False)
    pictures = times.permute(2, 1, 0).unflatten(2, old[1:])  # (gt, D, gh, gw)
    pictures = F.interpolate(pictures, size=new[1:], mode="bicubic", align_corners=False)
    return pictures.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def rotary_angles(coordinates: Tensor, head_dim: int) -> Tensor:
    """Angles float32 `(M, head_dim / 2)` of axial 3-D rotary positions (RoPE, arXiv 2104.09864) at `(M, 3)` (t, h, w).

    A third of the pairs of channels turns with each axis, rounded down; time takes what is left over. A class token
    (coordinates -1) is not turned. Raises ValueError where `head_dim` is odd or below 6.
    """
    if head_dim < 6 or head_dim % 2:
        raise ValueError(f"rotary positions need an even head width of 6 or more, not {head_dim}")
    pairs = head_dim // 2
    counts = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    places = coordinates.clamp(min=0).float()
    angles = []
    for axis, count in enumerate(counts):
        exponents = torch.arange(count, dtype=torch.float32, device=coordinates.device) / count
        angles.append(places[:, axis, None] * SINCOS_BASE**-exponents)
    return torch.cat(angles, dim=1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """`x (M, h, d)` with channel i and channel i + d / 2 turned as a plane by `angles (M, d / 2)`; in float32."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.to(x.dtype)


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
