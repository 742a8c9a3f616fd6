"""AVION's recipes: the published figures, and the same step on any number of devices."""

from __future__ import annotations

import pytest
import torch

from onereel import build
from onereel.recipes import RECIPES, load_recipe
from onereel.training import on_devices
from onereel.training.plan import scaled_lr

NAMES = [name for name in RECIPES if name.startswith("avion_") and "videomae" not in name]
GLOBAL = {
    "avion_ego4d_vitb": 2048,
    "avion_ego4d_vitl": 896,
    "avion_lavila_vitb": 2048,
    "avion_lavila_vitl": 896,
    "avion_ek100_mir_vitb": 512,
    "avion_ek100_mir_vitl": 192,
    "avion_ek100_cls_vitb": 512,
    "avion_ek100_cls_vitl": 192,
}


def test_every_recipe_is_here():
    assert set(NAMES) == set(GLOBAL)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_a_step_has_the_published_number_of_clips(name, num_devices):
    train = on_devices(load_recipe(name).train, num_devices)
    assert train.batch_size_per_device * train.accum_steps * num_devices == GLOBAL[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_encoder_takes_clips_weights(name):
    config = load_recipe(name)
    with torch.device("meta"):
        encoder = build.build_encoder(config)
    assert encoder.input_norm is not None
    assert encoder.positions == "space-time"
    assert (encoder.pool, encoder.tubelet_size) == ("cls", 1)
    tokens = {("b", 4): 784, ("b", 16): 3136, ("l", 4): 1024, ("l", 16): 4096}
    assert encoder.grid.num_tokens == tokens[name[-1], config.data.num_frames]


def test_runs_test_themselves_as_often_as_published():
    for name in NAMES:
        assert load_recipe(name).train.eval_every == (5 if "ek100" in name else 1), name


def test_rates_of_fine_tuning_follow_the_batch():
    for name in ("avion_ek100_cls_vitb", "avion_ek100_cls_vitl"):
        optim, clips = load_recipe(name).optim, GLOBAL[name]
        rates = (scaled_lr(optim, clips), optim.min_lr, optim.warmup_lr)
        assert rates == pytest.approx([rate * clips / 128 for rate in (3e-3, 1e-5, 1e-6)])
