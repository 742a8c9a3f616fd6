"""Flux (arXiv 2503.14237): clips of flexible shape, a token budget, and one model for all budgets."""

from __future__ import annotations

from dataclasses import replace

from onereel.config import ObjectiveConfig, RunConfig, TokensConfig
from onereel.recipes.actions import actions


def actions_flux() -> RunConfig:
    """`actions` for every token budget: 128, 64 and 32 of each clip's 128 to 256 tokens, in one step.

    8 to 24 frames of 24 to 48 pixels are drawn for each batch, as Flux draws 4 to 24 of 168 to 252; the window is
    once to twice what the test clips have, likewise. Positions are a table that is interpolated to each grid, so that a
    place of the picture keeps its position at every size. Tested with a quarter of the tokens.
    Command: onereel train actions_flux --data.train train.csv --data.val val.csv --data.store STORE
    """
    base = actions()
    return replace(
        base,
        data=replace(
            base.data,
            num_frames_choices=(8, 12, 16, 20, 24),
            size_choices=(24, 32, 40, 48),
            token_window=(128, 256),
        ),
        tokens=TokensConfig(kind="group-dynamic", token_budget=32),
        model=replace(base.model, positions="global"),
        objective=ObjectiveConfig(label_smoothing=0.1, budgets=(128, 64, 32)),
    )


def actions_flux_two() -> RunConfig:
    """The same with two of the three budgets drawn for each batch: two thirds of the cost."""
    base = actions_flux()
    return replace(base, objective=replace(base.objective, budgets_per_step=2))
