"""Before a run: measure its clips and its model for some seconds, and say how long it takes and what limits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import torch
from rich.console import Group
from rich.table import Table
from torch import nn

from onereel import build
from onereel.config import RunConfig
from onereel.doctor.arithmetic import (
    Forecast,
    Rates,
    Workload,
    advice,
    forecast,
    longest_chunk_seconds,
)
from onereel.doctor.caching import caching_advice
from onereel.doctor.measure import DecodeRate, DiskRate, measure_decode, measure_disk
from onereel.doctor.steps import MODEL_CLIPS, describe_pairs, example_clips, measure_objective
from onereel.doctor.system import cuda_devices, describe_disk
from onereel.errors import ConfigError, DecodeError
from onereel.evaluation.efficiency import TrainingSpeed
from onereel.loading import tokenizer_for
from onereel.models.dual_encoder import DualEncoder
from onereel.teaching import load_teacher
from onereel.training import on_devices, pick_device
from onereel.video.schedule import num_cores

if TYPE_CHECKING:
    from onereel.data.annotations import Annotations
    from onereel.data.dataset import ClipDataset


@dataclass(frozen=True)
class Plan:
    """What was measured for a run and what follows; `rich` prints it.

    Attributes:
        bits_per_second: mean rate of the videos, None where their length is unknown.
        longest_chunk_seconds: AVION Eq. 3, None where the disk or the bit rate is unknown.
        io_share: of a device step that reading its clips takes, B * bytes per clip / (S_r * Delta).
        caching: whether a cache of features pays, where something is frozen.
        pairs: what is timed of a run that learns pairs, and what is not.
    """

    config: RunConfig
    device: str
    disk: DiskRate
    decode: DecodeRate
    model: TrainingSpeed
    rates: Rates
    workload: Workload
    forecast: Forecast
    bits_per_second: float | None
    longest_chunk_seconds: float | None
    io_share: float | None
    advice: str
    caching: str = ""
    pairs: str = ""

    def __rich__(self) -> Group:
        return Group(self._table(), "", *self._sentences())

    def _table(self) -> Table:
        rates, result = self.rates, self.forecast
        table = Table("", "clips/s", "measured", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        workers = (
            f"x {rates.num_worker_cores} worker cores"
            if rates.num_worker_cores
            else "in the training process, between steps"
        )
        table.add_row(
            "disk",
            f"{result.io:.1f}",
            f"{rates.bytes_per_clip / 1e3:.1f} kB per clip; {describe_disk(self.disk)}",
        )
        table.add_row(
            "CPU", f"{result.cpu:.1f}", f"{rates.decode_clips_per_second:.1f} per core {workers}"
        )
        table.add_row(
            "device",
            f"{result.device:.1f}",
            f"{self.workload.num_devices} x {self.device}, forward + backward of {self.model.batch_size} clips in "
            f"{self.model.latency_seconds:.3g} s, {self.model.kept_ratio:.1%} of the tokens kept, "
            f"{self.model.flops_per_clip / 1e9:.3g} GFLOPs per clip",
        )
        table.add_row("together", f"{result.clips_per_second:.1f}", f"limit: {result.limit}")
        return table

    def _sentences(self) -> Iterator[str]:
        result, work = self.forecast, self.workload
        yield (
            f"time: {duration(result.epoch_seconds)} per epoch of {work.clips_per_epoch} clips, "
            f"{duration(result.run_seconds)} for {work.epochs} epochs, without evaluation; "
            f"the device waits {result.data_wait:.0%} of it for data"
        )
        yield f"advice: {self.advice}"
        yield from filter(None, (self.pairs, self.caching))
        if self.decode.num_failed:
            yield f"note: {self.decode.num_failed} of the clips tried could not be read (onereel prepare --check)"
        if self.model.batch_size < self.config.train.batch_size_per_device:
            yield (
                f"note: timed on {self.model.batch_size} clips, not train.batch_size_per_device = "
                f"{self.config.train.batch_size_per_device}, which would take too long or too much memory"
            )
        if self.config.data.is_flexible:
            typical = with_typical_clips(self.config).data
            yield (
                f"note: measured on clips of {typical.num_frames} frames of {typical.size} px, the middle of the "
                "shapes that training draws"
            )
        if self.io_share is not None:
            holds = "holds" if self.io_share <= 1 else "fails"
            yield (
                "IO: onereel reads by packet index, so chunk length does not matter; B * bytes per clip <= "
                f"S_r * Delta {holds}: reading takes {self.io_share:.1%} of a step"
            )
        if self.longest_chunk_seconds is not None and self.bits_per_second is not None:
            yield (
                f"    a reader of whole chunks would need chunks of at most {self.longest_chunk_seconds:.1f} s "
                "(AVION Eq. 3: B * rho * T <= S_r * Delta; "
                f"B {work.global_batch_size}, rho {self.bits_per_second / 1e6:.2f} Mb/s, "
                f"Delta {result.step_seconds:.3g} s)"
            )


def plan_run(config: RunConfig, num_devices: int = 0) -> Plan:
    """Measure what `config` needs, for about half a minute, and forecast its run.

    Args:
        num_devices: devices of the run; 0: all CUDA devices where train.device is auto or cuda, else 1.

    Raises:
        ConfigError: no training list, or not one that `num_devices` take a global batch of.
        DataError: none of the clips tried can be read, or there are no captions to learn.
    """
    if not config.data.train:
        raise ConfigError("a plan needs the training list: --data.train LIST")
    device = pick_device(config.train.device)
    num_devices = num_devices or _num_devices(config)
    config = replace(config, train=on_devices(config.train, num_devices))
    annotations = build.build_annotations(config, config.data.train)
    dataset = build.build_dataset(with_typical_clips(config), annotations, None, training=True)
    tokenizer = tokenizer_for(config, annotations)
    disk = measure_disk(video_folder(config, annotations))
    decode = measure_decode(dataset, repeats=config.data.repeats)
    model = build.build_trainee(config, max(2, len(annotations.label_names())), tokenizer)
    objective = build.build_objective(config, model, load_teacher(config)).to(device)
    with _threads(build.num_threads(config, num_devices)):
        speed = measure_objective(config, objective, example_clips(config, dataset, device))
        model_cores = torch.get_num_threads() if device.type == "cpu" else 0
    cores = num_cores()
    rates = Rates(
        decode_clips_per_second=decode.clips_per_second,
        num_worker_cores=min(cores, num_devices * build.num_workers(config, num_devices)),
        bytes_per_clip=decode.bytes_per_clip or 0.0,
        disk_bytes_per_second=disk.bytes_per_second,
        model_clips_per_second=speed.clips_per_second,
        model_cores=model_cores,
        num_cores=cores,
    )
    train = config.train
    work = Workload(
        clips_per_epoch=len(dataset) * config.data.repeats,
        epochs=train.epochs,
        global_batch_size=train.batch_size_per_device * train.accum_steps * num_devices,
        num_devices=num_devices,
    )
    plan = _conclude(config, str(device), disk, decode, speed, rates, work, dataset)
    return replace(
        plan,
        caching=_caching(config, objective, len(dataset)),
        pairs=describe_pairs(config, objective, num_devices),
    )


def with_typical_clips(config: RunConfig) -> RunConfig:
    """`config` with clips of one shape: of those of flexible sampling, that whose tokens are nearest to their mean."""
    if not config.data.is_flexible:
        return config
    counts = [grid.num_tokens for grid in build.train_grids(config)]
    distances = [abs(count - mean(counts)) for count in counts]
    shape = build.train_shapes(config)[distances.index(min(distances))]
    data = replace(
        config.data,
        num_frames=shape.num_frames,
        size=shape.size,
        num_frames_choices=(),
        size_choices=(),
        token_window=(0, 0),
    )
    return replace(config, data=data)


def _caching(config: RunConfig, objective: nn.Module, num_samples: int) -> str:
    model = objective.model
    video = model.video if isinstance(model, DualEncoder) else model
    return caching_advice(config, getattr(video, "encoder", None), num_samples)


def _conclude(
    config: RunConfig,
    device: str,
    disk: DiskRate,
    decode: DecodeRate,
    model: TrainingSpeed,
    rates: Rates,
    work: Workload,
    dataset: ClipDataset,
) -> Plan:
    result = forecast(rates, work)
    bits = bits_per_second(config, dataset)
    longest = None
    if bits and disk.bytes_per_second:
        longest = longest_chunk_seconds(
            work.global_batch_size, bits, result.step_seconds, disk.bytes_per_second
        )
    return Plan(
        config=config,
        device=device,
        disk=disk,
        decode=decode,
        model=model,
        rates=rates,
        workload=work,
        forecast=result,
        bits_per_second=bits,
        longest_chunk_seconds=longest,
        io_share=result.device / result.io if disk.bytes_per_second else None,
        advice=advice(
            rates,
            work,
            result,
            prepared=bool(config.data.store),
            on_cpu=rates.model_cores > 0,
            can_defer=(rates.model_cores, config.data.scaling, config.tokens.where)
            == (0, "loader", "device"),
        ),
    )


def bits_per_second(config: RunConfig, dataset: ClipDataset) -> float | None:
    """Mean bit rate of the store, or of a few of the raw videos."""
    if config.data.store:
        columns = ["bytes", "start_seconds", "end_seconds"]
        rows = pq.read_table(Path(config.data.store, "manifest.parquet"), columns=columns)
        size, first, last = (rows[name].to_numpy() for name in columns)
        num_bytes, seconds = float(size.sum()), float((last - first).sum())
    else:
        num_bytes, seconds = 0.0, 0.0
        for index in torch.linspace(0, len(dataset) - 1, MODEL_CLIPS).long().unique().tolist():
            path = dataset.annotations.record(index).path
            try:
                seconds += dataset.library.info(path).duration_seconds
                num_bytes += os.path.getsize(os.path.join(dataset.annotations.root, path))
            except DecodeError:
                continue
    return 8 * num_bytes / seconds if seconds else None


def video_folder(config: RunConfig, annotations: Annotations) -> Path:
    """The folder whose disk the clips come from: the store, or that of the first raw video."""
    if config.data.store:
        return Path(config.data.store)
    folder = Path(annotations.root)
    return folder if folder.is_dir() else Path(annotations.record(0).path).parent


def _num_devices(config: RunConfig) -> int:
    return len(cuda_devices()) or 1 if config.train.device in ("auto", "cuda") else 1


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute with `number` CPU threads; 0: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def duration(seconds: float) -> str:
    """`1 h 05 min`, `5 min 10 s` or `3.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
