"""What a clip costs: exact multiply-adds, the speed-up they allow at most, and measured time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onereel.evaluation.inference import autocast, evaluating
from onereel.seeding import clip_generators
from onereel.types import SampleKey

if TYPE_CHECKING:
    from onereel.models.video_model import Output, VideoModel


@dataclass(frozen=True)
class Throughput:
    """A model's speed on given clips.

    Attributes:
        clips_per_second: clips of the batch over the median time of a repeat.
        latency_seconds: that median; all of its batch is ready only then.
        batch_size, kept_ratio: what the repeats were measured on.
        macs_per_clip: exact multiply-adds of the forward pass, mean over the clips.
        speedup_bound: MACs of all tokens over MACs of the kept ones: what no wall clock can beat while the model
            is bound by arithmetic.
        peak_memory_bytes: device memory allocated at the peak; on the CPU how far resident memory grew (memory that
            the process had used and kept before is not in it), None where the system does not tell.
    """

    clips_per_second: float
    latency_seconds: float
    batch_size: int
    kept_ratio: float
    macs_per_clip: float
    speedup_bound: float
    peak_memory_bytes: int | None


def clip_macs(model: VideoModel, num_tokens: int) -> int:
    """Multiply-adds of the forward pass of one clip of `num_tokens` kept tokens."""
    return model.macs((num_tokens,))


def speedup_bound(model: VideoModel, lengths: Sequence[int], num_dense_tokens: int) -> float:
    """MACs of the same clips with all their tokens, over MACs with `lengths` kept ones."""
    dense = (num_dense_tokens,) * len(lengths)
    return (model.encoder.macs(dense) + model.head.macs(len(dense))) / model.macs(tuple(lengths))


def measure_inference(
    model: VideoModel,
    clips: Tensor,
    *,
    precision: str = "auto",
    seed: int = 0,
    repeats: int = 5,
    warmup: int = 1,
) -> Throughput:
    """Time the forward pass, token selection included, on normalised float `clips` `(B, T, C, H, W)`."""

    def step() -> Output:
        return _forward(model, clips, precision, seed)

    with evaluating(model):
        return _throughput(model, clips, step, repeats, warmup)


def measure_training(
    model: VideoModel,
    clips: Tensor,
    *,
    precision: str = "auto",
    seed: int = 0,
    repeats: int = 3,
    warmup: int = 1,
) -> Throughput:
    """Time forward and backward (no optimiser step) on normalised float `clips`; gradients are left empty."""

    def step() -> Output:
        output = _forward(model, clips, precision, seed)
        output.logits.float().square().mean().backward()
        model.zero_grad(set_to_none=True)
        return output

    was_training = model.training
    model.train()
    try:
        return _throughput(model, clips, step, repeats, warmup)
    finally:
        model.train(was_training)


def _forward(model: VideoModel, clips: Tensor, precision: str, seed: int) -> Output:
    keys = [SampleKey(0, index) for index in range(len(clips))]
    with autocast(clips.device, precision):
        return model(clips, generators=clip_generators(seed, keys))


def _throughput(
    model: VideoModel, clips: Tensor, step: Callable[[], Output], repeats: int, warmup: int
) -> Throughput:
    before = _reset_peak_memory(clips.device)
    for _ in range(warmup):
        step()
    seconds = []
    for _ in range(repeats):
        synchronize(clips.device)
        start = time.perf_counter()
        output = step()
        synchronize(clips.device)
        seconds.append(time.perf_counter() - start)
    latency = statistics.median(seconds)
    return Throughput(
        clips_per_second=len(clips) / latency,
        latency_seconds=latency,
        batch_size=len(clips),
        kept_ratio=sum(output.lengths) / (output.num_dense_tokens * len(clips)),
        macs_per_clip=model.macs(output.lengths) / len(clips),
        speedup_bound=speedup_bound(model, output.lengths, output.num_dense_tokens),
        peak_memory_bytes=_peak_memory(clips.device, before),
    )


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given; nothing to wait for on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak_memory(device: torch.device) -> int | None:
    """Start a new peak; returns what to subtract from it, None where the system keeps no peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    try:
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # sets the peak (VmHWM) back to what is resident now
    except OSError:
        return None
    return _resident_bytes("VmRSS")


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
