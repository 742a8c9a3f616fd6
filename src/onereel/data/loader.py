"""Batches of clips: in a reproducible order, from several processes, without the samples that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from onereel.data.annotations import Annotations
from onereel.data.batch_reader import BatchJob, BatchReader, Failure, Job, Loaded, Pick
from onereel.data.dataset import ClipDataset
from onereel.data.features import FeatureCache, FeatureReader
from onereel.data.order import shuffled
from onereel.data.shapes import FlexibleShapes
from onereel.data.workers import (
    DeadWorkerError,
    Watch,
    main_hidden_from,
    received,
    worker_options,
)
from onereel.errors import ConfigError, DataError
from onereel.types import Batch, SampleKey

log = logging.getLogger("onereel")

QUARANTINE_COLUMNS = ("path", "frame", "reason", "epoch", "index")
# Past this many samples of an epoch, a run in which most fail is a wrong root or store, not a few bad files.
HOPELESS_AFTER = 32
# A file of which a worker dies does so again; who dies of too little memory dies at any. So many unexplained deaths
# are borne.
MANY_SUSPECTS, UNKNOWN = 8, -1


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
    One that dies is replaced, and what it was reading is read again; of what two die of, the sample fails.

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
        self._stream: Iterator[Loaded] = iter(())
        self._watch = Watch(num_workers)
        self._suspects: list[int] = []
        reader = dataset.reader if features is None else FeatureReader(features, dataset.reader)
        self._reader = BatchReader(reader, pick, hflip_prob, self._watch)
        workers = worker_options(num_workers, prefetch, dataset.library) if num_workers else {}
        self._options = {"pin_memory": pin_memory, **workers}
        self._data_loader = self._new_data_loader()

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
            DataError: too many samples failed (see the class), or workers die whatever they read.
            DecodeError: a sample failed, and the loader is strict.
        """
        if start >= self._plan.num_read:
            return
        if self._next != (epoch, start):
            self._start_at(epoch, start)
        self._next = None
        seen = failed = 0
        for j in range(start, self._plan.num_read):
            loaded = self._receive(epoch, j)
            seen += self._plan.num_samples(j)
            failed += len(loaded.failures)
            self._report(loaded.failures, seen, failed)
            self._next = self._plan.following(epoch, j)
            yield _to_batch(loaded, j)

    def _new_data_loader(self) -> DataLoader:
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._plan,
            collate_fn=_unchanged,
            # A generator of its own: by default torch would draw from the global one, and change the model's dropout.
            generator=torch.Generator(),
            **self._options,
        )

    def _start_at(self, epoch: int, batch: int) -> None:
        self._plan.first = (epoch, batch)
        with main_hidden_from(self._library):
            self._stream = iter(self._data_loader)

    def _receive(self, epoch: int, batch: int) -> Loaded:
        """Batch `batch`; where a worker dies, from new ones."""
        while True:
            try:
                return received(self._stream, "lower data.num_workers or data.prefetch")
            except DeadWorkerError as error:
                self._judge(error)
                self._stream, self._data_loader = iter(()), self._new_data_loader()
                self._start_at(epoch, batch)

    def _judge(self, death: DeadWorkerError) -> None:
        """Leave out the records that workers have died of twice; raise `death` where memory is the likelier cause."""
        seen = self._watch.seen(death.pids)
        guilty = seen & set(self._suspects)
        self._plan.deadly |= guilty
        self._suspects = [one for one in self._suspects if one not in guilty]
        self._suspects += sorted(seen - guilty) if seen else [UNKNOWN]
        if len(self._suspects) > MANY_SUSPECTS:
            raise death
        paths = [self._plan.annotations.record(index).path for index in sorted(seen)]
        log.warning(
            "a data worker died%s; new ones go on, %s",
            f" while it read {', '.join(paths)}" if paths else "",
            "and leave that out" if guilty else "and read that again",
        )

    def _report(self, failures: list[Failure], seen: int, failed: int) -> None:
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


class _Plan(Sampler[BatchJob]):
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
        self.deadly: frozenset[int] = frozenset()

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

    def __iter__(self) -> Iterator[BatchJob]:
        """All batches from `first` on."""
        position: tuple[int, int] | None = self.first
        while position is not None:
            shape = None if self.shapes is None else self.shapes.draw(*position)
            jobs = self.jobs(*position)
            deadly = self.deadly.intersection(record.index for record, _ in jobs)
            yield BatchJob(jobs, shape, deadly)
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


def _to_batch(loaded: Loaded, number: int) -> Batch:
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


def _append_to_quarantine(path: Path, failures: list[Failure]) -> None:
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
