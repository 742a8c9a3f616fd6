"""Which of disk, CPU and device limits a run, and for how long it runs: arithmetic on measured rates, nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Limit = Literal["io", "cpu", "device"]


def longest_chunk_seconds(
    global_batch_size: int,
    bits_per_second: float,
    step_seconds: float,
    disk_bytes_per_second: float,
) -> float:
    """Longest chunk T whose whole-file reads a step still hides: B * rho * T <= S_r * Delta (AVION Eq. 3).

    Args:
        global_batch_size: B, clips (and so chunks) that one step reads.
        bits_per_second: rho, bit rate of the videos.
        step_seconds: Delta, time the device needs for one step.
        disk_bytes_per_second: S_r.
    """
    return disk_bytes_per_second * step_seconds / (global_batch_size * bits_per_second / 8)


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        decode_clips_per_second: of one core.
        num_worker_cores: cores that decode, of all devices together; 0: the training process decodes between steps.
        bytes_per_clip: read from disk for one clip.
        disk_bytes_per_second: of the folder, None where it could not be measured.
        model_clips_per_second: forward and backward on one device.
        model_cores: cores that the model itself computes on (CPU training), 0 where the device is its own.
        num_cores: cores of the machine.
    """

    decode_clips_per_second: float
    num_worker_cores: int
    bytes_per_clip: float
    disk_bytes_per_second: float | None
    model_clips_per_second: float
    model_cores: int
    num_cores: int


@dataclass(frozen=True)
class Workload:
    """What a run asks for.

    Attributes:
        clips_per_epoch: clips that are trained on, views of repeated augmentation counted each.
    """

    clips_per_epoch: int
    epochs: int
    global_batch_size: int
    num_devices: int


@dataclass(frozen=True)
class Forecast:
    """What to expect, in clips per second of the whole machine, and seconds.

    Attributes:
        io, cpu, device: what each could do if the others were infinitely fast.
        clips_per_second: what they do together.
        limit: the slowest of the three.
        data_wait: share of a step that the device waits for clips.
        step_seconds: of a global batch on the device, data at hand.
    """

    io: float
    cpu: float
    device: float
    clips_per_second: float
    limit: Limit
    data_wait: float
    step_seconds: float
    epoch_seconds: float
    run_seconds: float


def forecast(rates: Rates, work: Workload) -> Forecast:
    """Combine measured rates: what works side by side is as fast as the slowest, what takes turns adds its times."""
    per_core = rates.decode_clips_per_second
    disk = rates.disk_bytes_per_second
    io = math.inf
    if disk is not None and rates.bytes_per_clip > 0:
        io = disk / rates.bytes_per_clip
    device = rates.model_clips_per_second * work.num_devices
    cpu = per_core * (rates.num_worker_cores or work.num_devices)
    supply: dict[Limit, float] = {"io": io, "cpu": cpu, "device": device}
    limit = min(supply, key=lambda name: supply[name])
    together = supply[limit]
    if rates.num_worker_cores == 0:
        together = min(io, 1 / (1 / cpu + 1 / device))
    elif rates.model_cores:
        # Workers and model share the cores: a clip costs the core-seconds of both.
        core_seconds = 1 / per_core + rates.model_cores / rates.model_clips_per_second
        together = min(together, rates.num_cores / core_seconds)
    return Forecast(
        io=io,
        cpu=cpu,
        device=device,
        clips_per_second=together,
        limit=limit,
        data_wait=max(0.0, 1 - together / device),
        step_seconds=work.global_batch_size / device,
        epoch_seconds=work.clips_per_epoch / together,
        run_seconds=work.clips_per_epoch * work.epochs / together,
    )


@dataclass(frozen=True)
class Phase:
    """A part of a run that goes on at rates of its own."""

    rates: Rates
    workload: Workload

    @property
    def forecast(self) -> Forecast:
        return forecast(self.rates, self.workload)
