"""What a run reads: annotations, datasets, loaders, augmentation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from onereel.build.selection import build_picker, frames_read, train_shapes
from onereel.config import DataConfig, RunConfig
from onereel.data.annotations import Annotations, paragraphs, read_annotations
from onereel.data.augment import BatchAugment
from onereel.data.dataset import ClipDataset
from onereel.data.features import FeatureCache
from onereel.data.holding_out import hold_out
from onereel.data.loader import ClipLoader
from onereel.data.shapes import FlexibleShapes
from onereel.data.sources.epic import are_actions
from onereel.errors import ConfigError, DataError
from onereel.models.registry import patch_size_of
from onereel.training import World, is_main
from onereel.video.library import VideoLibrary, open_library
from onereel.video.schedule import num_cores

logger = logging.getLogger(__name__)

OF_TRAINING = (
    *("train", "hold_out_ratio", "max_bad_ratio", "num_frames_choices", "size_choices"),
    *("token_window", "crop", "crop_scale", "crop_ratio", "repeats"),
    *("cache_views", "cache", "cache_dtype"),
)
"""Fields of a run's data that only training reads."""
NUM_PROBED = 1000
"""Videos of a training list that are looked for, before all are: a million on a network drive take minutes."""


def build_library(config: RunConfig, annotations: Annotations) -> VideoLibrary:
    """Where the pixels come from: the chunk store, or the raw files under the list's root."""
    return open_library(
        config.data.store, root=annotations.root, timeout_seconds=config.data.timeout_seconds
    )


def check_tested(data: DataConfig, before: DataConfig) -> None:
    """Raise ConfigError for a setting that was given, that is, changed from `before`, and that tests would ignore."""
    for name in OF_TRAINING:
        given = getattr(data, name)
        if given != getattr(before, name):
            raise ConfigError(
                f"data.{name} is {given}, but only training uses it, and a test is the same with any: leave it out"
            )


def build_annotations(config: RunConfig, path: str) -> Annotations:
    """The records of a list; ids of videos become the names of those in the store, or below the list's root."""
    annotations = read_annotations(path, config.data.root)
    if config.data.captions == "paragraph":
        annotations = paragraphs(annotations)
    if not annotations.origin.by_id:
        return annotations
    return annotations.located(build_library(config, annotations).videos())


def warn_of_left_out(annotations: Annotations) -> None:
    """Say how many entries of a list are no records, and why."""
    counts = [f"{count} {reason}" for reason, count in annotations.origin.left_out.items()]
    if counts and is_main():
        logger.warning("%s: entries left out: %s", annotations.source, ", ".join(counts))


def warn_of_rare(class_names: Sequence[str], annotations: Annotations) -> None:
    """Name the classes of which there is one clip."""
    rare = [name for name, count in annotations.label_counts().items() if count == 1]
    if class_names and rare and is_main():
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        shown = ", ".join(map(repr, rare[:5]))
        logger.warning("%s: one clip only of %s%s", annotations.source, shown, more)


def split_held_out(
    config: RunConfig, annotations: Annotations
) -> tuple[Annotations, Annotations | None]:
    """The records of a training list that are trained on, and those that `data.hold_out_ratio` keeps from it (None:
    it keeps none)."""
    if not config.data.hold_out_ratio:
        return annotations, None
    return hold_out(annotations, config.data.hold_out_ratio, config.seed)


def class_names(config: RunConfig, annotations: Annotations) -> tuple[str, ...]:
    """The classes of a run, in the order of their numbers: the labels of its training list; none where no label is
    learned.

    Actions (a verb and a noun) that only the validation list has are classes too, as published for
    EPIC-KITCHENS-100: their verbs and nouns are trained, and their share counts when actions are summed up.

    Raises DataError where a classification has no labels.
    """
    if config.objective.kind != "classification":
        return ()
    names = annotations.label_names()
    if not names:
        raise DataError(f"{annotations.source} has no labels; classification needs a label column")
    if not config.data.val or not are_actions(names):
        return names
    return tuple(sorted({*names, *build_annotations(config, config.data.val).label_names()}))


def build_dataset(
    config: RunConfig,
    annotations: Annotations,
    label_names: tuple[str, ...] | None,
    *,
    training: bool,
) -> ClipDataset:
    """Clips of `annotations`: random ones in training, num_clips x num_crops fixed ones in testing."""
    data, views = config.data, config.eval
    return ClipDataset(
        annotations,
        build_library(config, annotations),
        num_frames=frames_read(config),
        sampling=data.sampling,
        sampling_rate=data.sampling_rate,
        size=data.size,
        crop=data.crop if training else "center",
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        seed=config.seed,
        training=training,
        label_names=label_names,
        num_clips=1 if training else views.num_clips,
        num_crops=1 if training else views.num_crops,
        num_epochs=data.cache_views if training else 0,
        scaling=data.scaling,
    )


def check_present(dataset: ClipDataset) -> None:
    """Raise DataError where a video of a test list is not there."""
    paths = _paths(dataset.annotations)
    if missing := [path for path in paths if path not in dataset.library]:
        raise _not_there(dataset.annotations, missing, len(paths), "")


def check_mostly_present(dataset: ClipDataset, max_bad_ratio: float) -> None:
    """Raise DataError where so many videos of a training list are not there that the run would stop at them.

    Some spread over the list are looked for; all where more than `max_bad_ratio` of these are missing.
    """
    annotations, library = dataset.annotations, dataset.library
    paths = _paths(annotations)
    probed = paths[:: max(1, len(paths) // NUM_PROBED)]
    missing = [path for path in probed if path not in library]
    if len(missing) <= max_bad_ratio * len(probed):
        return
    if len(probed) < len(paths):
        missing = [path for path in paths if path not in library]
    # The loader, too, lets one pass.
    allowed = max(1.0, max_bad_ratio * len(annotations)) if max_bad_ratio else 0.0
    num_records = pc.sum(pc.is_in(annotations.table["path"], pa.array(missing))).as_py()
    if num_records > allowed:
        or_else = f", or raise data.max_bad_ratio, which is {max_bad_ratio:g}"
        raise _not_there(annotations, missing, len(paths), or_else)


def _paths(annotations: Annotations) -> list[str]:
    """Each video once."""
    return annotations.table["path"].unique().to_pylist()


def _not_there(
    annotations: Annotations, missing: list[str], num_videos: int, or_else: str
) -> DataError:
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return DataError(
        f"{annotations.source}: {len(missing)} of {num_videos} videos are not there: "
        f"{', '.join(missing[:5])}{more}. Correct the list, data.root or data.store{or_else}; "
        "`onereel prepare --check LIST` names all, and with --usable NEW.csv writes the list without them"
    )


def num_workers(config: RunConfig, devices_here: int = 1) -> int:
    """Decoding processes per device: as configured, or the cores that the training processes leave over."""
    if config.data.num_workers >= 0:
        return config.data.num_workers
    return max(1, num_cores() // devices_here - 1)


def num_threads(config: RunConfig, devices_here: int = 1) -> int:
    """CPU threads of a training process: as configured, or the cores that its workers leave over.

    One thread too many costs more than it brings: the threads of a matrix product wait for the slowest of them.
    """
    if config.train.num_threads:
        return config.train.num_threads
    return max(1, num_cores() // devices_here - num_workers(config, devices_here))


def build_train_loader(
    config: RunConfig,
    dataset: ClipDataset,
    *,
    world: World,
    run: Path,
    features: FeatureCache | None = None,
) -> ClipLoader:
    """Shuffled clips for one rank, or what a cache of `features` has in their place."""
    workers = num_workers(config, world.world_size)
    return ClipLoader(
        dataset,
        batch_size=config.train.batch_size_per_device,
        seed=config.seed,
        shuffle=True,
        drop_last=True,
        accum_steps=config.train.accum_steps,
        rank=world.rank,
        world_size=world.world_size,
        # One process keeps up with any disk: features are copied, not decoded.
        num_workers=workers if features is None else min(workers, 1),
        prefetch=config.data.prefetch,
        repeats=config.data.repeats,
        max_bad_ratio=config.data.max_bad_ratio,
        quarantine=run / "quarantine.csv",
        pin_memory=world.device.type == "cuda",
        pick=build_picker(config, training=True) if features is None else None,
        hflip_prob=config.augment.hflip_prob,
        shapes=FlexibleShapes(train_shapes(config), config.seed)
        if config.data.is_flexible
        else None,
        features=features,
    )


def build_eval_loader(
    config: RunConfig, dataset: ClipDataset, *, world: World, quarantine: Path | None = None
) -> ClipLoader:
    """Every view of every record once, in order. A record that cannot be read raises, or, with `quarantine`, is
    written there and left out."""
    return ClipLoader(
        dataset,
        batch_size=config.eval.batch_size_per_device,
        seed=config.seed,
        shuffle=False,
        drop_last=False,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=num_workers(config, world.world_size),
        prefetch=config.data.prefetch,
        strict=quarantine is None,
        max_bad_ratio=1.0,
        quarantine=quarantine,
        pin_memory=world.device.type == "cuda",
        pick=build_picker(config, training=False),
    )


def build_augment(config: RunConfig, num_classes: int | None, *, training: bool) -> BatchAugment:
    """Batch augmentation; None classes where there are no labels to mix."""
    in_loader = config.tokens.where == "loader"
    return BatchAugment(
        config.augment,
        num_classes,
        config.seed,
        training=training,
        patch_size=patch_size_of(config.model.name) if in_loader else None,
        num_epochs=config.data.cache_views if training else 0,
    )
