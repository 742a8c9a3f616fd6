"""The learning rate as a function of the step, so that resuming needs an integer and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onereel.config import OptimConfig


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


def scaled_lr(optim: OptimConfig, global_batch_size: int) -> float:
    """`optim.lr` scaled linearly from `lr_batch_size` to the global batch (Goyal et al., arXiv 1706.02677)."""
    if optim.lr_batch_size == 0:
        return optim.lr
    return optim.lr * global_batch_size / optim.lr_batch_size


def create_schedule(
    optim: OptimConfig, steps_per_epoch: int, epochs: int, global_batch_size: int
) -> CosineSchedule:
    """The schedule of a run; a warm-up longer than the run is cut to it."""
    total_steps = steps_per_epoch * epochs
    return CosineSchedule(
        lr=scaled_lr(optim, global_batch_size),
        warmup_lr=optim.warmup_lr,
        min_lr=optim.min_lr,
        warmup_steps=min(round(optim.warmup_epochs * steps_per_epoch), total_steps),
        total_steps=total_steps,
    )
