"""Every moment of a list, or of whole videos cut into windows, as a row of `features.parquet`."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from onereel import build
from onereel.config import RunConfig, to_json
from onereel.data.annotations import Annotations
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.evaluation.inference import autocast, evaluating
from onereel.evaluation.scores import ViewSums
from onereel.loading import load_dual_encoder
from onereel.models.dual_encoder import DualEncoder
from onereel.moments.index import IndexFacts, MomentIndex, fingerprint
from onereel.moments.journal import Journal
from onereel.progress import Told
from onereel.seeding import clip_generators
from onereel.training import World, pick_device
from onereel.types import Batch, Quarantined, YuvClips
from onereel.video.library import VideoLibrary, open_library
from onereel.video.probe import VIDEO_SUFFIXES
from onereel.video.sources import list_sources

CUT = "add --window-seconds 5, say, to cut whole videos into moments"
SHORTEST_WINDOW = 0.5
"""A rest at the end of a video that is shorter than this share of a window belongs to the window before."""


@dataclass(frozen=True)
class EmbedReport:
    """What was written.

    Attributes:
        num_failed: moments that could not be read; `quarantine` names them, with the reason.
        broken: videos that could not be opened to be cut into windows.
    """

    path: Path
    num_moments: int
    num_videos: int
    num_failed: int
    quarantine: Path
    broken: tuple[Quarantined, ...] = ()

    def __str__(self) -> str:
        lines = [f"not read: {one.path}: {one.reason}" for one in self.broken]
        if self.num_failed:
            lines.append(f"not read: {self.num_failed} moments, see {self.quarantine}")
        wrote = f"wrote {self.path}: {self.num_moments} moments of {self.num_videos} videos"
        return "\n".join([*lines, wrote])


def embed(
    run: str | Path,
    source: str | Path = "",
    *,
    out: str | Path,
    store: str | Path = "",
    root: str | Path = "",
    window_seconds: float = 0.0,
    device: str = "auto",
    on_batch: Told | None = None,
) -> EmbedReport:
    """Embed moments by the video tower of a video-language run and write them as `out`.

    A moment that cannot be read is named in OUT_quarantine.csv, and the others are embedded. Interrupted and called
    again with the same model, moments and settings, it goes on where it was.

    Args:
        source: a list of moments; with `window_seconds`, a video, a folder or list of videos; with `store` too, empty:
            all of the store.
        store: chunk store to read from; empty: the files themselves.
        root: folder that relative paths of a list start from, and in which the videos are whose ids it names; empty:
            the list's own.
        window_seconds: cut every video into moments of this length; 0: the moments that the list names.
        on_batch: called with (batches done, batches).

    Raises:
        OnereelError: the run, the list or the settings cannot be used, or no moment could be read.
    """
    if not 0 <= window_seconds < math.inf:
        raise ConfigError(
            f"--window-seconds is {window_seconds:g}; allowed: above 0, or 0 for the moments that a list names"
        )
    if not source and not (store and window_seconds):
        given = f"{store} names no moments" if store else "nothing to embed is given"
        raise ConfigError(
            f"{given}: {CUT} (with --store and nothing else, all of the store), or give a list of moments: onereel "
            "embed RUN LIST --out features.parquet"
        )
    chosen = pick_device(device)
    trained = load_dual_encoder(run)
    config = _reading(trained.config, root, store)
    annotations, broken = _moments(config, str(source), window_seconds)
    model, path = trained.model.to(chosen), Path(out)
    quarantine = path.with_name(f"{path.stem}_quarantine.csv")
    journal = Journal(path, _key(model, config, annotations))
    sums = _embed_all(model, config, annotations, chosen, quarantine, journal, on_batch)
    index = _index(model, config, annotations, sums, quarantine)
    index.write(path)
    journal.remove()
    num_videos = len(set(index.table["path"].to_pylist()))
    num_failed = len(annotations) - len(index)
    return EmbedReport(path, len(index), num_videos, num_failed, quarantine, tuple(broken))


def _reading(config: RunConfig, root: str | Path, store: str | Path) -> RunConfig:
    """A run's configuration for moments that lie elsewhere, each at its own time whatever the run learned of videos."""
    root, store = (os.path.abspath(folder) if folder else "" for folder in (root, store))
    return replace(config, data=replace(config.data, root=root, store=store, captions="each"))


def _index(
    model: DualEncoder,
    config: RunConfig,
    annotations: Annotations,
    sums: ViewSums,
    quarantine: Path,
) -> MomentIndex:
    """The moments of which every view could be read. Raises DataError where there are none."""
    num_views = config.eval.num_clips * config.eval.num_crops
    sums.drop_incomplete(num_views)
    if not len(sums):
        raise DataError(
            f"none of the {len(annotations)} moments could be read; {quarantine} says why of each. Correct the list, "
            "--root or --store"
        )
    found = sums.mean(num_views)
    root = os.path.abspath(annotations.root or ".")
    facts = IndexFacts(fingerprint(model), root, config.data.store)
    table = moments_table(annotations, found.indices.numpy())
    return MomentIndex(table, found.probabilities.numpy(), facts)


def _moments(
    config: RunConfig, source: str, window_seconds: float
) -> tuple[Annotations, list[Quarantined]]:
    """The moments to embed, and videos that have none because they cannot be read."""
    if not window_seconds:
        return _listed(config, source), []
    if config.data.store:
        library, root = open_library(config.data.store), ""
        names: Sequence[str] = library.videos()
        if source:
            sources = list_sources(source, config.data.root)[1]
            names = [one.name if one.name in library else one.path for one in sources]
    else:
        root, sources = list_sources(source, config.data.root)
        library, names = open_library(root=root), [one.name for one in sources]
    return _windows(library, names, window_seconds, root)


def _listed(config: RunConfig, source: str) -> Annotations:
    """The moments that a list names; of a folder per class, each of its videos."""
    try:
        annotations = build.build_annotations(config, source)
    except DataError as error:
        if os.path.isdir(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES:
            raise ConfigError(
                f"{source} names no moments: {CUT}, or give a list with columns path,start,end ({error})"
            ) from error
        raise
    build.warn_of_left_out(annotations)
    return annotations


def _windows(
    library: VideoLibrary, names: Sequence[str], seconds: float, root: str
) -> tuple[Annotations, list[Quarantined]]:
    if not names:
        raise DataError("there is no video to embed: the store, folder or list is empty")
    rows: list[tuple[str, float, float]] = []
    broken = []
    for name in names:
        try:
            duration = library.info(name).duration_seconds
        except DecodeError as error:
            broken.append(Quarantined(name, error.reason, error.frame, where="embed"))
            continue
        bounds = np.arange(0, duration, seconds).tolist()
        if len(bounds) > 1 and duration - bounds[-1] < SHORTEST_WINDOW * seconds:
            bounds.pop()
        rows += [(name, *span) for span in zip(bounds, [*bounds[1:], duration])]
    if not rows:
        raise DataError(
            f"none of {len(names)} videos could be read; the first: {broken[0].path}: {broken[0].reason}"
        )
    columns = (pa.array(column) for column in zip(*rows, strict=True))
    table = pa.table(list(columns), names=["path", "start", "end"])
    return Annotations(table, "windows", root), broken


def _embed_all(
    model: DualEncoder,
    config: RunConfig,
    annotations: Annotations,
    device: torch.device,
    quarantine: Path,
    journal: Journal,
    on_batch: Told | None,
) -> ViewSums:
    """Embeddings of all moments that can be read, from where `journal` stands; the others are in `quarantine`."""
    sums, done, listed = journal.read()
    if not done:
        quarantine.unlink(missing_ok=True)
    elif quarantine.exists():
        os.truncate(quarantine, min(listed, quarantine.stat().st_size))
    dataset = build.build_dataset(config, annotations, None, training=False)
    loader = build.build_eval_loader(
        config, dataset, world=World(0, 1, device), quarantine=quarantine
    )
    augment = build.build_augment(config, None, training=False)
    with evaluating(model):
        for number, batch in enumerate(loader.batches(epoch=0, start=done), done + 1):
            if batch.num_clips:
                sums.add(batch.keys, _encoded(model, config, augment(batch, device)))
            journal.keep(sums, number, dataset.num_views, quarantine)
            if on_batch is not None:
                on_batch(number, loader.num_batches)
    return sums


def _encoded(model: DualEncoder, config: RunConfig, batch: Batch) -> torch.Tensor:
    """Embeddings `(B, E)` of a normalised batch."""
    assert not isinstance(batch.clips, YuvClips)  # augmentation has made pictures of them
    generators = clip_generators(config.seed, batch.keys)
    with autocast(batch.clips.device, config.train.precision):
        return model.encode_video(batch.clips, batch.scoring_clips, generators)[0]


def _key(model: DualEncoder, config: RunConfig, annotations: Annotations) -> str:
    """Tells what is embedded, by what and how, from anything else."""
    columns = [name for name in ("path", "start", "end") if name in annotations.table.column_names]
    moments = [annotations.table[name].to_pylist() for name in columns]
    told = (fingerprint(model), to_json(config), os.path.abspath(annotations.root or "."), moments)
    return hashlib.blake2b(repr(told).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def moments_table(annotations: Annotations, rows: np.ndarray) -> pa.Table:
    """Columns path, start, end, caption of these records; of several captions the first."""
    records = [annotations.record(int(row)) for row in rows]
    return pa.table(
        {
            "path": pa.array([record.path for record in records], pa.string()),
            "start": pa.array([record.start for record in records], pa.float64()),
            "end": pa.array([record.end for record in records], pa.float64()),
            "caption": pa.array([record.caption for record in records], pa.string()),
        }
    )
