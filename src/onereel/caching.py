"""The features of a frozen spatial half: made once, before a run, and read in place of its clips from then on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

from onereel import build
from onereel.config import RunConfig
from onereel.data.dataset import ClipDataset
from onereel.data.features import FeatureCache, claim
from onereel.data.loader import ClipLoader
from onereel.models.dual_encoder import DualEncoder
from onereel.models.factorised import FactorisedEncoder
from onereel.models.video_model import VideoModel
from onereel.seeding import clip_generators
from onereel.training import World, compute_dtype, is_main, run_lock, run_on_main
from onereel.types import Batch, FrameFeatures

FOLDER = "features"
"""Of a run, where data.cache names no other."""


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
        ConfigError: the folder holds features of something else, or another process is making them.
        DataError: too many clips could not be read, or features don't fit data.cache_dtype.
    """
    video = model.video if isinstance(model, DualEncoder) else model
    assert isinstance(video, VideoModel)  # the configuration says both
    encoder = video.encoder
    assert isinstance(encoder, FactorisedEncoder)
    folder = Path(config.data.cache or run / FOLDER)
    key = build.build_feature_key(config, encoder, dataset.annotations, world.device)
    discard = not config.data.cache and not resumed
    run_on_main(lambda: claim(folder, key, discard=discard))
    cache = build.build_feature_cache(config, encoder, len(dataset), folder)
    views = range(cache.num_views)
    missing = run_on_main(lambda: [view for view in views if not cache.done(view).all()])
    if missing:
        with ExitStack() as held:
            run_on_main(lambda: held.enter_context(run_lock(folder, "making features")))
            loader = build.build_encoding_loader(config, dataset, world=world, folder=folder)
            maker = _Maker(config, video, cache, loader, world)
            for view in missing:
                maker.make(view)
            run_on_main(lambda: None)  # nobody reads before all have written
    return build.build_train_loader(config, dataset, world=world, run=run, features=cache)


class _Maker:
    """Makes the features of this process's share of a view."""

    def __init__(
        self,
        config: RunConfig,
        model: VideoModel,
        cache: FeatureCache,
        loader: ClipLoader,
        world: World,
    ) -> None:
        self.model, self.cache, self.loader, self.world = model, cache, loader, world
        self.seed = config.seed
        self.dtype = compute_dtype(config.train.precision, world.device)
        self.augment = build.build_encoding_augment(config)

    def make(self, view: int) -> None:
        """Read, encode and write what view `view` lacks; nothing of it is done twice."""
        start = time.perf_counter()
        done = self.cache.done(view)
        first = self._first_missing(view, done)
        writer = self.cache.writer(view, self.world.rank)
        # Frame selection draws in training mode, and so must the views; the spatial half stays as it is.
        self.model.train()
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
        device = self.world.device
        batch = self.augment(batch, device)
        half = self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype, enabled=half):
            generators = clip_generators(self.seed, batch.keys)
            return self.model.frame_features(batch.clips, batch.scoring_clips, generators)
