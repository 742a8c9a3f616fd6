"""Redundancy-robust tokens (EVEREST, arXiv 2211.10636): those whose embedding differs most from the one before."""

from __future__ import annotations

from onereel.tokens.budgets import Budget, ClipCount
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import EmbeddingScore

KEEP_RATIO = 0.6
"""Share kept in fine-tuning and test, 940 of 1568 (section 4); pre-training keeps 0.3, 470."""


def redundancy(budget: Budget | None = None) -> ScoredSelector:
    """The best tokens of the whole clip by embedding difference, section 3.2; as published by default."""
    return ScoredSelector(EmbeddingScore(), budget or ClipCount(KEEP_RATIO))
