"""What a reading process does: records in, one batch out, and the failures beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from onereel.data.annotations import Record
from onereel.data.augment import mirror
from onereel.data.dataset import ClipReader, Sample
from onereel.data.features import FeatureReader
from onereel.data.workers import Watch
from onereel.data.yuv import black, stacked
from onereel.errors import DecodeError
from onereel.types import ClipShape, Packed, SampleKey, YuvClips

Job = tuple[Record, list[SampleKey]]
Pick = Callable[[Tensor, Sequence[SampleKey]], Packed]
"""uint8 clips `(B, T, C, H, W)` and their keys to the patches that are kept of them."""
DEADLY = "twice, the process that read it died"


class BatchJob(NamedTuple):
    """What is read at once.

    Attributes:
        jobs: records, each with the keys of its views.
        shape: that of flexible sampling.
        deadly: records among them that are not to be read, because processes die of them.
    """

    jobs: list[Job]
    shape: ClipShape | None
    deadly: frozenset[int]


class Failure(NamedTuple):
    record: Record
    key: SampleKey
    error: DecodeError


class Loaded(NamedTuple):
    """The fields of a Batch, and what failed."""

    clips: Tensor | Packed | YuvClips
    labels: Tensor | None
    captions: list[str] | None
    keys: list[SampleKey]
    num_clips: int
    failures: list[Failure]


class BatchReader(Dataset):
    """Reads whole batches, in a worker or in the training process.

    Args:
        pick: selects the tokens of a batch; None: batches are whole clips.
        hflip_prob: where there is `pick`: probability of mirroring a clip before it.
        watch: is told what is being read.
    """

    def __init__(
        self,
        reader: ClipReader | FeatureReader,
        pick: Pick | None,
        hflip_prob: float,
        watch: Watch,
    ) -> None:
        self.reader, self.pick, self.hflip_prob, self.watch = reader, pick, hflip_prob, watch

    def __getitem__(self, batch: BatchJob) -> Loaded:
        reader = self.reader
        if batch.shape is not None and isinstance(reader, ClipReader):
            reader = reader.shaped(batch.shape)
        samples: list[Sample] = []
        failures: list[Failure] = []
        for record, keys in batch.jobs:
            try:
                if record.index in batch.deadly:
                    raise DecodeError(record.path, DEADLY)
                with self.watch.reading(record.index):
                    samples += reader.read(record, keys)
            except DecodeError as error:
                failures.append(Failure(record, keys[0], error))
            except OSError as error:
                problem = DecodeError(record.path, error.strerror or str(error))
                failures.append(Failure(record, keys[0], problem))
        num_clips = len(samples)
        samples = samples or [_blank(reader, *batch.jobs[0])]
        labels = [sample.label for sample in samples if sample.label is not None]
        captions = [sample.caption for sample in samples if sample.caption is not None]
        return Loaded(
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
