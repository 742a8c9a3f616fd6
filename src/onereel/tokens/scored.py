"""Score x budget: the selector that the published ones, and chance, are settings of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onereel.tokens.budgets import Budget, ClipCount, rank
from onereel.tokens.runs import run_lengths
from onereel.tokens.scores import RandomScore, Score
from onereel.types import TokenSelection, TubeletGrid


@dataclass(frozen=True)
class ScoredSelector:
    """Scores every tubelet and keeps those within the budget."""

    score: Score
    budget: Budget

    @property
    def needs_embeddings(self) -> bool:
        return self.score.needs_embeddings

    def num_kept(self, grid: TubeletGrid) -> int | None:
        return self.budget.num_kept(grid)

    def scores(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """float32 `(B, N)`, higher is kept first; arguments as of `select`."""
        return self.score(clips, embeddings, grid, generators)

    def rank(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """int64 `(B, N)`, best first: `keep_first` of it is the choice of `select` for any count per clip."""
        return rank(self.scores(clips, embeddings, grid, generators), grid, self.budget.groups)

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
        return TokenSelection(keep_mask, run_lengths(keep_mask, grid))


def random_tokens(keep_ratio: float = 0.5) -> ScoredSelector:
    """The control: floor(keep_ratio * N) tubelets of each clip, at least 1, uniformly at random."""
    return ScoredSelector(RandomScore(), ClipCount(keep_ratio))
