"""ViViT's recipes: the published figures, and stages that fit one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onereel import build, loading
from onereel.models.factorised import FactorisedEncoder
from onereel.recipes import load_recipe
from onereel.recipes.stages import first_stage
from onereel.training import on_devices
from onereel.training.plan import scaled_lr

# recipe: rate, epochs, spatial and temporal blocks, pixels, frames, and source frames between two of them.
PUBLISHED = {
    "vivit_k400_vitb": (0.05, 30, 12, 4, 224, 32, 2),
    "vivit_k400_vitl": (0.1, 30, 24, 24, 224, 32, 2),
    "vivit_ek100_vitl": (0.5, 50, 24, 4, 224, 32, 1),
    "vivit_ssv2_vitl": (0.4, 35, 24, 4, 256, 32, 1),
}
STAGES = {"sfa_ssv2_vitb_32f": 16, "sfa_ssv2_vitb_64f": 32, "sfa_ssv2_vitb_128f": 64}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("num_devices", [1, 8])
def test_the_published_settings(name: str, num_devices: int) -> None:
    lr, epochs, spatial_depth, temporal_depth, size, num_frames, rate = PUBLISHED[name]
    config = load_recipe(name)
    train = on_devices(config.train, num_devices)
    clips = train.batch_size_per_device * train.accum_steps * num_devices
    assert (clips, train.epochs) == (64, epochs)
    assert scaled_lr(config.optim, clips) == lr
    assert (config.data.num_frames, config.data.sampling_rate) == (num_frames, rate)
    with torch.device("meta"):
        encoder = build.build_encoder(config)
    assert isinstance(encoder, FactorisedEncoder)
    assert (encoder.spatial.depth, encoder.temporal.depth) == (spatial_depth, temporal_depth)
    assert encoder.grid == (16, size // 16, size // 16)


def test_the_joint_model_sees_3136_tubelets() -> None:
    with torch.device("meta"):
        encoder = build.build_encoder(load_recipe("vivit_k400_vitb_joint"))
    assert encoder.grid.num_tokens == 3136
    assert encoder.temporal_depth == 0


@pytest.mark.parametrize("name", STAGES)
def test_the_second_stage_learns_behind_what_is_frozen(name: str) -> None:
    config = load_recipe(name)
    with torch.device("meta"):
        model = build.build_model(config, 174)
    encoder = model.encoder
    assert isinstance(encoder, FactorisedEncoder)
    assert encoder.grid.gt == STAGES[name]
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in learned} == {"temporal", "adapter", "fc"}
    first = first_stage(config)
    assert (first.data.num_frames, first.data.sampling) == (8, config.data.sampling)
    assert first.model.name == config.model.name


def test_stages_of_the_small_recipe_fit() -> None:
    config = load_recipe("actions_sfa")
    model = build.build_model(config, 5)
    loading.check_start(model, config, first_stage(config), tuple("abcde"))
    other = replace(config, model=replace(config.model, name="vit_mini_patch8_32"))
    loading.check_start(build.build_model(other, 5), other, first_stage(other), tuple("abcde"))
