"""Masked recipes: the published figures at the published batches."""

from __future__ import annotations

import pytest

from onereel.recipes import load_recipe
from onereel.training import on_devices
from onereel.training.plan import scaled_lr

# recipe: clips per step as published, and then the rate, the last rate, and the probability of mirroring.
MASKED = {
    "videomae_k400_vitb": (2048, 1.2e-3, 8e-5, 0.0),
    "videomae_ssv2_vitb": (2048, 1.2e-3, 8e-5, 0.0),
    "videomae_v2_k400_vitb": (2048, 1.2e-3, 8e-5, 0.0),
    "avion_videomae_k400_vitb": (256, 1.5e-4, 1e-5, 0.5),
    "everest_ucf101_vitb": (192, 7.5e-4, 7.5e-6, 0.0),
    "everest_hmdb51_vitb": (192, 7.5e-4, 7.5e-6, 0.0),
    "everest_k400_vitb": (2048, 1.2e-3, 8e-5, 0.0),
    "everest_ssv2_vitb": (2048, 1.2e-3, 8e-5, 0.0),
    "everest_ucf101_vitb_finetune": (128, 5e-4, 5e-7, 0.5),
    "everest_hmdb51_vitb_finetune": (128, 5e-4, 5e-7, 0.5),
    "everest_k400_vitb_finetune": (1024, 2e-3, 2e-6, 0.5),
    "everest_ssv2_vitb_finetune": (1024, 1e-3, 2e-6, 0.0),
}


@pytest.mark.parametrize("name", MASKED)
def test_rates_and_mirroring_of_masked_runs_and_their_fine_tuning(name: str) -> None:
    clips, lr, min_lr, hflip_prob = MASKED[name]
    config = load_recipe(name)
    for num_devices in (1, 4, 8):
        train = on_devices(config.train, num_devices)
        assert train.batch_size_per_device * train.accum_steps * num_devices == clips
    assert scaled_lr(config.optim, clips) == pytest.approx(lr)
    assert config.optim.min_lr == pytest.approx(min_lr)
    assert config.augment.hflip_prob == hflip_prob
