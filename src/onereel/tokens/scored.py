"""Score x budget: the selector that the published ones, and chance, are settings of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.tokens.budgets import Budget, ClipCount, rank
from onereel.tokens.groups import group_sizes
from onereel.tokens.guards import check_floor, with_floor
from onereel.tokens.runs import run_lengths
from onereel.tokens.scores import RandomScore, Score
from onereel.types import TokenSelection, TubeletGrid


@dataclass(frozen=True)
class ScoredSelector:
    """Scores every tubelet and keeps those within the budget.

    Attributes:
        min_per_tubelet: tokens that every tubelet in time keeps at least, for budgets that are exact per clip.
    """

    score: Score
    budget: Budget
    min_per_tubelet: int = 0

    @property
    def needs_embeddings(self) -> bool:
        return self.score.needs_embeddings

    def num_kept(self, grid: TubeletGrid) -> int | None:
        """As of `Selector`; raises ConfigError where groups or budget don't fit the grid, or the floor the budget."""
        group_sizes(grid.gt, self.score.groups)  # refuses more groups than tubelets
        kept = self.budget.num_kept(grid)
        if self.min_per_tubelet:
            check_floor(self.min_per_tubelet, kept, grid)
        return kept

    def scores(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """float32 `(B, N)`, higher is kept first; arguments as of `select`."""
        scores = self.score(clips, embeddings, grid, generators)
        return with_floor(scores, grid, self.min_per_tubelet) if self.min_per_tubelet else scores

    def rank(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """int64 `(B, N)`, best first: `keep_first` of it is the choice of `select` for any count per clip."""
        return rank(self.scores(clips, embeddings, grid, generators), grid, self.budget.groups)

    def at_budget(self, count: int) -> ScoredSelector:
        """The same with `count` tokens of each clip. Raises ConfigError where the budget is no count per clip."""
        if not isinstance(self.budget, ClipCount):
            raise ConfigError(
                "objective.budgets are exact counts of each clip's best tokens, which this tokens.budget doesn't rank; "
                "use tokens.budget clip or group (with run-length: clip)"
            )
        return replace(self, budget=replace(self.budget, token_budget=count))

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """The kept tubelets, and how many each stands for: itself and those dropped after it at its place."""
        scores = self.scores(clips, embeddings, grid, generators)
        keep_mask = self.budget.keep(scores, grid)
        runs, num_kept = run_lengths(keep_mask, grid), self.num_kept(grid)
        return TokenSelection(keep_mask, runs, num_kept, self._num_kept_per_frame(num_kept, grid))

    def _num_kept_per_frame(self, num_kept: int | None, grid: TubeletGrid) -> int | None:
        """Known where each tubelet in time is a group of its own, and all get the same."""
        groups = len(group_sizes(grid.gt, self.budget.groups))
        if num_kept is None or self.min_per_tubelet or groups < grid.gt or num_kept % grid.gt:
            return None
        return num_kept // grid.gt


def random_tokens(keep_ratio: float = 0.5) -> ScoredSelector:
    """The control: floor(keep_ratio * N) tubelets of each clip, at least 1, uniformly at random."""
    return ScoredSelector(RandomScore(), ClipCount(keep_ratio))
