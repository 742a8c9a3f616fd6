"""What objectives share."""

from __future__ import annotations

import torch

from onereel.objectives import clip_generators, layer_of_vit, undecayed_of_vit
from onereel.types import SampleKey


def draw(generator):
    return torch.rand(4, generator=generator).tolist()


def test_a_clips_generator_depends_on_the_clip_alone():
    keys = [SampleKey(0, 1), SampleKey(0, 2), SampleKey(1, 1), SampleKey(0, 1, view=1)]
    together = [draw(g) for g in clip_generators(5, keys)]
    alone = [draw(clip_generators(5, [key])[0]) for key in keys]
    assert together == alone
    assert len({tuple(values) for values in together}) == len(keys)
    assert together != [draw(g) for g in clip_generators(6, keys)]
    assert together != [draw(g) for g in clip_generators(5, keys, "other")]


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
