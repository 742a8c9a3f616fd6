"""One optimiser step: micro-batches in, updated weights and a few sums out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from onereel.config import RunConfig, TrainConfig
from onereel.errors import ConfigError, OnereelError
from onereel.seeding import stable_seed
from onereel.training.distributed import (
    all_reduce_sum,
    data_parallel,
    gather_objects,
    rank,
    world_size,
)
from onereel.training.interrupt import StopRequest
from onereel.training.optim import set_lr
from onereel.training.state import TrainState
from onereel.training.token_cap import cut
from onereel.types import Batch, SampleKey

Augment = Callable[[Batch, torch.device], Batch]

MAX_KEYS_NAMED = 32


@runtime_checkable
class Coupled(Protocol):
    """An objective whose loss compares all clips of a step, on all processes.

    `survey(batch)` gives what the loss needs of a micro-batch, here without gradients; `couple(surveys)` takes those of
    the whole step and gives one value for each micro-batch, which is then passed as `forward(batch, value)`.
    """

    def survey(self, batch: Batch) -> Any: ...

    def couple(self, surveys: Sequence[Any]) -> Sequence[Any]: ...


def sees_twice(objective: nn.Module, train: TrainConfig) -> TypeGuard[Coupled]:
    """Whether steps run the forward of each micro-batch twice: a `Coupled` objective, and steps of several."""
    in_parts = train.accum_steps > 1 or train.max_tokens_per_device > 0
    return in_parts and isinstance(objective, Coupled)


class NonFiniteError(OnereelError, ArithmeticError):
    """The loss or the gradient of a step is NaN or infinite."""


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 or float32 for `train.precision`; auto is bfloat16 on CUDA."""
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if half else torch.float32


@dataclass
class StepResult:
    """What a step did. Its numbers are on their way to the host; `read` waits for them.

    Attributes:
        step: steps done, this one included.
        epoch: the epoch its samples belong to.
        names: of `values`.
        values: float64, on the host: sums over the clips of all processes, and the gradient's norm.
        losses: of each micro-step of this process.
        keys: of the samples of each micro-step of this process.
        arrived: fires when `values` is there; None on CPU, where it is there at once.
    """

    step: int
    epoch: int
    names: list[str]
    values: Tensor
    losses: list[Tensor]
    keys: list[list[SampleKey]]
    arrived: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        """The values by name.

        Raises:
            NonFiniteError: one of them is NaN or infinite. Values are the same on all processes, so all raise.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        values = dict(zip(self.names, self.values.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteError(
                f"loss or gradient is not finite at step {self.step}, epoch {self.epoch}: loss sum "
                f"{values['loss']}, gradient norm {values['grad_norm']}, from {self._suspects()}. The checkpoints "
                "are from before it. Look at these samples; if they are sound, start again with a lower optim.lr or "
                "with optim.clip_grad_norm."
            )
        return values

    def _suspects(self) -> str:
        """Keys of the micro-batches whose loss is not finite, of all processes; all keys where there is none."""
        bad = [i for i, loss in enumerate(self.losses) if not math.isfinite(loss.item())]
        mine = [key for i in bad or range(len(self.keys)) for key in self.keys[i]]
        everyones = gather_objects((bool(bad), mine))
        anyone_bad = any(is_bad for is_bad, _ in everyones)
        keys = [key for is_bad, keys in everyones if is_bad or not anyone_bad for key in keys]
        more = f" and {len(keys) - MAX_KEYS_NAMED} more" if len(keys) > MAX_KEYS_NAMED else ""
        return ", ".join(map(str, keys[:MAX_KEYS_NAMED])) + more


class TrainStep:
    """Runs optimiser steps of `accum_steps` micro-steps each.

    The gradient is that of the mean loss over all clips of the step: every micro-step's mean is weighted by its
    number of clips, and the sum divided by the number on all processes, so that samples that could not be read
    bias nothing and accumulation, processes and one big batch agree; and so may a micro-batch be cut where it holds
    more tokens than a device takes at once, into more parts on one process than on another.

    An objective whose loss compares the clips of a whole step (see `Coupled`) sees its micro-batches twice: first
    without gradients, for what the loss needs of each, then as any other, with what the loss has to say to it.

    Dropout, drop path and selectors draw from one generator per clip (`seeding.clip_generators`). Whatever else draws
    inside the model has PyTorch's own, seeded with the seed, the step and the number of the micro-batch within it,
    counted over all processes as the loader counts; no random state is kept.
    """

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        augment: Augment,
        config: RunConfig,
        device: torch.device,
    ) -> None:
        self.model = data_parallel(objective, device)
        self.coupled: Coupled | None = objective if sees_twice(objective, config.train) else None
        self.keep_gradients_here: Callable[[], AbstractContextManager] = nullcontext
        if isinstance(self.model, DistributedDataParallel):
            self.keep_gradients_here = self.model.no_sync
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr = 0.0
        self.augment = augment
        self.device = device
        self.dtype = compute_dtype(config.train.precision, device)
        self.batch_size = config.train.batch_size_per_device
        self.accum_steps = config.train.accum_steps
        self.max_tokens = config.train.max_tokens_per_device
        self.max_norm = config.optim.clip_grad_norm
        self.seed = config.seed
        self.parameters = [p for p in objective.parameters() if p.requires_grad]

    def __call__(
        self, state: TrainState, batches: Iterator[Batch], stop: StopRequest
    ) -> StepResult:
        """Take the step after `state.step` with the next micro-batches; `state.step` is left alone.

        Raises ConfigError where the device's memory does not hold it.
        """
        try:
            return self._take(state, batches, stop)
        except torch.OutOfMemoryError as error:
            first_line = str(error).partition("\n")[0]
            raise ConfigError(
                f"the device has too little memory for step {state.step + 1}, which takes {self.batch_size} clips at "
                "once. Lower train.batch_size_per_device: with train.global_batch_size "
                f"{state.plan.global_batch_size} (or train.accum_steps raised as much) the result stays the same. Or "
                f"set model.checkpointing, which computes each block again in the backward pass ({first_line})"
            ) from error

    def _take(self, state: TrainState, batches: Iterator[Batch], stop: StopRequest) -> StepResult:
        self.lr = self.schedule(state.step)
        set_lr(self.optimizer, self.lr)
        self.optimizer.zero_grad(set_to_none=True)
        totals, losses, keys = torch.zeros((), dtype=torch.float64, device=self.device), [], []
        for micro, (is_last, batch, *more) in enumerate(self._micro_batches(state, batches)):
            self._seed_micro_step(state.step, micro)
            outputs = self._forward_backward(batch, *more, is_last=is_last)
            state.meter.count(batch.num_clips, outputs.pop("stats"))
            totals = totals + self._sums(batch, outputs)
            losses.append(outputs["loss"].detach())
            keys.append(batch.keys)
        totals = torch.cat([totals, self._on_device(float(stop.requested))])
        norm = self._update(all_reduce_sum(totals)[0])
        values = torch.cat([totals, norm.double().reshape(1)]).to("cpu", non_blocking=True)
        names = ["num_clips", "num_failed", *outputs, "stop", "grad_norm"]
        step, epoch = state.step + 1, int(state.epoch)
        return StepResult(step, epoch, names, values, losses, keys, self._mark())

    def _micro_batches(self, state: TrainState, batches: Iterator[Batch]) -> Iterator[tuple]:
        """Whether it is the last, and the objective's arguments: the micro-batch, and what a coupled one adds."""
        if self.coupled is None:
            return self._parts(state, batches)
        kept, surveys = list(self._parts(state, batches)), []
        for micro, (_, batch) in enumerate(kept):
            self._seed_micro_step(state.step, micro)
            with torch.no_grad(), self._autocast():
                surveys.append(self.coupled.survey(self.augment(batch, self.device)))
        coupled = self.coupled.couple(surveys)
        return ((*part, value) for part, value in zip(kept, coupled, strict=True))

    def _parts(self, state: TrainState, batches: Iterator[Batch]) -> Iterator[tuple[bool, Batch]]:
        """The micro-batches of the loader, each cut under the token cap; with the last one said to be."""
        for micro in range(self.accum_steps):
            *parts, last = cut(state.meter.next_batch(batches), self.max_tokens)
            yield from ((False, part) for part in parts)
            yield micro == self.accum_steps - 1, last

    def _seed_micro_step(self, step: int, micro: int) -> None:
        number = micro * world_size() + rank()
        torch.manual_seed(stable_seed(self.seed, "step", step, number))

    def _forward_backward(self, batch: Batch, *more: Any, is_last: bool) -> dict[str, Any]:
        """Outputs of the objective; gradients of the loss summed over clips are added to the parameters'."""
        exchange = nullcontext if is_last else self.keep_gradients_here
        batch = self.augment(batch, self.device)
        with exchange():
            with self._autocast():
                outputs = self.model(batch, *more)
            (outputs["loss"] * batch.num_clips).backward()
        return outputs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _sums(self, batch: Batch, outputs: dict[str, Any]) -> Tensor:
        """Clips, failed samples, and each output summed over the clips: float64, in the order of `names`."""
        counts = self._on_device(batch.num_clips, batch.num_failed)
        means = torch.stack([value.detach() for value in outputs.values()]).double()
        return torch.cat([counts, means * batch.num_clips])

    def _update(self, num_clips: Tensor) -> Tensor:
        """Turn the summed gradients into those of the mean, clip them and step; their norm before clipping."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # DDP has divided by the number of processes.
        scale = (world_size() / num_clips.clamp(min=1)).to(gradients[0].dtype)
        torch._foreach_mul_(gradients, scale)
        norm = get_total_norm(gradients)
        if self.max_norm > 0:
            clip_grads_with_norm_(self.parameters, self.max_norm, norm)
        self.optimizer.step()
        return norm

    def _on_device(self, *values: float) -> Tensor:
        """Host numbers as a float64 vector, by fills: a copy from the host would wait for the device."""
        fills = [
            torch.full((1,), value, dtype=torch.float64, device=self.device) for value in values
        ]
        return torch.cat(fills)

    def _mark(self) -> torch.cuda.Event | None:
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event
