"""A video library that draws its pixels: loader tests need no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from onereel.data.annotations import Annotations
from onereel.data.dataset import ClipDataset
from onereel.errors import DecodeError
from onereel.types import ClipSpec, VideoInfo

# A busy machine must not fail a property for being slow.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


class FakeLibrary:
    """Videos of one shape; a pixel is (frame + row + 2 * column) % 256 in source pixels, so that crops show.

    Names that start with "bad" cannot be read, "gone" cannot be opened, "disk" fails like a broken disk.
    """

    def __init__(
        self, num_frames: int = 60, height: int = 48, width: int = 64, num_chunk_frames: int = 0
    ) -> None:
        self.num_chunk_frames = num_chunk_frames
        self.shape = VideoInfo(num_frames, 30.0, height, width)
        self.reads: Counter[str] = Counter()

    def __contains__(self, video: str) -> bool:
        return not video.startswith("gone")

    def videos(self) -> list[str]:
        return []

    def chunk_frames(self, video: str) -> int:
        return self.num_chunk_frames

    def info(self, video: str) -> VideoInfo:
        if video not in self:
            raise DecodeError(video, "no such file")
        return self.shape

    def read(self, spec: ClipSpec) -> Tensor:
        self.reads[spec.video] += 1
        if spec.video.startswith("bad"):
            raise DecodeError(spec.video, "broken packet", frame=spec.frame_indices[0])
        if spec.video.startswith("disk"):
            raise OSError(5, "Input/output error")
        rows = torch.linspace(0, spec.crop.height - 1, spec.size[0]).round() + spec.crop.top
        columns = torch.linspace(0, spec.crop.width - 1, spec.size[1]).round() + spec.crop.left
        frames = torch.tensor(spec.frame_indices)
        pixels = frames[:, None, None] + rows[:, None] + 2 * columns
        return (pixels % 256).to(torch.uint8)[:, None].repeat(1, 3, 1, 1)


def make_annotations(
    paths: Sequence[str], labels: Sequence[str] | None = None, **more: Sequence
) -> Annotations:
    columns = {"path": pa.array(paths, pa.string()), **more}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.string())
    return Annotations(pa.table(columns), "list")


def make_dataset(
    paths: Sequence[str] | int = 10, library: FakeLibrary | None = None, **settings: object
) -> ClipDataset:
    """Three classes in turn; `paths` may be a number of good videos."""
    if isinstance(paths, int):
        paths = [f"video{i}" for i in range(paths)]
    annotations = make_annotations(paths, ["abc"[i % 3] for i in range(len(paths))])
    defaults = {
        **{"num_frames": 4, "size": 16, "seed": 0, "training": True},
        "label_names": ("a", "b", "c"),
    }
    return ClipDataset(annotations, library or FakeLibrary(), **(defaults | settings))


@pytest.fixture
def fake_library() -> Callable[..., FakeLibrary]:
    return FakeLibrary


@pytest.fixture
def annotations_of() -> Callable[..., Annotations]:
    """`annotations_of(paths, labels, **columns)`"""
    return make_annotations


@pytest.fixture
def dataset_of() -> Callable[..., ClipDataset]:
    """`dataset_of(paths_or_number, library, **settings)`"""
    return make_dataset
