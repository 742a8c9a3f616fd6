"""Before a run: measure its clips and its model for some seconds, and say how long it takes and what limits it."""

from __future__ import annotations

import math
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

from onereel import build
from onereel.config import RunConfig
from onereel.doctor.advising import advice
from onereel.doctor.arithmetic import Phase, Rates, Workload, longest_chunk_seconds
from onereel.doctor.caching import cached_batch, caching_advice, measure_making, stored_bytes
from onereel.doctor.measure import DecodeRate, DiskRate, measure_decode, measure_disk
from onereel.doctor.steps import (
    MODEL_CLIPS,
    Examples,
    describe_pairs,
    example_clips,
    measure_objective,
)
from onereel.doctor.system import cuda_devices, describe_disk
from onereel.errors import ConfigError, DecodeError
from onereel.evaluation.efficiency import TrainingSpeed
from onereel.loading import tokenizer_for
from onereel.models.dual_encoder import video_of
from onereel.objectives import AnyObjective
from onereel.recipes import lacks_weights
from onereel.teaching import load_teacher
from onereel.training import World, on_devices, pick_device, plan_steps
from onereel.types import Batch
from onereel.video.schedule import num_cores

if TYPE_CHECKING:
    from onereel.data.annotations import Annotations
    from onereel.data.dataset import ClipDataset


@dataclass(frozen=True)
class Plan:
    """What was measured for a run and what follows; `rich` prints it.

    Attributes:
        model: the speed of training steps.
        training: with a cache, on what is in it.
        making: of the features of a cache, before training; None where there is none.
        bits_per_second: mean rate of the videos, None where their length is unknown.
        caching: whether a cache of features pays, where something is frozen.
        pairs: what is timed of a run that learns pairs, and what is not.
    """

    config: RunConfig
    device: str
    disk: DiskRate
    decode: DecodeRate
    model: TrainingSpeed
    training: Phase
    making: Phase | None
    bits_per_second: float | None
    caching: str = ""
    pairs: str = ""

    @property
    def from_features(self) -> bool:
        """Whether training reads features in place of clips."""
        return self.making is not None and self.config.objective.kind != "distillation"

    @property
    def run_seconds(self) -> float:
        """Of all phases."""
        made = self.making.forecast.run_seconds if self.making else 0.0
        return made + self.training.forecast.run_seconds

    @property
    def advice(self) -> str:
        """What to change first, in the phase that takes longest."""
        making, training = self.making, self.training
        if making and 2 * making.forecast.run_seconds > self.run_seconds:
            return f"making features takes longest, and there {advice(self.config, making)}"
        return advice(self.config, training, from_features=self.from_features)

    @property
    def longest_chunk_seconds(self) -> float | None:
        """AVION Eq. 3; None where the disk or the bit rate is unknown, or steps read no chunks."""
        disk = self.disk.bytes_per_second
        if not (self.bits_per_second and disk) or self.from_features:
            return None
        work, result = self.training.workload, self.training.forecast
        return longest_chunk_seconds(
            work.global_batch_size, self.bits_per_second, result.step_seconds, disk
        )

    def __rich__(self) -> Group:
        return Group(self._table(), "", *self._sentences())

    def _table(self) -> Table:
        table = Table("", "clips/s", "measured", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        if self.making:
            made, work = self.making.forecast, self.making.workload
            self._add_clips(table, self.making)
            table.add_row("features", f"{made.device:.1f}", f"{self._devices(work)}, made once")
            table.add_row("made", f"{made.clips_per_second:.1f}", f"limit: {made.limit}")
        result, work = self.training.forecast, self.training.workload
        if self.from_features:
            size = self.training.rates.bytes_per_clip
            table.add_row("disk", _rate(result.io), f"{size / 1e3:.1f} kB of features per clip")
        else:
            self._add_clips(table, self.training)
        table.add_row(
            "device",
            f"{result.device:.1f}",
            f"{self._devices(work)}, forward + backward of {self.model.batch_size} clips in "
            f"{self.model.latency_seconds:.3g} s, {self.model.kept_ratio:.1%} of the tokens kept, "
            f"{self.model.flops_per_clip / 1e9:.3g} GFLOPs per clip",
        )
        table.add_row("together", f"{result.clips_per_second:.1f}", f"limit: {result.limit}")
        return table

    def _devices(self, work: Workload) -> str:
        return f"{work.num_devices} x {self.device}"

    def _add_clips(self, table: Table, phase: Phase) -> None:
        """How fast clips are read and decoded."""
        rates, result = phase.rates, phase.forecast
        workers = (
            f"x {rates.num_worker_cores} worker cores"
            if rates.num_worker_cores
            else "in the training process, between steps"
        )
        table.add_row(
            "disk",
            _rate(result.io),
            f"{rates.bytes_per_clip / 1e3:.1f} kB per clip; {describe_disk(self.disk)}",
        )
        table.add_row(
            "CPU", f"{result.cpu:.1f}", f"{rates.decode_clips_per_second:.1f} per core {workers}"
        )

    def _sentences(self) -> Iterator[str]:
        yield self._time()
        yield f"advice: {self.advice}"
        yield from filter(None, (self.pairs, self.caching))
        if told := lacks_weights(self.config):
            yield f"note: {told}"
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
        yield from self._reading()

    def _time(self) -> str:
        result, work = self.training.forecast, self.training.workload
        first = ""
        if self.making:
            made, views = self.making.forecast, self.making.workload
            first = (
                f"{duration(made.run_seconds)} to make the features of {views.epochs} views of "
                f"{views.clips_per_epoch} clips, then "
            )
        return (
            f"time: {first}{duration(result.epoch_seconds)} per epoch of {work.clips_per_epoch} clips, "
            f"{duration(self.run_seconds)} for {'both, with ' if first else ''}{work.epochs} epochs, without "
            f"evaluation; the device waits {result.data_wait:.0%} of "
            f"{'training' if first else 'it'} for data"
        )

    def _reading(self) -> Iterator[str]:
        """What reading clips takes of a step, and what a reader of whole chunks would need."""
        result, work = self.training.forecast, self.training.workload
        if self.disk.bytes_per_second and not self.from_features:
            share = result.device / result.io
            yield (
                "IO: onereel reads by packet index, so chunk length does not matter; B * bytes per clip <= "
                f"S_r * Delta {'holds' if share <= 1 else 'fails'}: reading takes {share:.1%} of a step"
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
        OnereelError: the run would not begin, as far as its settings and its training list say; or none of the clips
            tried can be read.
    """
    if not config.data.train:
        raise ConfigError("a plan needs the training list: --data.train LIST")
    device = pick_device(config.train.device)
    num_devices = num_devices or _num_devices(config)
    config = replace(config, train=on_devices(config.train, num_devices))
    listed = build.build_annotations(config, config.data.train)
    annotations, _ = build.split_held_out(config, listed)
    dataset = build.build_dataset(with_typical_clips(config), annotations, None, training=True)
    # Of this process alone, it starts nothing; it is asked how many batches an epoch has.
    loader = build.build_train_loader(
        config, dataset, world=World(0, num_devices, device), run=Path()
    )
    steps = plan_steps(config, loader.num_batches, num_devices)
    tokenizer = tokenizer_for(config, annotations)
    model = build.build_trainee(config, len(build.class_names(config, listed)), tokenizer)
    objective = build.build_objective(config, model, load_teacher(config)).to(device)
    disk = measure_disk(video_folder(config, annotations))
    decode = measure_decode(dataset, repeats=config.data.repeats)
    with _threads(build.num_threads(config, num_devices)):
        speed, made, stored = _measure(config, objective, example_clips(config, dataset, device))
        model_cores = torch.get_num_threads() if device.type == "cpu" else 0
    rates = _rates(config, num_devices, decode, disk, speed, model_cores)
    work = Workload(
        clips_per_epoch=steps.steps_per_epoch * steps.global_batch_size,
        epochs=steps.epochs,
        global_batch_size=steps.global_batch_size,
        num_devices=num_devices,
    )
    making = None
    if made is not None:
        views = replace(work, clips_per_epoch=len(dataset), epochs=build.views_read(config))
        making = Phase(replace(rates, model_clips_per_second=made), views)
        rates = _of_cache(config, rates, stored)
    return Plan(
        config=config,
        device=str(device),
        disk=disk,
        decode=decode,
        model=speed,
        training=Phase(rates, work),
        making=making,
        bits_per_second=bits_per_second(config, dataset),
        caching=caching_advice(
            config, getattr(video_of(objective.model), "encoder", None), len(dataset)
        ),
        pairs=describe_pairs(config, objective, num_devices),
    )


def _rates(
    config: RunConfig,
    num_devices: int,
    decode: DecodeRate,
    disk: DiskRate,
    speed: TrainingSpeed,
    model_cores: int,
) -> Rates:
    cores = num_cores()
    return Rates(
        decode_clips_per_second=decode.clips_per_second,
        num_worker_cores=min(cores, num_devices * build.num_workers(config, num_devices)),
        bytes_per_clip=decode.bytes_per_clip or 0.0,
        disk_bytes_per_second=disk.bytes_per_second,
        model_clips_per_second=speed.clips_per_second,
        model_cores=model_cores,
        num_cores=cores,
    )


def _measure(
    config: RunConfig, objective: AnyObjective, examples: Examples
) -> tuple[TrainingSpeed, float | None, float]:
    """Training steps; and of a run with a cache the clips per second that are made for it, and their bytes."""
    if not config.data.cache_views:
        return measure_objective(config, objective, examples.batch), None, 0.0

    def cached(size: int) -> Batch:
        return cached_batch(config, objective, examples.batch(size))

    made, stored = (
        measure_making(config, objective, examples),
        stored_bytes(config, objective, examples),
    )
    return measure_objective(config, objective, cached), made, stored


def _of_cache(config: RunConfig, rates: Rates, stored: float) -> Rates:
    """Those of training with a cache: features are copied, not decoded; beside a teacher's, clips are read as ever."""
    if config.objective.kind == "distillation":
        return replace(rates, bytes_per_clip=rates.bytes_per_clip + stored)
    return replace(rates, decode_clips_per_second=math.inf, bytes_per_clip=stored)


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


def _rate(per_second: float) -> str:
    """Infinite: nothing is known that would limit it."""
    return f"{per_second:.1f}" if math.isfinite(per_second) else "?"
