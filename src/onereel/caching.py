"""The features of frozen weights: made once, before a run, and then read in place of its clips or its teacher."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

from onereel import build
from onereel.config import RunConfig
from onereel.data.dataset import ClipDataset
from onereel.data.features import KEY, FeatureCache, claim, is_cache_of, remove_features
from onereel.data.loader import ClipLoader
from onereel.errors import ConfigError
from onereel.models.dual_encoder import video_of
from onereel.models.factorised import FactorisedEncoder
from onereel.models.teachers import FeatureRow, TeacherFeatures
from onereel.models.video_model import VideoModel
from onereel.objectives import AnyObjective, DistillationObjective
from onereel.seeding import clip_generators
from onereel.tokens.packing import cumulative_lengths, to_device
from onereel.training import World, compute_dtype, is_main, run_lock, run_on_main
from onereel.types import Batch, FrameFeatures, SampleKey, TubeletGrid, YuvClips

FOLDER = "features"
"""Of a run, where data.cache names no other."""
GIB = 2**30
POLL_SECONDS = 2.0


def discard_features(config: RunConfig, run: Path) -> None:
    """Remove the features that a run before left in `run`, unless this one will look there for its own.

    Raises ConfigError where a process is making them.
    """
    folder = run / FOLDER
    looks_there = Path(config.data.cache or folder).resolve() == folder.resolve()
    if (config.data.cache_views and looks_there) or not (folder / KEY).exists():
        return
    with run_lock(folder, "making features"):
        remove_features(folder)
    with suppress(OSError):
        folder.rmdir()  # only where nothing else lies there


def check_cache(
    config: RunConfig, objective: AnyObjective, dataset: ClipDataset, device: torch.device
) -> None:
    """Raise ConfigError, before anything is written or removed, where `data.cache` holds features of something else.

    What a first stage makes of the frozen half isn't known yet.
    """
    if not (config.data.cache_views and config.data.cache):
        return
    if isinstance(objective, DistillationObjective):
        key = build.build_lesson_key(config, objective, dataset.annotations, device)
    else:
        encoder = _frozen_encoder(objective.model)[1]
        key = build.build_feature_key(config, encoder, dataset.annotations, device)
    is_cache_of(Path(config.data.cache), key, (build.SPATIAL_WEIGHTS,) if config.after else ())


def _frozen_encoder(model: nn.Module) -> tuple[VideoModel, FactorisedEncoder]:
    """The model of videos in a run's model, and its encoder."""
    video = video_of(model)
    assert isinstance(video, VideoModel)  # the configuration says both
    assert isinstance(video.encoder, FactorisedEncoder)
    return video, video.encoder


def cached_loader(
    config: RunConfig,
    model: nn.Module,
    dataset: ClipDataset,
    *,
    world: World,
    run: Path,
    resumed: bool,
) -> ClipLoader:
    """The loader of a run that reads features in place of clips; those that are not there yet are made first.

    Every process makes its share, and all return when everything is there. What the model reads is what it would
    have made of the clips of epochs 0 to K - 1, and again of those from epoch K on.

    Args:
        model: on its device, with the weights that stay.
        resumed: whether the run goes on. One that begins removes what a run before it left in `run`, if it doesn't fit;
            features in a folder of their own are never removed.

    Raises:
        ConfigError: the folder holds features of something else, another process is making them, or the disk is too
            small.
        DataError: too many clips could not be read, or features don't fit data.cache_dtype.
    """
    video, encoder = _frozen_encoder(model)
    folder = Path(config.data.cache or run / FOLDER)
    key = build.build_feature_key(config, encoder, dataset.annotations, world.device)
    discard = not config.data.cache and not resumed
    run_on_main(lambda: claim(folder, key, discard=discard))
    cache = build.build_feature_cache(config, encoder, len(dataset), folder)
    _make_missing(config, cache, dataset, _frame_encoder(config, video, world), world)
    return build.build_train_loader(config, dataset, world=world, run=run, features=cache)


class CachedLessons:
    """What a teacher said of the views of each clip, in rows of a cache."""

    def __init__(self, cache: FeatureCache, row: FeatureRow) -> None:
        self.cache, self.row = cache, row

    def recall(self, keys: Sequence[SampleKey], device: torch.device) -> TeacherFeatures | None:
        """Of the training clips `keys`; None where one of them could not be read when its features were made."""
        found = [self.cache.read(key.index, key.epoch) for key in keys]
        rows = [values for part in found if part is not None for values in part[0]]
        if len(rows) < len(keys):
            return None
        return self.row.said(to_device(torch.stack(rows), device).float())


def cached_lessons(
    config: RunConfig,
    objective: DistillationObjective,
    dataset: ClipDataset,
    *,
    world: World,
    run: Path,
    resumed: bool,
) -> CachedLessons:
    """What the teacher says of every view of `dataset`; what is not there yet is asked first, by all processes.

    Args:
        resumed: as of `cached_loader`.

    Raises:
        OnereelError: as of `cached_loader`.
    """
    folder = Path(config.data.cache or run / FOLDER)
    key = build.build_lesson_key(config, objective, dataset.annotations, world.device)
    size, frames = config.data.size, build.frames_read(config)
    blank = torch.zeros(1, frames, 3, size, size, device=world.device)
    row = FeatureRow.like(objective.ask(blank))
    cache = FeatureCache(
        folder,
        num_samples=len(dataset),
        num_views=build.views_read(config),
        grid=TubeletGrid(1, 1, 1),
        embed_dim=sum(row.sizes),
        dtype=config.data.cache_dtype,
    )
    discard = not config.data.cache and not resumed
    run_on_main(lambda: claim(folder, key, discard=discard))
    _make_missing(config, cache, dataset, _lesson_encoder(config, objective, row, world), world)
    return CachedLessons(cache, row)


Encode = Callable[[Batch], FrameFeatures]


def _frame_encoder(config: RunConfig, model: VideoModel, world: World) -> Encode:
    """What the spatial half makes of a batch from the loader."""
    augment = build.build_encoding_augment(config)
    # Frame selection draws in training mode, and so must the views; the spatial half stays as it is.
    model.train()

    def encode(batch: Batch) -> FrameFeatures:
        batch = augment(batch, world.device)
        assert not isinstance(batch.clips, YuvClips)  # augmentation has made pictures of them
        generators = clip_generators(config.seed, batch.keys)
        return model.frame_features(batch.clips, batch.scoring_clips, generators)

    return encode


def _lesson_encoder(
    config: RunConfig, objective: DistillationObjective, row: FeatureRow, world: World
) -> Encode:
    """What the teacher says of a batch from the loader: for each clip one row, as of one frame."""
    augment = build.build_encoding_augment(config)

    def encode(batch: Batch) -> FrameFeatures:
        clips = augment(batch, world.device).clips
        assert isinstance(clips, torch.Tensor)  # the configuration refuses the loader's selection
        rows = row.rows(objective.ask(clips))
        lengths = (1,) * len(rows)
        return FrameFeatures(
            values=rows,
            lengths=lengths,
            cu_seqlens=cumulative_lengths(lengths, rows.device),
            coordinates=torch.zeros(len(rows), 3, dtype=torch.int64, device=rows.device),
            grid=TubeletGrid(1, 1, 1),
        )

    return encode


def _make_missing(
    config: RunConfig, cache: FeatureCache, dataset: ClipDataset, encode: Encode, world: World
) -> None:
    """Fill the cache, every process its share; all return when everything is there."""
    views = range(cache.num_views)
    missing = run_on_main(lambda: [view for view in views if not cache.done(view).all()])
    if not missing:
        return
    run_on_main(lambda: _check_disk(cache))
    with ExitStack() as held:
        run_on_main(lambda: held.enter_context(run_lock(cache.folder, "making features")))
        loader = build.build_encoding_loader(config, dataset, world=world, folder=cache.folder)
        maker = _Maker(config, encode, cache, loader, world)
        for view in missing:
            maker.make(view)
        _wait_for_others(cache, missing, world)


def _wait_for_others(cache: FeatureCache, views: list[int], world: World) -> None:
    """Nobody reads before all have written. Shares of hours of work may end further apart than a collective waits."""
    while world.world_size > 1 and not all(cache.done(view).all() for view in views):
        time.sleep(POLL_SECONDS)
    run_on_main(lambda: None)  # the main process holds the folder until all are here


def _check_disk(cache: FeatureCache) -> None:
    """Raise ConfigError, before hours of work, where the features would not fit."""
    done = sum(int(cache.done(view).sum()) for view in range(cache.num_views))
    clips = cache.num_samples * cache.num_views - done
    needed = clips * cache.bytes_per_clip
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        raise ConfigError(
            f"features of {clips} clips take {needed / GIB:.1f} GiB, and {cache.folder} has {free / GIB:.1f} GiB left; "
            "lower data.cache_views (or distill.num_layers), set data.cache_dtype to float16, or give another folder "
            "(--data.cache)"
        )


class _Maker:
    """Makes the features of this process's share of a view."""

    def __init__(
        self,
        config: RunConfig,
        encode: Encode,
        cache: FeatureCache,
        loader: ClipLoader,
        world: World,
    ) -> None:
        self.encode, self.cache, self.loader, self.world = encode, cache, loader, world
        self.dtype = compute_dtype(config.train.precision, world.device)

    def make(self, view: int) -> None:
        """Read, encode and write view `view`, from the first batch on that lacks something."""
        start = time.perf_counter()
        done = self.cache.done(view)
        first = self._first_missing(view, done)
        writer = self.cache.writer(view, self.world.rank)
        numbers = range(first, self.loader.num_batches)
        batches = zip(numbers, self.loader.batches(view, first), strict=True)
        try:
            for number, batch in self._shown(batches, len(numbers), view):
                asked = {key.index for key in self.loader.keys(view, number)}
                read = [key.index for key in batch.keys] if batch.num_clips else []
                writer.add(read, self._encoded(batch), sorted(asked - {*read}))
        except KeyboardInterrupt:
            writer.flush()
            raise
        writer.flush()
        if is_main() and len(numbers):
            seconds = time.perf_counter() - start
            print(
                f"features of view {view + 1} of {self.cache.num_views} made in {seconds:.0f} s: {self.cache.folder}",
                flush=True,
            )

    def _first_missing(self, view: int, done: np.ndarray) -> int:
        """The first batch that holds a sample without features."""
        for number in range(self.loader.num_batches):
            if not all(done[key.index] for key in self.loader.keys(view, number)):
                return number
        return self.loader.num_batches

    def _shown(
        self, batches: Iterable[tuple[int, Batch]], total: int, view: int
    ) -> Iterator[tuple[int, Batch]]:
        """The same batches, with a bar on a terminal."""
        title = f"features, view {view + 1} of {self.cache.num_views}"
        hidden = not is_main() or not sys.stdout.isatty()
        yield from track(batches, title, total, disable=hidden)

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> FrameFeatures:
        half = self.dtype != torch.float32
        with torch.autocast(self.world.device.type, self.dtype, enabled=half):
            return self.encode(batch)
