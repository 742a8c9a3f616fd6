"""How an encoder's tokens learn where they are: fixed and learned tables, and FluxViT's global table for any grid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from onereel.tokens.positions import (
    flat_sincos_positions,
    gather_positions,
    resize_bicubic,
    resize_positions,
    sincos_positions,
    video_sincos_positions,
)
from onereel.types import Packed, TubeletGrid

PositionKind = Literal["sincos", "sincos-1d", "learned", "space-time", "global", "rope"]
POSITIONS = ("sincos", "sincos-1d", "learned", "space-time", "global", "rope")


class GlobalPositions(nn.Module):
    """One learned table, interpolated to the grid of the clips at hand (FluxViT's GPE, arXiv 2503.14237).

    Args:
        grid: of the table; clips may have any other.
        dim: D.

    Its first row is the class token's. Where no gradient is asked for, the table of each grid is kept until the
    weights change; in training, which changes them each step, each forward interpolates.
    """

    def __init__(self, grid: TubeletGrid, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embed = nn.Parameter(torch.empty(1 + grid.num_tokens, dim))
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self._kept: dict[TubeletGrid, Tensor] = {}
        self._kept_of: tuple[object, ...] = ()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fixed 3-D sines and cosines to start from; zeros for the class token."""
        self.pos_embed[0] = 0
        self.pos_embed[1:] = video_sincos_positions(
            self.grid, self.pos_embed.shape[1], self.pos_embed.device
        )
        self.scale.fill_(1)
        self.shift.fill_(0)

    def forward(self, grid: TubeletGrid) -> Tensor:
        """The rows `(N, D)` of `grid`'s tokens."""
        if torch.is_grad_enabled():
            self._kept.clear()
            return self._rows(grid)
        now = tuple((p.data_ptr(), p._version) for p in self.parameters())
        if now != self._kept_of:
            self._kept, self._kept_of = {}, now
        if grid not in self._kept:
            self._kept[grid] = self._rows(grid)
        return self._kept[grid]

    def _rows(self, grid: TubeletGrid) -> Tensor:
        return resize_bicubic(self.pos_embed[1:], self.grid, grid) * self.scale + self.shift


def fixed_positions(kind: str, grid: TubeletGrid, dim: int) -> Tensor:
    """The table `(N, dim)` of positions "sincos" or "sincos-1d"."""
    return (sincos_positions if kind == "sincos" else flat_sincos_positions)(grid, dim)


def positions_of(
    tokens: Packed,
    table: Tensor,
    made_for: TubeletGrid,
    kind: str,
    *,
    align_corners: bool = False,
) -> Tensor:
    """Rows `(M, D)` of a position `table` of this `kind`; on another grid 3-D sin-cos is computed, others resized."""
    grid = tokens.grid
    if grid != made_for:
        table = (
            sincos_positions(grid, table.shape[1], table.device)
            if kind == "sincos"
            else resize_positions(table, made_for, grid, align_corners=align_corners)
        )
    return gather_positions(table, tokens.coordinates, grid)
