"""Redundancy-robust tokens (EVEREST, arXiv 2211.10636): those whose embedding differs most from the one before."""

from __future__ import annotations

from onereel.tokens.budgets import Budget, ClipCount
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import EmbeddingScore

KEEP_RATIO = 0.6
"""Share kept in fine-tuning and test, 940 of 1568 (section 4); pre-training keeps 0.3, 470."""


def redundancy(
    budget: Budget | None = None, min_per_tubelet: int = 0, cap_cuts: bool = False
) -> ScoredSelector:
    """The best tokens of the whole clip by embedding difference, section 3.2; as published by default.

    `min_per_tubelet` and `cap_cuts` are the guards of `ScoredSelector` and `EmbeddingScore`.
    """
    score = EmbeddingScore(cap_cuts=cap_cuts)
    return ScoredSelector(score, budget or ClipCount(KEEP_RATIO), min_per_tubelet)
