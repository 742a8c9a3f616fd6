"""Record to clip: the draws become a ClipSpec of plain integers, and a video library reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.config import DataConfig
from onereel.data.annotations import Annotations, Record
from onereel.data.cropping import (
    center_box,
    multi_scale_box,
    random_resized_box,
    three_crop_box,
    union_box,
)
from onereel.data.relevancy import SentencePool
from onereel.data.sampling import dense_frames, frame_span, segment_frames
from onereel.errors import ConfigError, DataError, DecodeError, unknown_name
from onereel.seeding import numpy_generator
from onereel.types import ClipShape, ClipSpec, CropBox, SampleKey, YuvClips
from onereel.video.planes import cut

if TYPE_CHECKING:
    from onereel.video.library import VideoLibrary

SAMPLINGS = ("segment", "dense")
CROPS = ("random-resized", "multi-scale", "center")


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip: uint8 `(T, 3, H, W)` RGB, or as it was decoded; and what is known about it."""

    key: SampleKey
    clip: Tensor | YuvClips
    label: int | None
    caption: str | None


@dataclass(frozen=True)
class ClipReader:
    """Everything but the annotations: what a worker process needs to turn a record into clips.

    In training, frames are drawn by (seed, epoch, index) and crops by (seed, epoch, index, view): the views of a
    sample share their frames. In testing, view = clip * num_crops + crop, and nothing is drawn. Mirroring is
    left to the device (`data.augment`), or to the loader where that selects tokens.

    Attributes:
        num_frames, sampling, sampling_rate, size, crop, crop_scale, crop_ratio: as in DataConfig.
        label_ids: class of each label, or None where labels are not wanted.
        sentences: of a retrieval list, whose training clips are paired with any sentence that is relevant enough.
        num_clips, num_crops: views of each video in testing.
        num_epochs: epochs that draw anew; those that follow repeat them (0: all do).
        scaling: as in DataConfig.
    """

    library: VideoLibrary
    num_frames: int
    sampling: str
    sampling_rate: int
    size: int
    crop: str
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    seed: int
    training: bool
    label_ids: dict[str, int] | None
    sentences: SentencePool | None = None
    num_clips: int = 1
    num_crops: int = 1
    num_epochs: int = 0
    scaling: str = "loader"

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise unknown_name("data.sampling", self.sampling, SAMPLINGS)
        if self.crop not in CROPS:
            raise unknown_name("data.crop", self.crop, CROPS)
        if self.num_crops not in (1, 3):
            raise ConfigError(f"eval.num_crops is {self.num_crops}; allowed: 1 or 3")

    @property
    def num_views(self) -> int:
        """Views of each video in testing; training makes as many as the loader repeats."""
        return 1 if self.training else self.num_clips * self.num_crops

    def shaped(self, shape: ClipShape) -> ClipReader:
        """The same with clips of another shape; their crops and moments are those they would have had."""
        return replace(self, num_frames=shape.num_frames, size=shape.size)

    def spec(self, record: Record, key: SampleKey) -> ClipSpec:
        """The clip of `key`, in integers; a pure function of record, key and the settings.

        Raises DecodeError where the video is unknown or unusable, or the record lies outside it.
        """
        info, key = self.library.info(record.path), key.drawn(self.num_epochs)
        try:
            span = frame_span(info, record.start, record.end)
            box = self._box(info.height, info.width, key)
        except DataError as error:
            raise DecodeError(record.path, str(error)) from error
        return ClipSpec(record.path, self._frames(span, key), box, (self.size, self.size))

    def read(self, record: Record, keys: Sequence[SampleKey]) -> list[Sample]:
        """The views `keys` of one record. Raises DecodeError.

        In training all of them come from one decode of the area that holds every crop, and are cropped and (where the
        loader scales) resized from it in uint8, which leaves each within rounding of its own read; a view that is
        alone, and every view in testing, is read by its own spec.
        """
        specs = [self.spec(record, key) for key in keys]
        clips: Sequence[Tensor | YuvClips]
        if self.training and len(specs) > 1:
            clips = self._read_together(specs)
        elif self.scaling == "device":
            clips = [self.library.read_yuv(spec) for spec in specs]
        else:
            clips = [self.library.read(spec) for spec in specs]
        label = self.label_id(record)
        return [
            Sample(key, clip, label, self.caption(record, key)) for key, clip in zip(keys, clips)
        ]

    def _read_together(self, specs: Sequence[ClipSpec]) -> Sequence[Tensor | YuvClips]:
        box = union_box([spec.crop for spec in specs])
        whole = replace(specs[0], crop=box, size=(box.height, box.width))
        if self.scaling == "device":
            coded = self.library.read_yuv(whole)
            return [cut(coded, box, spec.crop, spec.size) for spec in specs]
        frames = _interleaved(self.library.read(whole))
        return [_crop_and_resize(frames, box, spec) for spec in specs]

    def label_id(self, record: Record) -> int | None:
        """The number of the record's class, or None where labels are not wanted."""
        return None if self.label_ids is None else self.label_ids[str(record.label)]

    def caption(self, record: Record, key: SampleKey) -> str | None:
        """What is said about the clip of `key`: in training one of several, drawn by (seed, epoch, index, view)."""
        if not self.training or (self.sentences is None and not record.captions):
            return record.caption
        generator = numpy_generator(self.seed, key.epoch, key.index, key.view, "caption")
        if self.sentences is not None:
            return self.sentences.draw(key.index, generator)
        return record.captions[int(generator.integers(len(record.captions)))]

    def _frames(self, span: tuple[int, int], key: SampleKey) -> tuple[int, ...]:
        generator, clip = None, key.view // self.num_crops
        if self.training:
            generator = numpy_generator(self.seed, key.epoch, key.index, "frames")
        if self.sampling == "segment":
            return segment_frames(*span, self.num_frames, generator, clip, self.num_clips)
        return dense_frames(
            *span, self.num_frames, self.sampling_rate, generator, clip, self.num_clips
        )

    def _box(self, height: int, width: int, key: SampleKey) -> CropBox:
        if not self.training and self.num_crops == 3:
            return three_crop_box(height, width, key.view % 3)
        if not self.training or self.crop == "center":
            return center_box(height, width)
        generator = numpy_generator(self.seed, key.epoch, key.index, key.view, "crop")
        if self.crop == "multi-scale":
            return multi_scale_box(height, width, generator)
        return random_resized_box(height, width, generator, self.crop_scale, self.crop_ratio)


class ClipDataset:
    """Clips of annotated videos, by SampleKey.

    Args:
        label_names: classes in the order of their numbers, from the training list; None: no labels are read.

    Raises DataError where a record has no label, or one that is not in `label_names`. The other arguments are
    those of `ClipReader`.
    """

    def __init__(
        self,
        annotations: Annotations,
        library: VideoLibrary,
        *,
        num_frames: int,
        sampling: str = "segment",
        sampling_rate: int = 4,
        size: int,
        crop: Literal["random-resized", "multi-scale", "center"] = "random-resized",
        crop_scale: tuple[float, float] = DataConfig.crop_scale,
        crop_ratio: tuple[float, float] = DataConfig.crop_ratio,
        seed: int,
        training: bool,
        label_names: tuple[str, ...] | None,
        num_clips: int = 1,
        num_crops: int = 1,
        num_epochs: int = 0,
        scaling: Literal["loader", "device"] = "loader",
    ) -> None:
        if label_names is not None:
            annotations.check_labels(label_names)
        self.annotations, self.library = annotations, library
        self.label_names = label_names
        self.reader = ClipReader(
            library=library,
            num_frames=num_frames,
            sampling=sampling,
            sampling_rate=sampling_rate,
            size=size,
            crop=crop,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            seed=seed,
            training=training,
            label_ids=None if label_names is None else {n: i for i, n in enumerate(label_names)},
            sentences=annotations.origin.sentences,
            num_clips=num_clips,
            num_crops=num_crops,
            num_epochs=num_epochs,
            scaling=scaling,
        )

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def num_views(self) -> int:
        """Views of each video: num_clips * num_crops in testing, 1 in training (the loader's `repeats` adds more)."""
        return self.reader.num_views

    def spec(self, key: SampleKey) -> ClipSpec:
        """The clip of `key`, in integers; pure. Raises DecodeError (see `ClipReader.spec`)."""
        return self.reader.spec(self.annotations.record(key.index), key)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Read the clip of `key`. Raises DecodeError; TypeError for a number, as a plain DataLoader gives it."""
        if not isinstance(key, SampleKey):
            # Taken as a sample of epoch 0, it would be the same frames and crop in every epoch.
            raise TypeError(
                f"a sample is asked for by SampleKey(epoch, index), not by {key!r}: give DataLoader a sampler of such "
                "keys and a collate_fn for onereel.data.dataset.Sample, or take onereel.data.loader.ClipLoader"
            )
        return self.reader.read(self.annotations.record(key.index), [key])[0]

    def read_views(self, index: int, epoch: int, views: Sequence[int]) -> list[Sample]:
        """Several views of one record, in training from one decode. Raises DecodeError."""
        keys = [SampleKey(epoch, index, view) for view in views]
        return self.reader.read(self.annotations.record(index), keys)


def _interleaved(frames: Tensor) -> Tensor:
    """The same `(T, 3, h, w)` with the colours of a pixel side by side: uint8 resizes 2.5 times as fast so.

    Plane by plane, because `Tensor.to(memory_format=...)` takes twice the time.
    """
    interleaved = torch.empty_like(frames, memory_format=torch.channels_last)
    for channel in range(3):
        interleaved[:, channel] = frames[:, channel]
    return interleaved


def _crop_and_resize(frames: Tensor, area: CropBox, spec: ClipSpec) -> Tensor:
    """The pixels of `spec` cut from uint8 `frames (T, 3, h, w)` that show `area` at source resolution."""
    crop = spec.crop
    top, left = crop.top - area.top, crop.left - area.left
    part = frames[:, :, top : top + crop.height, left : left + crop.width]
    return F.interpolate(part, spec.size, mode="bilinear", antialias=True).contiguous()
