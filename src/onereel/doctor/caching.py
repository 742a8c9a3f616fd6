"""A cache of the frozen half's features, or of a teacher's: whether it pays, what it takes, how fast it is made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from onereel import build
from onereel.config import RunConfig
from onereel.doctor.steps import Examples, at_fitting_size
from onereel.evaluation.efficiency import seconds_in_turn
from onereel.evaluation.inference import autocast
from onereel.models.dual_encoder import video_of
from onereel.models.factorised import FactorisedEncoder
from onereel.models.teachers import FeatureRow, TeacherFeatures
from onereel.models.video_model import VideoModel
from onereel.objectives import AnyObjective, DistillationObjective
from onereel.seeding import clip_generators
from onereel.types import Batch, FrameFeatures, SampleKey

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
EXAMPLE_VIEWS = 4


def cache_bytes(
    num_samples: int, num_frames: int, width: int, *, num_views: int = 1, dtype: str = "float16"
) -> int:
    """Bytes of the features of `num_views` views: a vector of `width` values per sample and tubelet in time.

    Args:
        num_frames: tubelets in time of a clip.
        dtype: a name of data.cache_dtype.
    """
    return num_samples * num_frames * width * num_views * BYTES[dtype]


def caching_advice(config: RunConfig, encoder: object, num_samples: int) -> str:
    """What to know of data.cache_views for a run over `num_samples` clips; empty where nothing is frozen.

    Without a cache, each epoch decodes and encodes every clip; with K views that is done K times in all, or once per
    epoch where these are fewer.
    """
    if config.model.frozen != "spatial" or not isinstance(encoder, FactorisedEncoder):
        return ""
    num_frames = config.data.num_frames // encoder.tubelet_size
    width = encoder.num_layers * encoder.embed_dim
    size = cache_bytes(num_samples, num_frames, width, dtype=config.data.cache_dtype)
    epochs, views = config.train.epochs, build.views_read(config)
    what = f"cache: {num_samples} clips x {num_frames} frames x {width} values in {config.data.cache_dtype} are "
    if not views:
        example = min(EXAMPLE_VIEWS, epochs)
        return (
            f"{what}{_gigabytes(size)} per view. With --data.cache_views K clips are decoded, and seen by the frozen "
            f"half, K times and not {epochs} times: it pays for K < {epochs} (K = {example}: {example / epochs:.0%} "
            f"of that work, {_gigabytes(example * size)})"
        )
    takes = f"{what}{_gigabytes(size)} per view, {_gigabytes(views * size)} for {views}"
    free = _free_bytes(config.data.cache)
    if free is not None and free < views * size:
        takes += f", and {_gigabytes(free)} are free"
    if views < epochs:
        return f"{takes}; it pays: decoding and the frozen half do {views / epochs:.0%} of the work of {epochs} epochs"
    return f"{takes}; it doesn't pay: {epochs} epochs read no view twice. Set data.cache_views lower, or to 0"


def measure_making(config: RunConfig, objective: AnyObjective, examples: Examples) -> float:
    """Clips per second of what a cache is made of: a frozen half's features, or a teacher's.

    Raises ConfigError as `measure_objective`.
    """

    def seconds(size: int, repeats: int = 1) -> float:
        batch = examples.batch(size)
        device = batch.clips.device
        (times,) = seconds_in_turn([lambda: made(config, objective, batch)], device, repeats, 1)
        return median(times)

    wanted = config.train.batch_size_per_device
    return at_fitting_size(wanted, seconds, lambda size: size / seconds(size, repeats=3))


@torch.no_grad()
def made(
    config: RunConfig, objective: AnyObjective, batch: Batch
) -> FrameFeatures | TeacherFeatures:
    """What a cache would hold of the clips of `batch`."""
    clips = batch.clips
    assert isinstance(clips, Tensor)
    with autocast(clips.device, config.train.precision):
        if isinstance(objective, DistillationObjective):
            return objective.ask(clips)
        generators = clip_generators(config.seed, batch.keys)
        model = video_of(objective.model)
        assert isinstance(model, VideoModel)  # the configuration says so
        return model.frame_features(clips, generators=generators)


@dataclass(frozen=True)
class _Said:
    """What a teacher said of one batch."""

    features: TeacherFeatures

    def recall(self, keys: Sequence[SampleKey], device: torch.device) -> TeacherFeatures:
        return self.features


def cached_batch(config: RunConfig, objective: AnyObjective, batch: Batch) -> Batch:
    """`batch` as a run with a cache trains on it: of features, or of clips whose lesson `objective` knows then."""
    features = made(config, objective, batch)
    if isinstance(features, TeacherFeatures):
        assert isinstance(objective, DistillationObjective)  # who else asks a teacher
        objective.lessons = _Said(features)
        return batch
    return replace(batch, clips=replace(features, values=features.values.float()))


def stored_bytes(config: RunConfig, objective: AnyObjective, examples: Examples) -> float:
    """What a cache takes for one view of a clip."""
    batch = examples.batch(len(examples.clips))
    features = made(config, objective, batch)
    if isinstance(features, TeacherFeatures):
        num_values = len(batch.keys) * sum(FeatureRow.like(features).sizes)
    else:
        num_values = features.values.numel()
    return num_values * BYTES[config.data.cache_dtype] / len(batch.keys)


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"


def _free_bytes(folder: str) -> int | None:
    """Of the disk that `folder` will lie on; None where the run's own folder, unknown yet, is meant."""
    if not folder:
        return None
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(there).free
