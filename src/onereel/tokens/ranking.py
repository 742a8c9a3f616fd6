"""Selectors that rank: whatever the count, they keep the first of one order, so smaller choices lie within larger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.types import TubeletGrid

if TYPE_CHECKING:
    from onereel.tokens.selector import Selector


@runtime_checkable
class Ranker(Protocol):
    """A `Selector` by rank."""

    @property
    def needs_embeddings(self) -> bool:
        """As of `Selector`."""
        ...

    def at_budget(self, count: int) -> Selector:
        """The same with `count` tokens of each clip. Raises ConfigError where its budget is no count per clip."""
        ...

    def rank(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """int64 `(B, N)`, best first; arguments as of `Selector.select`."""
        ...


def ranker(selector: Selector) -> Ranker:
    """`selector`, which must be a `Ranker`. Raises ConfigError."""
    if not isinstance(selector, Ranker):
        raise ConfigError(
            "objective.budgets are the first tokens of one ranking, and this tokens.kind doesn't rank; use "
            "group-dynamic, redundancy, random, or run-length with tokens.budget clip"
        )
    return selector


def at_budget(selector: Selector, budget: int, grid: TubeletGrid) -> Selector:
    """`selector` with `budget` tokens of each clip of `grid`, or all where it has fewer; 0: as it is."""
    return ranker(selector).at_budget(min(budget, grid.num_tokens)) if budget else selector
