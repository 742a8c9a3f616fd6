"""Everything that changes while a run goes on, and so belongs in a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onereel.errors import ConfigError
from onereel.training.checkpoint import CheckpointError, save_checkpoint
from onereel.training.distributed import is_main, run_on_main
from onereel.training.ema import Ema
from onereel.training.meters import Meter
from onereel.training.plan import StepPlan

logger = logging.getLogger(__name__)

GOES_ON_WITH = {
    "global_batch_size": "Resume it on as many devices as it began on, or set train.global_batch_size to {} in its "
    "config.json, from which the micro-steps of any number of devices follow",
    "steps_per_epoch": "Its training list has other entries now, or others of them are held out: give it back the list "
    "that it began with",
}
"""What a run keeps, and what to do where it would not."""


@dataclass
class TrainState:
    """The run after `step` optimiser steps."""

    objective: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    meter: Meter
    plan: StepPlan
    step: int = 0

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.plan.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors (not copies), as `checkpoint.py` lists them."""
        return {
            "model": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "step": self.step,
            "epoch": self.step // self.plan.steps_per_epoch,
            "position": self.step % self.plan.steps_per_epoch,
            "steps_per_epoch": self.plan.steps_per_epoch,
            "global_batch_size": self.plan.global_batch_size,
            "meter": dict(self.meter.sums),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            ConfigError: steps now take another number of clips, or epochs another number of steps, so the run
                could not go on as it began.
        """
        for name, remedy in GOES_ON_WITH.items():
            now, then = getattr(self.plan, name), state[name]
            if now != then:
                raise ConfigError(
                    f"the run cannot be resumed: its {name} was {then} and would be {now}. {remedy.format(then)}"
                )
        self.objective.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step = state["step"]
        self.meter.sums = dict(state["meter"])


@dataclass(frozen=True)
class Saver:
    """Writes the checkpoints of a run: the state, and `facts` that never change (config, class names, versions)."""

    run: Path
    keep: int
    facts: dict[str, Any]

    def save(self, state: TrainState, must: bool) -> None:
        """Write one, on the main process; where it need not succeed, a failure is a warning and training goes on.

        Raises:
            CheckpointError: on every process, if it must succeed and the disk is full or not writable.
        """

        def write() -> None:
            save_checkpoint(self.run, state.state_dict() | self.facts, self.keep)

        with state.meter.paused():
            if must:
                run_on_main(
                    write
                )  # all wait: under torchrun the first process to leave ends the others
            elif is_main():
                try:
                    write()
                except CheckpointError as error:
                    logger.warning("TRAINING GOES ON WITHOUT A NEW CHECKPOINT: %s", error)
