"""What objectives share."""

from __future__ import annotations

from types import SimpleNamespace

from onereel.objectives import layer_of_vit, undecayed_of_vit
from onereel.objectives.base import one_budget
from onereel.types import Batch, SampleKey


def test_layers_count_from_the_patches_to_the_head():
    layers = {
        "model.encoder.patch_embed.weight": 0,
        "model.encoder.pos_embed": 0,
        "model.encoder.cls_token": 0,
        "model.encoder.length_embed": 0,
        "model.encoder.blocks.0.norm1.weight": 1,
        "model.encoder.blocks.11.fc2.bias": 12,
        "model.encoder.norm.weight": 13,
        "model.head.fc.weight": 13,
    }
    assert {name: layer_of_vit(name, depth=12) for name in layers} == layers
    tables = {"model.encoder.pos_embed", "model.encoder.cls_token", "model.encoder.length_embed"}
    assert undecayed_of_vit(layers) == tables


def test_one_budget_is_drawn_in_training_and_none_in_evaluation() -> None:
    """The same for both passes over a micro-batch, and on every rank."""

    def drawn(number: int, training: bool = True, index: int = 0) -> int:
        objective = SimpleNamespace(training=training, seed=5, budgets=(9, 6, 3))
        return one_budget(objective, Batch(None, [SampleKey(1, index)], num_clips=1, number=number))

    draws = [drawn(number) for number in range(60)]
    assert set(draws) == {9, 6, 3}
    assert [drawn(number, index=7) for number in range(60)] == draws
    assert drawn(0, training=False) == 0
    none = SimpleNamespace(training=True, seed=5, budgets=())
    assert one_budget(none, Batch(None, [SampleKey(1, 0)], num_clips=1)) == 0
