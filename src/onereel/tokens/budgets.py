"""How many tubelets, and which of the best: a threshold, a quantile, or an exact count.

Every budget keeps 1 token or more of each clip. Ties go to the earlier token in order (t, h, w), on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.tokens.groups import group_sizes
from onereel.types import TubeletGrid


class Budget(Protocol):
    """Turns scores into a choice."""

    @property
    def groups(self) -> int:
        """Groups in time that are ranked apart, as in `group_sizes`."""
        ...

    def num_kept(self, grid: TubeletGrid) -> int | None:
        """As of `Selector`."""
        ...

    def keep(self, scores: Tensor, grid: TubeletGrid) -> Tensor:
        """bool `(B, N)`, True = kept, from `scores (B, N)`."""
        ...


@dataclass(frozen=True)
class Threshold:
    """Tokens that score strictly above `value`."""

    value: float
    groups = 1

    def num_kept(self, grid: TubeletGrid) -> None:
        return None

    def keep(self, scores: Tensor, grid: TubeletGrid) -> Tensor:
        return (scores > self.value) | _best(scores)


@dataclass(frozen=True)
class _Counted:
    """`token_budget` tokens of N, or floor(keep_ratio * N), at least 1, where that is 0."""

    keep_ratio: float = 1.0
    token_budget: int = 0

    def __post_init__(self) -> None:
        check_ratio(self.keep_ratio)
        if self.token_budget < 0:
            raise ConfigError(f"token_budget is {self.token_budget}; allowed: 0 or more")

    def count(self, grid: TubeletGrid) -> int:
        """K; raises ConfigError where the budget is larger than the clip."""
        if not self.token_budget:
            return count_tokens(self.keep_ratio, grid.num_tokens)
        if self.token_budget > grid.num_tokens:
            raise ConfigError(
                f"token_budget is {self.token_budget}, but a clip of {grid.gt}x{grid.gh}x{grid.gw} tubelets "
                f"has {grid.num_tokens}; use that or fewer, or longer or larger clips"
            )
        return self.token_budget


@dataclass(frozen=True)
class ClipCount(_Counted):
    """Exactly K tokens of each clip, the best (EVEREST)."""

    groups = 1

    def num_kept(self, grid: TubeletGrid) -> int:
        group_sizes(grid.gt, self.groups)  # refuses more groups than tubelets
        return self.count(grid)

    def keep(self, scores: Tensor, grid: TubeletGrid) -> Tensor:
        return keep_first(rank(scores, grid, self.groups), self.count(grid))


@dataclass(frozen=True)
class GroupCount(ClipCount):
    """Exactly K tokens of each clip, shared out among groups in time in proportion to their tubelets (Flux).

    Attributes:
        groups: as in `group_sizes`; 0: Flux's rule.
    """

    groups: int = 0


@dataclass(frozen=True)
class Quantile(_Counted):
    """Tokens of each clip that score above all but its K best: K of them, fewer where the cut goes through a tie.

    So a clip at rest doesn't fill its budget with tokens that say nothing.
    """

    groups = 1

    def num_kept(self, grid: TubeletGrid) -> int | None:
        return grid.num_tokens if self.count(grid) == grid.num_tokens else None

    def keep(self, scores: Tensor, grid: TubeletGrid) -> Tensor:
        kept = self.count(grid)
        if kept == grid.num_tokens:
            return torch.ones_like(scores, dtype=torch.bool)
        cut = scores.topk(kept + 1, dim=1).values[:, -1:]
        return (scores > cut) | _best(scores)


@dataclass(frozen=True)
class BatchCount(_Counted):
    """Exactly K tokens per clip on average over the batch, wherever in it the best are; at least 1 of each clip.

    What a clip keeps then depends on its company.
    """

    groups = 1

    def num_kept(self, grid: TubeletGrid) -> int | None:
        return grid.num_tokens if self.count(grid) == grid.num_tokens else None

    def keep(self, scores: Tensor, grid: TubeletGrid) -> Tensor:
        best = _best(scores)
        scores = scores.masked_fill(scores.isnan(), -math.inf).masked_fill(best, math.inf)
        total = self.count(grid) * len(scores)
        order = torch.sort(scores.flatten(), descending=True, stable=True).indices
        return keep_first(order[None], total).view_as(scores)


def check_ratio(keep_ratio: float) -> None:
    """Raise ConfigError for a share out of range."""
    if not 0 < keep_ratio <= 1:
        raise ConfigError(f"keep_ratio is {keep_ratio}; allowed: above 0, up to 1")


def count_tokens(keep_ratio: float, total: int) -> int:
    """floor(keep_ratio * total), at least 1; EVEREST's rounding: 940 and 470 of 1568 at .6 and .3."""
    # Decimal shares are not exact: 0.29 * 100 is 28.999999999999996 and means 29.
    return max(1, math.floor(round(keep_ratio * total, 6)))


def _best(scores: Tensor) -> Tensor:
    """bool `(B, N)`: the first of the highest scores of each clip. NaN counts as highest: one is chosen in any case."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter_(1, scores.argmax(dim=1, keepdim=True), True)


def rank(scores: Tensor, grid: TubeletGrid, groups: int = 1) -> Tensor:
    """Tokens of each clip, best first: int64 `(B, N)`; the choice for any budget K is the first K.

    With groups, each K is shared out among them in proportion to their sizes: equal groups take turns, so each gets
    K // groups, and the first K % groups of them one more.
    """
    sizes = [size * grid.gh * grid.gw for size in group_sizes(grid.gt, groups)]
    if len(sizes) == 1:
        return torch.sort(scores, dim=1, descending=True, stable=True).indices
    starts = [sum(sizes[:g]) for g in range(len(sizes))]
    ranked = [
        torch.sort(part, dim=1, descending=True, stable=True).indices + start
        for part, start in zip(scores.split(sizes, dim=1), starts)
    ]
    return torch.cat(ranked, dim=1)[:, _turns(tuple(sizes), scores.device)]


@lru_cache(maxsize=64)
def _turns(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 `(N,)`: where in the groups' rankings, put end to end, the next token of all comes from.

    The r-th of n tokens has its turn at (r + 1/2) / n; equal ones go by group.
    """
    turns = torch.cat([(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in sizes])
    return torch.argsort(turns, stable=True).to(device)


def keep_first(ranking: Tensor, count: int) -> Tensor:
    """bool `(B, N)`: the first `count` tokens of `ranking (B, N)`, the keep mask of that budget."""
    mask = torch.zeros(ranking.shape, dtype=torch.bool, device=ranking.device)
    return mask.scatter_(1, ranking[:, :count], True)
