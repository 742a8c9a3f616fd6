"""How many steps a run has, and which batches each of them takes: integers only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from onereel.config import OptimConfig, RunConfig, TrainConfig
from onereel.errors import ConfigError
from onereel.types import Batch


class Loader(Protocol):
    """What the loop asks of a loader: the micro-batches of this process, by epoch, from any position on."""

    @property
    def num_batches(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class StepPlan:
    """The steps of a run. Micro-batches that do not fill a step at the end of an epoch are not used: the next
    epoch has another order.

    Attributes:
        steps_per_epoch: optimiser steps per epoch.
        epochs: of the run.
        accum_steps: micro-batches of each process per step.
        global_batch_size: clips per step over all processes.
    """

    steps_per_epoch: int
    epochs: int
    accum_steps: int
    global_batch_size: int

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def evaluates_at(self, step: int, every_epochs: int) -> bool:
        """Whether an evaluation is due after `step` steps: at the end, and every so many epochs (0: never)."""
        if step == self.total_steps:
            return True
        epoch, position = divmod(step, self.steps_per_epoch)
        return every_epochs > 0 and step > 0 and position == 0 and epoch % every_epochs == 0

    def batches(self, loader: Loader, step: int) -> Iterator[Batch]:
        """All micro-batches of the run from those of step number `step` (from 0) on."""
        first, position = divmod(step, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            start, stop = position * self.accum_steps, self.steps_per_epoch * self.accum_steps
            yield from islice(loader.batches(epoch, start=start), stop - start)
            position = 0

    def describe(self, config: RunConfig) -> str:
        """One line: clips per step, steps, and the learning rate that follows."""
        train, optim = config.train, config.optim
        per_step = train.batch_size_per_device * train.accum_steps
        cap = train.max_tokens_per_device
        at_once = f", {cap} tokens at once at most" if cap else ""
        lr = f"{scaled_lr(optim, self.global_batch_size):.3g}"
        if optim.lr_batch_size:
            lr = f"{optim.lr:g} x {self.global_batch_size}/{optim.lr_batch_size} = {lr}"
        return (
            f"{self.global_batch_size} clips per step = {train.batch_size_per_device} per device x "
            f"{train.accum_steps} micro-steps x {self.global_batch_size // per_step} devices{at_once}; "
            f"{self.epochs} epochs x {self.steps_per_epoch} steps; learning rate {lr}"
        )


def on_devices(train: TrainConfig, num_devices: int) -> TrainConfig:
    """The settings for this number of devices: `accum_steps` such that a step takes `global_batch_size` clips, or
    where that is 0 the `global_batch_size` that follows from `accum_steps`.

    Raises:
        ConfigError: no whole number of micro-steps does.
    """
    at_once = train.batch_size_per_device * num_devices
    if train.global_batch_size == 0:
        return replace(train, global_batch_size=at_once * train.accum_steps)
    accum_steps, rest = divmod(train.global_batch_size, at_once)
    if rest or not accum_steps:
        raise ConfigError(
            f"train.global_batch_size is {train.global_batch_size}, and {num_devices} devices take {at_once} clips at "
            f"once; allowed: a multiple of {at_once}. Use another number of devices, or change it or "
            "train.batch_size_per_device; a run that goes on cannot change them"
        )
    return replace(train, accum_steps=accum_steps)


def plan_steps(config: RunConfig, num_batches: int, world_size: int = 1) -> StepPlan:
    """The plan of a run whose loader gives each process `num_batches` micro-batches per epoch.

    Raises:
        ConfigError: an epoch has fewer clips than one step takes.
    """
    train = config.train
    global_batch_size = train.batch_size_per_device * train.accum_steps * world_size
    steps_per_epoch = num_batches // train.accum_steps
    if steps_per_epoch == 0:
        raise ConfigError(
            f"an epoch has {num_batches} batches of {train.batch_size_per_device} clips for each of "
            f"{world_size} devices, and one step takes train.accum_steps={train.accum_steps} of them; lower "
            "train.batch_size_per_device or train.accum_steps, or add videos"
        )
    return StepPlan(steps_per_epoch, train.epochs, train.accum_steps, global_batch_size)


def scaled_lr(optim: OptimConfig, global_batch_size: int) -> float:
    """`optim.lr` scaled linearly from `lr_batch_size` to the global batch (Goyal et al., arXiv 1706.02677)."""
    if optim.lr_batch_size == 0:
        return optim.lr
    return optim.lr * global_batch_size / optim.lr_batch_size
