"""Which tubelets survive: the interface of every selector, and the controls (keep all, random, tube).

A selector is score x budget: it scores tubelets (pixel or embedding differences, or chance) and keeps those within
a budget (a threshold or an exact count). Learned or published selectors live in files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.types import TokenSelection, TubeletGrid


class Selector(Protocol):
    """Chooses tubelets; holds settings, no state.

    Attributes:
        needs_embeddings: whether `select` reads `embeddings`: the model then embeds every patch before selection.
    """

    needs_embeddings: bool

    def num_kept(self, grid: TubeletGrid) -> int | None:
        """Tokens that every clip of `grid` keeps, or None where that depends on the clip.

        Where it is all of them the model doesn't call `select`.
        """
        ...

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """Choose tubelets of each clip; called without gradients.

        Args:
            clips: normalised float `(B, T, C, H, W)`.
            embeddings: `(B, N, D)` patch embeddings before positions, or None.
            grid: the grid of the clips.
            generators: one CPU generator per clip, for selectors that draw; others take None.
        """
        ...


@dataclass(frozen=True)
class KeepAll:
    """Every tubelet: the dense model."""

    needs_embeddings = False

    def num_kept(self, grid: TubeletGrid) -> int:
        return grid.num_tokens

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """All True."""
        return TokenSelection(
            torch.ones(len(clips), grid.num_tokens, dtype=torch.bool, device=clips.device)
        )


@dataclass(frozen=True)
class RandomTokens:
    """`round(keep_ratio * N)` tubelets of each clip (half to even; at least 1), uniformly at random."""

    keep_ratio: float
    needs_embeddings = False

    def __post_init__(self) -> None:
        _check_ratio(self.keep_ratio)

    def num_kept(self, grid: TubeletGrid) -> int:
        return _count(self.keep_ratio, grid.num_tokens)

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """One draw per clip, from its generator; raises ValueError without generators."""
        mask = _random_mask(grid.num_tokens, self.num_kept(grid), len(clips), generators)
        return TokenSelection(mask.to(clips.device))


@dataclass(frozen=True)
class Tube:
    """`round(keep_ratio * gh * gw)` places of each clip (half to even; at least 1) at random, kept at all times."""

    keep_ratio: float
    needs_embeddings = False

    def __post_init__(self) -> None:
        _check_ratio(self.keep_ratio)

    def num_kept(self, grid: TubeletGrid) -> int:
        return grid.gt * _count(self.keep_ratio, grid.gh * grid.gw)

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """One draw per clip, from its generator; raises ValueError without generators."""
        num_places = grid.gh * grid.gw
        mask = _random_mask(num_places, _count(self.keep_ratio, num_places), len(clips), generators)
        return TokenSelection(mask.repeat(1, grid.gt).to(clips.device))


def _check_ratio(keep_ratio: float) -> None:
    if not 0 < keep_ratio <= 1:
        raise ConfigError(f"keep_ratio is {keep_ratio}; allowed: above 0, up to 1")


def _count(keep_ratio: float, total: int) -> int:
    return max(1, round(keep_ratio * total))


def _random_mask(
    total: int, kept: int, batch: int, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """bool `(batch, total)` on the CPU with exactly `kept` True per row."""
    if generators is None or len(generators) != batch:
        given = "none" if generators is None else f"{len(generators)}"
        raise ValueError(
            f"random selection draws: pass one generator per clip ({batch}), not {given}"
        )
    chosen = torch.stack([torch.randperm(total, generator=g)[:kept] for g in generators])
    return torch.zeros(batch, total, dtype=torch.bool).scatter_(1, chosen, True)
