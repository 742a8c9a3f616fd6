"""A recipe for fine-tuning that is given no weights says so: it would train a large model from scratch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onereel.models.registry import parse_name
from onereel.recipes import RECIPES, lacks_weights, load_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_supervised_recipe_of_a_published_size_needs_weights(name: str) -> None:
    config = load_recipe(name)
    has_own = config.model.pretrained or config.model.backbone or config.after
    is_supervised = config.objective.kind not in ("masked", "distillation")
    is_large = parse_name(config.model.name).size in ("small", "base", "large")
    assert bool(lacks_weights(config)) == bool(is_supervised and is_large and not has_own)
    started = replace(config, model=replace(config.model, pretrained="weights"))
    assert not lacks_weights(started)
