"""The learning rate is a function of the step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.config import OptimConfig
from onereel.errors import ConfigError
from onereel.training import StepPlan, create_schedule
from onereel.training.plan import scaled_lr
from onereel.training.schedule import CosineSchedule


@given(warmup=st.integers(0, 50), rest=st.integers(2, 200), lr=st.floats(1e-4, 1.0))
def test_it_rises_to_the_rate_and_then_falls_to_the_minimum(warmup, rest, lr):
    schedule = CosineSchedule(lr, 1e-6, 1e-5, warmup, warmup + rest)
    rates = [schedule(step) for step in range(warmup + rest)]
    assert rates[0] == pytest.approx(1e-6 if warmup else lr)
    assert rates[warmup] == pytest.approx(lr)
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_half_way_the_cosine_is_in_the_middle():
    schedule = CosineSchedule(lr=1.0, warmup_lr=0.0, min_lr=0.2, warmup_steps=10, total_steps=111)
    assert schedule(5) == pytest.approx(0.5)
    assert schedule(60) == pytest.approx(0.6)
    assert schedule(35) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (1, 2), (3, 2)])
def test_a_run_shorter_than_its_warm_up_is_all_warm_up(steps, epochs):
    plan = StepPlan(steps, epochs, accum_steps=1, global_batch_size=256)
    schedule = create_schedule(OptimConfig(warmup_epochs=5), plan)
    assert schedule.warmup_steps == steps * epochs
    assert all(0 < schedule(step) <= 1e-3 for step in range(steps * epochs + 1))


def test_the_rate_scales_with_the_global_batch():
    assert scaled_lr(OptimConfig(lr=1e-3, lr_batch_size=256), 64) == pytest.approx(2.5e-4)
    assert scaled_lr(OptimConfig(lr=1e-3, lr_batch_size=0), 64) == 1e-3
    plan = StepPlan(10, 10, accum_steps=2, global_batch_size=64)
    schedule = create_schedule(OptimConfig(lr=1e-3, warmup_epochs=2), plan)
    assert schedule(20) == pytest.approx(2.5e-4)


@pytest.mark.parametrize("end", ["min_lr", "warmup_lr"])
def test_an_end_above_the_scaled_rate_is_an_error_that_names_all_three(end):
    plan = StepPlan(10, 10, accum_steps=1, global_batch_size=32)
    optim = OptimConfig(**({"lr": 1.6e-4, "min_lr": 1e-6} | {end: 8e-5}))
    with pytest.raises(ConfigError, match=rf"optim\.{end} is 8e-05.* 2e-05 at 32 clips"):
        create_schedule(optim, plan)


def test_a_constant_rate_is_allowed_and_without_a_warm_up_its_start_does_not_count():
    plan = StepPlan(10, 10, accum_steps=1, global_batch_size=256)
    optim = OptimConfig(lr=3e-7, min_lr=3e-7, warmup_lr=1e-6, warmup_epochs=0)
    assert {create_schedule(optim, plan)(step) for step in range(100)} == {3e-7}
