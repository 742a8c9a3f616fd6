"""Which micro-batches belong to which step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.config import OptimConfig, RunConfig, TrainConfig
from onereel.errors import ConfigError
from onereel.training import StepPlan, on_devices, plan_steps


class Numbers:
    """A loader whose batches are (epoch, j)."""

    def __init__(self, num_batches):
        self.num_batches = num_batches

    def batches(self, epoch, start=0):
        return iter([(epoch, j) for j in range(start, self.num_batches)])


@given(
    num_batches=st.integers(1, 12),
    accum_steps=st.integers(1, 4),
    epochs=st.integers(1, 4),
    data=st.data(),
)
def test_from_any_step_on_the_batches_are_those_of_the_whole_run(
    num_batches, accum_steps, epochs, data
):
    plan = StepPlan(max(1, num_batches // accum_steps), epochs, accum_steps, 1)
    loader = Numbers(max(num_batches, accum_steps))
    whole = list(plan.batches(loader, 0))
    assert len(whole) == plan.total_steps * accum_steps
    assert whole == sorted(set(whole))
    step = data.draw(st.integers(0, plan.total_steps))
    assert list(plan.batches(loader, step)) == whole[step * accum_steps :]


def test_evaluations_are_due_at_the_end_and_every_so_many_epochs():
    plan = StepPlan(steps_per_epoch=3, epochs=5, accum_steps=1, global_batch_size=1)
    assert [s for s in range(16) if plan.evaluates_at(s, 0)] == [15]
    assert [s for s in range(16) if plan.evaluates_at(s, 2)] == [6, 12, 15]


def test_the_line_at_the_start_says_batch_and_rate():
    config = RunConfig(
        train=TrainConfig(batch_size_per_device=8, accum_steps=2, epochs=3),
        optim=OptimConfig(lr=1e-3),
    )
    plan = plan_steps(config, num_batches=9, world_size=4)
    assert plan.steps_per_epoch == 4
    assert plan.describe(config) == (
        "64 clips per step = 8 per device x 2 micro-steps x 4 devices; 3 epochs x 4 steps; "
        "learning rate 0.001 x 64/256 = 0.00025"
    )


@pytest.mark.parametrize("num_devices", [1, 4, 8])
def test_a_step_takes_as_many_clips_on_any_number_of_devices(num_devices):
    train = on_devices(TrainConfig(batch_size_per_device=256, global_batch_size=2048), num_devices)
    assert train.accum_steps * train.batch_size_per_device * num_devices == 2048
    assert on_devices(TrainConfig(accum_steps=3), num_devices).accum_steps == 3


def test_a_run_goes_on_with_the_clips_per_step_that_it_began_with_on_fewer_devices():
    begun = on_devices(TrainConfig(batch_size_per_device=8, accum_steps=2), 8)
    assert begun.global_batch_size == 128
    assert on_devices(begun, 4).accum_steps == 4


def test_a_step_that_cannot_have_that_many_clips_is_refused():
    for num_devices in (3, 16):
        with pytest.raises(ConfigError, match="multiple of"):
            on_devices(TrainConfig(batch_size_per_device=256, global_batch_size=2048), num_devices)
