"""Which tubelets survive: the interface of every selector, and two controls (keep all, tube).

Most selectors are score x budget (`scored.py`): scores (`scores.py`) are differences of pixels or embeddings, or
chance; budgets (`budgets.py`) a threshold, a quantile or an exact count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.tokens.budgets import ClipCount, count_tokens, keep_first
from onereel.tokens.packing import to_device
from onereel.tokens.scores import random_scores
from onereel.types import TokenSelection, TubeletGrid


class Selector(Protocol):
    """Chooses tubelets; holds settings, no state."""

    @property
    def needs_embeddings(self) -> bool:
        """Whether `select` reads `embeddings`: the model then embeds every patch before selection."""
        ...

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
            clips: normalised float `(B, T, C, H, W)`, or uint8: the choice is the same up to rounding.
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
        everything = torch.ones(len(clips), grid.num_tokens, dtype=torch.bool, device=clips.device)
        return TokenSelection(
            everything, num_kept=grid.num_tokens, num_kept_per_frame=grid.gh * grid.gw
        )


@dataclass(frozen=True)
class Tube:
    """`token_budget` tubelets, or where that is 0 floor(keep_ratio * gh * gw) places (at least 1) of each clip.

    Places are drawn at random and kept at all times, so a budget must be a multiple of the tubelets in time.
    """

    keep_ratio: float = 0.5
    token_budget: int = 0
    needs_embeddings = False

    def __post_init__(self) -> None:
        ClipCount(self.keep_ratio, self.token_budget)  # refuses what is out of range

    def _num_places(self, grid: TubeletGrid) -> int:
        if not self.token_budget:
            return count_tokens(self.keep_ratio, grid.gh * grid.gw)
        kept = ClipCount(token_budget=self.token_budget).count(grid)
        if kept % grid.gt:
            below = kept // grid.gt * grid.gt
            nearest = f"{below} or {below + grid.gt}" if below else f"{grid.gt}"
            raise ConfigError(
                f"token_budget {kept} can't be tubes through {grid.gt} tubelets in time; use {nearest}"
            )
        return kept // grid.gt

    def num_kept(self, grid: TubeletGrid) -> int:
        return grid.gt * self._num_places(grid)

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """One draw per clip, from its generator; raises ValueError without generators."""
        scores = random_scores(grid.gh * grid.gw, len(clips), generators)
        places = keep_first(scores.argsort(dim=1, descending=True), self._num_places(grid))
        keep_mask = to_device(places.repeat(1, grid.gt), clips.device)
        return TokenSelection(
            keep_mask, num_kept=self.num_kept(grid), num_kept_per_frame=self._num_places(grid)
        )
