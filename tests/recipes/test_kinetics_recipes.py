"""VideoMAE's fine-tuning: rates are published for 256 videos, which are 512 clips of two views each."""

from __future__ import annotations

import pytest

from onereel.recipes import load_recipe
from onereel.training import on_devices
from onereel.training.plan import scaled_lr

# recipe: videos of a step and the rate at 256 videos, as published (facts: rlt.md section 2, everest.md section 6.2).
PUBLISHED = {
    "k400_vitb": (6 * 64, 5e-4),
    "rlt_k400_vitb": (6 * 64, 5e-4),
    "ssv2_vitb": (6 * 64, 5e-4),
    "everest_k400_vitb_finetune": (8 * 64, 1e-3),
    "everest_ssv2_vitb_finetune": (8 * 64, 5e-4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rate_counts_videos_and_both_its_ends_scale_with_it(name: str) -> None:
    videos, lr = PUBLISHED[name]
    config = load_recipe(name)
    clips = videos * config.data.repeats
    assert config.data.repeats == 2
    for num_devices in (1, 4, 8):
        train = on_devices(config.train, num_devices)
        assert train.batch_size_per_device * train.accum_steps * num_devices == clips
    assert scaled_lr(config.optim, clips) == pytest.approx(lr * videos / 256)
    assert config.optim.min_lr == pytest.approx(1e-6 * videos / 256)
