"""The training loop. It sees an objective, a loader, an optimiser and a clock, and nothing of what is learned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onereel.config import RunConfig, TrainConfig, to_dict
from onereel.training.distributed import is_main, world_size
from onereel.training.ema import Ema
from onereel.training.interrupt import RunInterrupted, stop_on_signals
from onereel.training.logbook import Logbook
from onereel.training.meters import Meter
from onereel.training.peak import measure_peak_flops
from onereel.training.plan import Loader, plan_steps
from onereel.training.run_folder import versions
from onereel.training.state import Saver, TrainState
from onereel.training.step import Augment, StepResult, TrainStep, compute_dtype
from onereel.types import Batch

Evaluate = Callable[[int, float], Mapping[str, float]]
"""`evaluate(step, epoch)` gives named numbers; called on every process, with the module in evaluation mode."""


@dataclass(frozen=True)
class FitResult:
    """How a run ended: steps done, and the last evaluation's numbers."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def fit(
    objective: nn.Module,
    loader: Loader,
    augment: Augment,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    *,
    config: RunConfig,
    run: Path,
    device: torch.device,
    class_names: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    resume: dict[str, Any] | None = None,
) -> FitResult:
    """Train `objective` (an `Objective`, on `device`) for `config.train.epochs`.

    Writes `metrics.jsonl`, `tensorboard/` and `checkpoints/` into `run`. On CPU the losses are the same, bit for
    bit, whether the run was interrupted and continued with `resume` (what `resume_state(run)` gave) or not.

    Args:
        augment: batch on the CPU (uint8) to batch on the device (normalised floats).
        schedule: learning rate of step i, from 0.
        evaluate: called every `train.eval_every` epochs and at the end, with the averaged weights if there are.
        resume: emptied once it is read, so that nobody holds it in memory.

    Raises:
        NonFiniteError: NaN or infinite loss or gradient; the checkpoints are from before it.
        RunInterrupted: SIGINT or SIGTERM came; the run is saved.
        CheckpointError: the last checkpoint could not be written (earlier ones only warn).
        ConfigError: too few clips for a step, too little memory, or `resume` is from a run of another shape.
    """
    plan = plan_steps(config, loader.num_batches, world_size())
    dtype = compute_dtype(config.train.precision, device)
    meter = Meter(device, measure_peak_flops(device, dtype))
    ema = Ema(objective, config.optim.ema_decay) if config.optim.ema_decay > 0 else None
    state = TrainState(objective, optimizer, ema, meter, plan)
    if resume is not None:
        state.load_state_dict(resume)
        resume.clear()  # host memory as large as the model and its optimiser, until the run ends
    take_step = TrainStep(objective, optimizer, schedule, augment, config, device)
    facts = {"config": to_dict(config), "class_names": list(class_names), "versions": versions()}
    saver = Saver(run, config.train.keep_checkpoints, facts)
    with Logbook(run, plan.total_steps, state.step, enabled=is_main()) as log:
        log.note(plan.describe(config) + (f"; from step {state.step}" if state.step else ""))
        batches = plan.batches(loader, state.step)
        metrics = _run_steps(state, take_step, batches, config.train, log, saver, evaluate)
    return FitResult(state.step, metrics)


def _run_steps(
    state: TrainState,
    take_step: TrainStep,
    batches: Iterator[Batch],
    train: TrainConfig,
    log: Logbook,
    saver: Saver,
    evaluate: Evaluate | None,
) -> Mapping[str, float]:
    """All steps that are left, with their log lines, checkpoints and evaluations; the last evaluation's numbers."""
    plan, meter = state.plan, state.meter
    unread: deque[StepResult] = deque()
    metrics: Mapping[str, float] = {}
    state.objective.train()
    meter.start()
    with stop_on_signals() as stop:
        while True:
            # Before the step, so that a resumed run makes the evaluation that was due when it died.
            if evaluate is not None and plan.evaluates_at(state.step, train.eval_every):
                metrics = _evaluate(evaluate, state)
                log.write("eval", state.step, state.epoch, metrics)
            if state.step == plan.total_steps:
                return metrics
            unread.append(take_step(state, batches, stop))
            if state.ema is not None:
                state.ema.update()
            state.step += 1
            log.advance(state.step)
            is_last = state.step == plan.total_steps
            logs = is_last or state.step % train.log_every == 0
            saves = is_last or state.step % train.save_every == 0
            _read(unread, meter, lag=0 if logs or saves or meter.device.type == "cpu" else 1)
            if logs:
                numbers = (
                    meter.means()
                    | {"lr": take_step.lr}
                    | meter.rates(plan.total_steps - state.step)
                )
                log.write("train", state.step, state.epoch, numbers)
            if saves or meter.stop_requested:
                saver.save(state, must=is_last or meter.stop_requested)
            if meter.stop_requested:
                raise RunInterrupted(saver.run, state.step)


def _read(unread: deque[StepResult], meter: Meter, lag: int) -> None:
    """Account for results, all but the newest `lag`: on CUDA one is left, so that the host runs ahead of the device.

    A loss that is not finite is then found one step late, but always before anything is saved.
    """
    while len(unread) > lag:
        meter.add(unread.popleft().read())
        if meter.stop_requested:
            lag = 0


def _evaluate(evaluate: Evaluate, state: TrainState) -> Mapping[str, float]:
    with state.meter.paused(), state.ema.applied() if state.ema else nullcontext():
        state.objective.eval()
        metrics = evaluate(state.step, state.epoch)
        state.objective.train()
    return metrics
