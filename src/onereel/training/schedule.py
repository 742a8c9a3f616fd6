"""The learning rate as a function of the step, so that resuming needs an integer and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onereel.config import OptimConfig
from onereel.errors import ConfigError
from onereel.training.plan import StepPlan, scaled_lr


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, then half a cosine: `schedule(step)` is the rate of optimiser step `step` (from 0).

    The first step has `warmup_lr`, step `warmup_steps` has `lr`, and the last, `total_steps - 1`, has `min_lr`.
    """

    lr: float
    warmup_lr: float
    min_lr: float
    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.warmup_lr + (self.lr - self.warmup_lr) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - 1 - self.warmup_steps)
        return (
            self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(1, progress))) / 2
        )


def create_schedule(optim: OptimConfig, plan: StepPlan) -> CosineSchedule:
    """The schedule of a run; a warm-up longer than the run is cut to it.

    Raises:
        ConfigError: the rate at either end is above the scaled one between them.
    """
    schedule = CosineSchedule(
        lr=scaled_lr(optim, plan.global_batch_size),
        warmup_lr=optim.warmup_lr,
        min_lr=optim.min_lr,
        warmup_steps=min(round(optim.warmup_epochs * plan.steps_per_epoch), plan.total_steps),
        total_steps=plan.total_steps,
    )
    for name in ("min_lr", *(["warmup_lr"] if schedule.warmup_steps else [])):
        end = getattr(schedule, name)
        if end > schedule.lr:
            raise ConfigError(
                f"optim.{name} is {end:g}, and the learning rate is {schedule.lr:g} at {plan.global_batch_size} clips "
                f"per step; allowed: up to that. Lower optim.{name}, or raise optim.lr or train.global_batch_size"
            )
    return schedule
