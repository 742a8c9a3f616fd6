"""Training steps of a run on a few of its clips, timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import TypeVar

import torch
from torch import Tensor, nn

from onereel import build
from onereel.config import RunConfig
from onereel.data.dataset import ClipDataset
from onereel.data.yuv import stacked
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.evaluation.efficiency import TrainingSpeed, measure_training
from onereel.models.dual_encoder import DualEncoder
from onereel.objectives.base import draw_budgets
from onereel.training import sees_twice
from onereel.types import Batch, SampleKey

MODEL_CLIPS = 8
"""Clips of the videos that the model is timed on; a larger batch repeats them."""
STEP_SECONDS = 4.0
"""A step that would take longer is timed on fewer clips."""


@dataclass(frozen=True)
class Examples:
    """A few clips of a run, and the captions of its list.

    Attributes:
        clips: normalised floats `(n, T, C, H, W)` on the device: what the selector will see.
        dataset: that they are of.
    """

    clips: Tensor
    dataset: ClipDataset

    def batch(self, size: int) -> Batch:
        """`size` clips, repeated where there are fewer, with captions of as many records: padded texts are as long as
        those of training."""
        device = self.clips.device
        records = torch.linspace(0, len(self.dataset) - 1, size).long().tolist()
        captions = [self._caption(index) for index in records]
        return Batch(
            self.clips[torch.arange(size, device=device) % len(self.clips)],
            [SampleKey(0, index) for index in range(size)],
            labels=torch.zeros(size, dtype=torch.long, device=device),
            captions=[caption for caption in captions if caption is not None] or None,
            num_clips=size,
        )

    def _caption(self, index: int) -> str | None:
        record = self.dataset.annotations.record(index)
        return self.dataset.reader.caption(record, SampleKey(0, index))


def example_clips(config: RunConfig, dataset: ClipDataset, device: torch.device) -> Examples:
    """Clips spread over the list. Raises DataError where none of those tried can be read."""
    clips, keys, last = [], [], None
    for index in torch.linspace(0, len(dataset) - 1, MODEL_CLIPS).long().unique().tolist():
        key = SampleKey(0, index)
        try:
            clips.append(dataset[key].clip)
            keys.append(key)
        except DecodeError as error:
            last = error
    if not clips:
        raise DataError(f"none of the clips tried could be read; the last: {last}")
    batch = Batch(stacked(clips), keys, num_clips=len(keys))
    shown = build.build_augment(config, None, training=False)(batch, device).clips
    assert isinstance(shown, Tensor)  # the loader's selection has no part in this
    return Examples(shown, dataset)


def measure_objective(
    config: RunConfig, objective: nn.Module, batches: Callable[[int], Batch]
) -> TrainingSpeed:
    """Time training steps on batches as large as those of `config`, or smaller where that is too much.

    Where steps draw from objective.budgets, the mean over all choices.

    Args:
        batches: the batch of so many clips.

    Raises ConfigError where not even one clip fits into memory.
    """
    precision, twice = config.train.precision, sees_twice(objective, config.train)

    def time(batch: Batch, repeats: int = 3) -> TrainingSpeed:
        return measure_training(objective, batch, precision=precision, twice=twice, repeats=repeats)

    def measure(size: int) -> TrainingSpeed:
        return _mean_speed([time(one) for one in choices_of_budgets(config, batches(size))])

    def seconds(size: int) -> float:
        return time(batches(size), repeats=1).latency_seconds

    return at_fitting_size(config.train.batch_size_per_device, seconds, measure)


T = TypeVar("T")


def at_fitting_size(wanted: int, seconds: Callable[[int], float], measure: Callable[[int], T]) -> T:
    """`measure` at `wanted` clips, or at fewer where a step of so many would take too long or too much memory.

    Raises ConfigError where not even one clip fits into memory.
    """
    size, fits = 1, 0
    try:
        while size > fits:  # grow towards the batch for as long as a step stays short
            fitting = int(size * STEP_SECONDS / seconds(size))
            size, fits = max(size, min(wanted, fitting)), size
        return measure(size)
    except torch.OutOfMemoryError:
        if fits:
            return measure(fits)
    raise ConfigError(
        "not even one clip fits into the device's memory: use --model.checkpointing, a smaller model, fewer "
        "tokens (--tokens.kind) or a smaller --data.size"
    )


def choices_of_budgets(config: RunConfig, batch: Batch) -> list[Batch]:
    """`batch` as micro-batches of an epoch of which each draws another choice of budgets, every one that there is."""
    learned = config.objective
    at_once = learned.kind in ("classification", "distillation")
    count = learned.budgets_per_step or (len(learned.budgets) if at_once else 1)
    if count >= len(learned.budgets):
        return [batch]
    found: dict[tuple[int, ...], Batch] = {}
    while len(found) < math.comb(len(learned.budgets), count):
        found.setdefault(draw_budgets(learned.budgets, count, batch, config.seed), batch)
        batch = replace(batch, number=batch.number + 1)
    return list(found.values())


def _mean_speed(speeds: Sequence[TrainingSpeed]) -> TrainingSpeed:
    """Of steps that are equally frequent."""
    seconds = mean(speed.latency_seconds for speed in speeds)
    peaks = [speed.peak_memory_bytes for speed in speeds if speed.peak_memory_bytes is not None]
    return replace(
        speeds[0],
        clips_per_second=speeds[0].batch_size / seconds,
        latency_seconds=seconds,
        kept_ratio=mean(speed.kept_ratio for speed in speeds),
        flops_per_clip=mean(speed.flops_per_clip for speed in speeds),
        peak_memory_bytes=max(peaks, default=None),
    )


def describe_pairs(config: RunConfig, objective: nn.Module, num_devices: int) -> str:
    """What is timed of a run that learns pairs, and what is not; empty for other runs."""
    model = objective.model
    if not isinstance(model, DualEncoder):
        return ""
    video, text = (
        sum(parameter.numel() for parameter in tower.parameters()) / 1e6
        for tower in (model.video, model.text)
    )
    said = f"pairs: both towers are timed and in the GFLOPs, video {video:.3g} M and text {text:.3g} M parameters"
    if sees_twice(objective, config.train):
        return (
            f"{said}; a step of several micro-batches runs their forward twice, which is timed too, but in the GFLOPs "
            "once. Not counted: the memory of a step's clips until their second forward, and comparing pairs of "
            "different micro-batches and devices"
        )
    return said + ("; not counted: comparing pairs of different devices" if num_devices > 1 else "")
