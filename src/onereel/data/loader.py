"""Batches of clips: in a reproducible order, from several processes, without the samples that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from onereel.data.annotations import Annotations, Record
from onereel.data.augment import mirror
from onereel.data.dataset import ClipDataset, ClipReader, Sample
from onereel.data.features import FeatureCache, FeatureReader
from onereel.data.order import shuffled
from onereel.data.shapes import FlexibleShapes
from onereel.data.workers import main_hidden_from, received, worker_options
from onereel.data.yuv import black, stacked
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.types import Batch, ClipShape, Packed, SampleKey, YuvClips

log = logging.getLogger("onereel")

QUARANTINE_COLUMNS = ("path", "frame", "reason", "epoch", "index")
# Past this many samples of an epoch, a run in which most fail is a wrong root or store, not a few bad files.
HOPELESS_AFTER = 32

Job = tuple[Record, list[SampleKey]]
Pick = Callable[[Tensor, Sequence[SampleKey]], Packed]
"""uint8 clips `(B, T, C, H, W)` and their keys to the patches that are kept of them."""


class _BatchJob(NamedTuple):
    """What a worker reads at once; `shape` is that of flexible sampling."""

    jobs: list[Job]
    shape: ClipShape | None


class _Failure(NamedTuple):
    record: Record
    key: SampleKey
    error: DecodeError


class _Loaded(NamedTuple):
    """What a worker sends: the fields of a Batch, and what failed."""

    clips: Tensor | Packed | YuvClips
    labels: Tensor | None
    captions: list[str] | None
    keys: list[SampleKey]
    num_clips: int
    failures: list[_Failure]


class ClipLoader:
    """Batches of `dataset` for one rank; what they hold depends on neither the workers nor the history.

    An epoch is a sequence of clips: every record once, shuffled by (seed, epoch) or in order, its views side by side.
    Micro-batch j of rank r holds clips [(j * world_size + r) * batch_size, + batch_size) of it. In evaluation the
    views are those of the dataset, every one exactly once, and ranks may differ by one batch.

    A sample that cannot be read is left out of its batch, logged and written to the quarantine file; nothing stands in
    for it. DataError stops the run once an epoch has lost more than `max_bad_ratio` of its samples on this rank (and
    more than one); or, of 32 samples or more, more than half (and `max_bad_ratio`) of those read so far.

    Workers come from a fork server, a process that has imported what they need and does nothing else: they start in
    milliseconds, and hold no copy of the training process, whose threads may own locks at the moment of a plain fork
    and whose CUDA context does not survive one. They hold no annotations either; records travel to them with the keys.

    Args:
        batch_size: clips per micro-batch.
        shuffle: draw the order by (seed, epoch), and read on into the next epoch while one ends.
        drop_last: leave out the last global batch if it is incomplete.
        accum_steps: micro-batches of a step: those that fill none at the end of an epoch are not read.
        num_workers: reading processes; 0: in this process, when a batch is asked for.
        prefetch: batches that each worker reads ahead.
        repeats: views of each decoded sample in training, each a clip of the batch; an epoch has `repeats` times as
            many clips. Must divide `batch_size`, so that a sample's views share a batch.
        quarantine: CSV file that failed samples are appended to; ranks may share it.
        pin_memory: put batches into page-locked memory.
        strict: raise the DecodeError of the first sample that fails.
        pick: selects the tokens of a batch in the worker, so that only kept patches travel from there; None: batches
            are whole clips, and selection is left to the model.
        hflip_prob: where there is `pick`: probability of mirroring a clip before it, drawn as by `BatchAugment`.
        shapes: flexible sampling: frames and size of each micro-batch, in place of the dataset's.
        features: what stands for the clips of `dataset`: batches then hold `FrameFeatures`, and nothing is decoded.

    Raises ConfigError where the numbers don't fit together, DataError where an epoch has no batch.
    """

    def __init__(
        self,
        dataset: ClipDataset,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        accum_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        repeats: int = 1,
        max_bad_ratio: float = 0.01,
        quarantine: Path | None = None,
        pin_memory: bool = False,
        strict: bool = False,
        pick: Pick | None = None,
        hflip_prob: float = 0.0,
        shapes: FlexibleShapes | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        if batch_size % repeats:
            raise ConfigError(
                f"train.batch_size_per_device is {batch_size} clips and data.repeats {repeats}; "
                "allowed: a batch size that repeats divides, so that a sample's views share a batch"
            )
        self._plan = _Plan(
            dataset.annotations,
            batch_size=batch_size,
            views=dataset.num_views * repeats,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            accum_steps=accum_steps,
            rank=rank,
            world_size=world_size,
            shapes=shapes,
        )
        self._max_bad_ratio, self._strict = max_bad_ratio, strict
        # One bad file never stops a run, unless none is allowed.
        share = max_bad_ratio * self._plan.samples_per_epoch
        self._num_bad_allowed = max(1.0, share) if max_bad_ratio else 0.0
        self._quarantine, self._library = quarantine, dataset.library
        self._next: tuple[int, int] | None = None
        self._stream: Iterator[_Loaded] = iter(())
        options = worker_options(num_workers, prefetch, dataset.library) if num_workers else {}
        reader = dataset.reader if features is None else FeatureReader(features, dataset.reader)
        self._data_loader = DataLoader(
            _BatchReader(reader, pick, hflip_prob),
            batch_size=None,
            sampler=self._plan,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            # A generator of its own: by default torch would draw from the global one, and change the model's dropout.
            generator=torch.Generator(),
            **options,
        )

    @property
    def num_batches(self) -> int:
        """Batches of this rank in an epoch, those that fill no step counted."""
        return self._plan.num_batches

    def keys(self, epoch: int, batch: int) -> list[SampleKey]:
        """What batch `batch` of `epoch` holds, if all of it can be read."""
        return [key for _, keys in self._plan.jobs(epoch, batch) for key in keys]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start` and later of `epoch`, uint8 on the CPU; those before cost nothing. One iteration at a time.

        Raises:
            DataError: too many samples failed (see the class), or a worker was killed.
            DecodeError: a sample failed, and the loader is strict.
        """
        if start >= self._plan.num_read:
            return
        if self._next != (epoch, start):
            self._plan.first = (epoch, start)
            with main_hidden_from(self._library):
                self._stream = iter(self._data_loader)
        self._next = None
        seen = failed = 0
        for j in range(start, self._plan.num_read):
            loaded = received(self._stream, "lower data.num_workers or data.prefetch")
            seen += self._plan.num_samples(j)
            failed += len(loaded.failures)
            self._report(loaded.failures, seen, failed)
            self._next = self._plan.following(epoch, j)
            yield _to_batch(loaded, j)

    def _report(self, failures: list[_Failure], seen: int, failed: int) -> None:
        """Log and quarantine `failures`; raise if they are too many."""
        if failures and self._strict:
            raise failures[0].error
        for failure in failures:
            log.warning("skipped sample %d: %s", failure.key.index, failure.error)
        if failures and self._quarantine is not None:
            try:
                _append_to_quarantine(self._quarantine, failures)
            except OSError as error:
                log.warning(
                    "%s could not be written: %s", self._quarantine, error.strerror or error
                )
        too_many = failed > self._num_bad_allowed
        hopeless = seen >= HOPELESS_AFTER and failed > max(0.5, self._max_bad_ratio) * seen
        if failures and (too_many or hopeless):
            where = f" Every one is listed in {self._quarantine}." if self._quarantine else ""
            raise DataError(
                f"{failed} of {seen} samples of epoch {failures[-1].key.epoch} could not be read; allowed: "
                f"data.max_bad_ratio = {self._max_bad_ratio:g} of the epoch's {self._plan.samples_per_epoch}. "
                f"The last: {failures[-1].error}.{where} Repair or remove these files "
                "(`onereel prepare --check LIST --usable NEW.csv` leaves them out), check data.root and data.store, or "
                "raise data.max_bad_ratio"
            )


class _Plan(Sampler[_BatchJob]):
    """Which records and views each batch of this rank holds, and of which shape."""

    def __init__(
        self,
        annotations: Annotations,
        *,
        batch_size: int,
        views: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        accum_steps: int,
        rank: int,
        world_size: int,
        shapes: FlexibleShapes | None = None,
    ) -> None:
        self.annotations, self.shapes = annotations, shapes
        self.batch_size, self.views, self.seed, self.shuffle = batch_size, views, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.num_clips = len(annotations) * views
        global_batch = batch_size * world_size
        complete, rest = divmod(self.num_clips, global_batch)
        self.num_batches = complete + (not drop_last and rest > rank * batch_size)
        self.num_read = self.num_batches // accum_steps * accum_steps
        if self.num_batches == 0 and drop_last:
            raise DataError(
                f"{annotations.source} has {len(annotations)} records ({self.num_clips} clips an epoch), fewer than "
                f"one batch of {global_batch} over all devices: lower train.batch_size_per_device"
            )
        self.first = (0, 0)

    @property
    def samples_per_epoch(self) -> int:
        """Records that this rank reads in an epoch (an incomplete last batch counts as complete)."""
        return self.num_batches * self.batch_size // self.views

    def num_samples(self, batch: int) -> int:
        """Records in batch `batch` (in part: views of one test video may lie in two batches)."""
        return len(self._records(self._clips(batch)))

    def jobs(self, epoch: int, batch: int) -> list[Job]:
        """The records of one batch, each with the keys of its views."""
        clips = self._clips(batch)
        records = self._records(clips)
        indices = np.arange(records.start, records.stop)
        if self.shuffle:
            indices = shuffled(indices, len(self.annotations), self.seed, epoch)
        jobs = []
        for record, index in zip(records, indices.tolist()):
            views = range(
                max(clips.start - record * self.views, 0),
                min(clips.stop - record * self.views, self.views),
            )
            keys = [SampleKey(epoch, index, view) for view in views]
            jobs.append((self.annotations.record(index), keys))
        return jobs

    def __iter__(self) -> Iterator[_BatchJob]:
        """All batches from `first` on."""
        position: tuple[int, int] | None = self.first
        while position is not None:
            shape = None if self.shapes is None else self.shapes.draw(*position)
            yield _BatchJob(self.jobs(*position), shape)
            position = self.following(*position)

    def following(self, epoch: int, batch: int) -> tuple[int, int] | None:
        """The batch read after this one; a shuffled plan goes on into the next epoch."""
        if batch + 1 < self.num_read:
            return epoch, batch + 1
        return (epoch + 1, 0) if self.shuffle else None

    def _clips(self, batch: int) -> range:
        """Positions in the epoch's sequence of clips."""
        first = (batch * self.world_size + self.rank) * self.batch_size
        return range(first, min(first + self.batch_size, self.num_clips))

    def _records(self, clips: range) -> range:
        """Positions in the epoch's sequence of records."""
        return range(clips.start // self.views, -(-clips.stop // self.views))


class _BatchReader(Dataset):
    """Reads whole batches, in a worker or here."""

    def __init__(
        self, reader: ClipReader | FeatureReader, pick: Pick | None, hflip_prob: float
    ) -> None:
        self.reader, self.pick, self.hflip_prob = reader, pick, hflip_prob

    def __getitem__(self, batch: _BatchJob) -> _Loaded:
        jobs, shape = batch
        reader = self.reader
        if shape is not None and isinstance(reader, ClipReader):
            reader = reader.shaped(shape)
        samples: list[Sample] = []
        failures: list[_Failure] = []
        for record, keys in jobs:
            try:
                samples += reader.read(record, keys)
            except DecodeError as error:
                failures.append(_Failure(record, keys[0], error))
            except OSError as error:
                problem = DecodeError(record.path, error.strerror or str(error))
                failures.append(_Failure(record, keys[0], problem))
        num_clips = len(samples)
        samples = samples or [_blank(reader, *jobs[0])]
        labels = [sample.label for sample in samples if sample.label is not None]
        captions = [sample.caption for sample in samples if sample.caption is not None]
        return _Loaded(
            clips=self._clips(samples),
            labels=torch.tensor(labels) if labels else None,
            captions=captions or None,
            keys=[sample.key for sample in samples],
            num_clips=num_clips,
            failures=failures,
        )

    def _clips(self, samples: list[Sample]) -> Tensor | Packed | YuvClips:
        if isinstance(self.reader, FeatureReader):
            return self.reader.batch(samples)
        clips = stacked([sample.clip for sample in samples])
        if self.pick is None or isinstance(clips, YuvClips):
            return clips
        keys = [sample.key for sample in samples]
        mirror(clips, keys, self.hflip_prob, self.reader.seed)
        return self.pick(clips, keys)


def _blank(reader: ClipReader | FeatureReader, record: Record, keys: list[SampleKey]) -> Sample:
    """A black clip that keeps the shapes of a batch of which nothing could be read."""
    if isinstance(reader, FeatureReader):
        return reader.blank(record, keys)
    size = (reader.size, reader.size)
    clip = (
        black(reader.num_frames, size)
        if reader.scaling == "device"
        else torch.zeros(reader.num_frames, 3, *size, dtype=torch.uint8)
    )
    return Sample(keys[0], clip, reader.label_id(record), record.caption)


def _to_batch(loaded: _Loaded, number: int) -> Batch:
    return Batch(
        clips=loaded.clips,
        keys=loaded.keys,
        labels=loaded.labels,
        captions=loaded.captions,
        num_failed=len(loaded.failures),
        num_clips=loaded.num_clips,
        number=number,
    )


def _unchanged(loaded: Any) -> Any:
    return loaded


def _append_to_quarantine(path: Path, failures: list[_Failure]) -> None:
    """Append one row per failure; the lock lets the ranks of a run share the file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for failure in failures:
        error, key = failure.error, failure.key
        frame = "" if error.frame is None else error.frame
        writer.writerow((failure.record.path, frame, error.reason, key.epoch, key.index))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a file system without locks; an append is one write
            fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, io.SEEK_END) == 0:
            file.write(",".join(QUARANTINE_COLUMNS) + "\n")
        file.write(text.getvalue())
