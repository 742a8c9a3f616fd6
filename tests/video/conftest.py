"""A zoo of small videos, one of each kind that decoders treat differently, and short calls of `prepare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from onereel.types import ClipSpec, CropBox
from onereel.video.encode import PROFILES
from onereel.video.prepare import PrepareReport, prepare
from onereel.video.store import ChunkStore

# name -> (file suffix, arguments of make_video)
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "default": (".mp4", {}),
    **{
        name: (".mp4", {"options": profile.options, "num_frames": 80})
        for name, profile in PROFILES.items()
    },
    "short_groups": (".mp4", {"options": {"g": "12"}}),
    "open_gop": (
        ".mp4",
        {"options": {"x264-params": "open-gop=1:keyint=18:scenecut=0:bframes=3:b-adapt=0"}},
    ),
    "intra_refresh": (".mp4", {"options": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}}),
    "interlaced": (".mp4", {"options": {"x264-params": "interlaced=1:keyint=16"}}),
    "sound": (".mp4", {"audio": True}),
    "matroska": (".mkv", {"options": {"g": "12"}}),
    "transport": (".ts", {"options": {"g": "12"}}),
    "avc_avi": (".avi", {"options": {"g": "12", "bf": "3"}}),
    "asp_avi": (".avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
    "h263_avi": (".avi", {"codec": "h263p", "options": {"g": "12"}}),
    "asp_mp4": (".mp4", {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}}),
    "vp9": (".webm", {"codec": "libvpx-vp9", "options": {"g": "12"}, "num_frames": 30}),
    "hevc": (".mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}}),
}
KINDS = (*PLAIN, "variable_rate", "rotated_90", "rotated_180", "rotated_270", "edit_list")


@dataclass(frozen=True)
class Sample:
    """A video of the zoo: its file, and the uint8 `(F, 3, H, W)` frames that a plain full decode shows."""

    path: str
    frames: torch.Tensor


@pytest.fixture(scope="session")
def zoo(
    tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]
) -> Callable[[str], Sample]:
    """`zoo(kind)`: the Sample of one of `KINDS`."""
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def sample(kind: str) -> Sample:
        if kind in PLAIN:
            suffix, arguments = PLAIN[kind]
            if arguments.get("codec", "libx264") not in av.codecs_available:
                pytest.skip(f"PyAV has no {arguments['codec']}")
            path = make_video(folder / f"{kind}{suffix}", **{"num_frames": 60, **arguments})
        elif kind == "variable_rate":
            pts = np.cumsum([0] + [20 + 17 * (i % 4) for i in range(49)]).tolist()
            path = make_video(folder / "variable.mp4", num_frames=50, pts=pts, options={"g": "12"})
        elif kind.startswith("rotated"):
            path = rotated(make_video(folder / f"{kind}_source.mp4", num_frames=20), int(kind[8:]))
        else:
            path = cut(make_video(folder / "whole.mp4", num_frames=60, options={"g": "24"}), 15)
        return Sample(str(path), full_decode(path))

    return sample


def full_decode(path: Path) -> torch.Tensor:
    """All frames as shown, by nothing but PyAV's simplest loop."""
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        turns = round(frame_rotation(path) / 90)
    return torch.from_numpy(np.rot90(np.stack(frames), turns, (1, 2)).copy()).permute(0, 3, 1, 2)


def frame_rotation(path: Path) -> float:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).rotation


def rotated(path: Path, clockwise: int) -> Path:
    """A copy that players must turn clockwise by so many degrees."""
    out = path.with_name(f"rotated_{clockwise}.mp4")
    with av.open(str(path)) as reader, av.open(str(out), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.set_display_rotation(-clockwise)
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    return out


@pytest.fixture(scope="session")
def unknown_codec(
    tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]
) -> Path:
    """A Matroska file whose CodecID nobody knows."""
    path = make_video(tmp_path_factory.mktemp("unknown") / "unknown.mkv", num_frames=5)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_STRANGE/NEW/X"))
    return path


def cut(path: Path, first: int) -> Path:
    """A copy without re-encoding whose edit list hides the frames before `first`."""
    out = path.with_name("cut.mp4")
    with av.open(str(path)) as reader, av.open(str(out), "w") as writer:
        source = reader.streams.video[0]
        stream = writer.add_stream_from_template(source)
        shift = int(first / source.average_rate / source.time_base)
        for packet in reader.demux(source):
            if packet.size:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                writer.mux(packet)
    return out


@pytest.fixture(scope="session")
def run() -> Callable[..., PrepareReport]:
    """`run(source, out, …)`: `prepare` in this process, into short small chunks."""
    small = {"chunk_seconds": 0.5, "short_side": 64, "num_workers": 1, "progress": False}

    def call(source: Any, out: Path, **settings: Any) -> PrepareReport:
        return prepare(source, out, **small | settings)

    return call


@pytest.fixture(scope="session")
def numbers(number_of: Callable[..., int]) -> Callable[[Path, str], list[int]]:
    """`numbers(store, video)`: the number that each frame of a video of the store shows."""

    def read(store: Path, video: str) -> list[int]:
        library = ChunkStore(str(store))
        info = library.info(video)
        size = (info.height, info.width)
        spec = ClipSpec(video, tuple(range(info.num_frames)), CropBox(0, 0, *size), size)
        return [number_of(frame) for frame in library.read(spec)]

    return read


@pytest.fixture(scope="session")
def manifest() -> Callable[[Path], list[dict[str, Any]]]:
    """`manifest(store)`: its rows."""
    return lambda store: pq.read_table(store / "manifest.parquet").to_pylist()


@pytest.fixture(scope="session")
def files() -> Callable[[Path], set[str]]:
    """`files(folder)`: the relative paths of all files in it."""
    return lambda folder: {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
