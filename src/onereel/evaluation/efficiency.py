"""What a clip costs: exact multiply-adds, and measured time and memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onereel.evaluation.inference import autocast, evaluating
from onereel.seeding import clip_generators
from onereel.types import Batch, SampleKey

if TYPE_CHECKING:
    from onereel.models.video_model import Output, VideoModel


Clock = Callable[[], float]


@dataclass(frozen=True)
class Throughput:
    """A model's speed on given clips.

    Attributes:
        clips_per_second: clips of the batch over the median time of a repeat.
        latency_seconds: that median; all of its batch is ready only then.
        batch_size, kept_ratio: what the repeats were measured on.
        macs_per_clip: exact multiply-adds of the forward pass, mean over the clips.
        peak_memory_bytes: device memory allocated at the peak; on the CPU how far resident memory grew (what the
            C library keeps of freed memory is not in it), None where the system does not tell.
    """

    clips_per_second: float
    latency_seconds: float
    batch_size: int
    kept_ratio: float
    macs_per_clip: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class TrainingSpeed:
    """An objective's speed on a given batch.

    Attributes:
        clips_per_second, latency_seconds, batch_size, kept_ratio, peak_memory_bytes: as of `Throughput`.
        flops_per_clip: 2 x multiply-adds of forward and backward, mean over the clips.
    """

    clips_per_second: float
    latency_seconds: float
    batch_size: int
    kept_ratio: float
    flops_per_clip: float
    peak_memory_bytes: int | None


def measure_inference(
    model: VideoModel,
    clips: Tensor,
    *,
    precision: str = "auto",
    seed: int = 0,
    repeats: int = 5,
    warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> Throughput:
    """Time the forward pass, token selection included, on normalised float `clips` `(B, T, C, H, W)`, by `clock`."""

    def step() -> Output:
        return _forward(model, clips, precision, seed)

    before = _reset_peak_memory(clips.device)
    with evaluating(model):
        latency = _latency(step, clips.device, repeats, warmup, clock)
        output = step()
    return Throughput(
        clips_per_second=len(clips) / latency,
        latency_seconds=latency,
        batch_size=len(clips),
        kept_ratio=sum(output.lengths) / (output.num_dense_tokens * len(clips)),
        macs_per_clip=model.macs(output.lengths, output.grid) / len(clips),
        peak_memory_bytes=_peak_memory(clips.device, before),
    )


def measure_training(
    objective: nn.Module,
    batch: Batch,
    *,
    precision: str = "auto",
    twice: bool = False,
    repeats: int = 3,
    warmup: int = 1,
) -> TrainingSpeed:
    """Time forward and backward (no optimiser step) of an `Objective`; gradients are left empty.

    Args:
        batch: with normalised clips, and with the labels or captions that the objective learns.
        twice: as one of several micro-batches of a step that compares the clips of all: its forward runs once more
            beforehand, without gradients, which is timed and, as all that is computed again, no part of the FLOPs.
    """
    counted: dict[str, float] = {}

    def step() -> None:
        coupled = _coupled(objective, batch, precision) if twice else ()
        with autocast(batch.clips.device, precision):
            output = objective(batch, *coupled)
        output["loss"].backward()
        objective.zero_grad(set_to_none=True)
        counted.update(output["stats"])

    was_training = objective.training
    objective.train()
    before = _reset_peak_memory(batch.clips.device)
    try:
        latency = _latency(step, batch.clips.device, repeats, warmup)
    finally:
        objective.train(was_training)
    return TrainingSpeed(
        clips_per_second=batch.num_clips / latency,
        latency_seconds=latency,
        batch_size=batch.num_clips,
        kept_ratio=counted["num_tokens"] / counted["num_tokens_dense"],
        flops_per_clip=counted["flops"] / batch.num_clips,
        peak_memory_bytes=_peak_memory(batch.clips.device, before),
    )


def _coupled(objective: Any, batch: Batch, precision: str) -> Sequence[Any]:
    """What a coupled objective's forward is given beside `batch`, here of a step of `batch` alone."""
    with torch.no_grad(), autocast(batch.clips.device, precision):
        survey = objective.survey(batch)
    return objective.couple([survey])


def _forward(model: VideoModel, clips: Tensor, precision: str, seed: int) -> Output:
    keys = [SampleKey(0, index) for index in range(len(clips))]
    with autocast(clips.device, precision):
        return model(clips, generators=clip_generators(seed, keys))


def own_clock(device: torch.device) -> Clock:
    """Seconds of what the machine does for this thread: CPU time, or on CUDA the wall clock.

    CPU time doesn't grow with what else the machine does, and is the wall clock's where it does nothing else (and files
    are in memory): the thread that waits for others in a product spins.
    """
    return time.perf_counter if device.type == "cuda" else time.thread_time


def _latency(
    step: Callable[[], object],
    device: torch.device,
    repeats: int,
    warmup: int,
    clock: Clock = time.perf_counter,
) -> float:
    """Median seconds of `repeats` steps, after `warmup` others."""
    return statistics.median(seconds_in_turn([step], device, repeats, warmup, clock)[0])


def seconds_in_turn(
    steps: Sequence[Callable[[], object]],
    device: torch.device,
    repeats: int,
    warmup: int,
    clock: Clock = time.perf_counter,
) -> list[list[float]]:
    """Seconds of `repeats` runs of each step, after `warmup` others.

    The steps take turns, so that what else the machine does in the meantime slows all of them alike.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(warmup + repeats):
        for step, own in zip(steps, seconds):
            synchronize(device)
            start = clock()
            step()
            synchronize(device)
            if turn >= warmup:
                own.append(clock() - start)
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak_memory(device: torch.device) -> int | None:
    """Start a new peak; returns what to subtract from it, None where the system keeps no peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    _return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # sets the peak (VmHWM) back to what is resident now
    except OSError:
        return None
    return _resident_bytes("VmRSS")


def _return_freed_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc): kept, it would hide the next peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _peak_memory(device: torch.device, before: int | None) -> int | None:
    if before is None:
        return None
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return max(0, _resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
