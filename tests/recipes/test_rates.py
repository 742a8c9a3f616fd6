"""No recipe's learning rate rises after its warm-up, on any number of devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onereel.recipes import RECIPES, load_recipe
from onereel.training import create_schedule, on_devices, plan_steps


@pytest.mark.parametrize("name", RECIPES)
def test_the_rate_only_falls_after_the_warm_up(name: str) -> None:
    config = load_recipe(name)
    for num_devices in (1, 4, 8):
        train = on_devices(config.train, num_devices)
        plan = plan_steps(replace(config, train=train), 100 * train.accum_steps, num_devices)
        schedule = create_schedule(config.optim, plan)
        rates = [schedule(step) for step in range(plan.total_steps)]
        assert max(rates) <= schedule.lr
        falling = rates[schedule.warmup_steps :]
        assert falling == sorted(falling, reverse=True)
