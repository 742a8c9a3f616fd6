"""Group-dynamic tokens (Flux, arXiv 2503.14237, section 3.3): EVEREST's score, a share for each part of a clip."""

from __future__ import annotations

from onereel.tokens.budgets import Budget, GroupCount
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import EmbeddingScore

KEEP_RATIO = 0.5
"""Flux states counts (3072, 2048, 1024 tokens), no share; this is 2048 of its largest pre-training grid, 4096."""


def group_dynamic(
    budget: Budget | None = None,
    groups: int = 0,
    min_per_tubelet: int = 0,
    cap_cuts: bool = False,
) -> ScoredSelector:
    """The best tokens of each of `groups` parts of a clip (0: Flux's rule, `group_sizes`), scored within the part.

    `min_per_tubelet` and `cap_cuts` are the guards of `ScoredSelector` and `EmbeddingScore`.
    """
    score = EmbeddingScore(groups, cap_cuts)
    return ScoredSelector(score, budget or GroupCount(KEEP_RATIO, 0, groups), min_per_tubelet)
