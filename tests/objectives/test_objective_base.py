"""What objectives share."""

from __future__ import annotations

from onereel.objectives import layer_of_vit, undecayed_of_vit


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
