"""Clips from raw video files: each file is indexed on first use, and its index is kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from onereel.errors import DecodeError
from onereel.files import write_atomically
from onereel.types import ClipSpec, VideoInfo, YuvClips
from onereel.video.decode import VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.index import PacketIndex, build_packet_index
from onereel.video.sources import files_below

# Raise it when the meaning of a PacketIndex changes: older cache entries are then rebuilt.
_FORMAT = 3
_KEPT_IN_MEMORY = 1024
# Of all indices in memory: 37 hours at 30 frames a second, at about 50 bytes a packet.
_KEPT_PACKETS = 4_000_000
_COLUMNS = ("position", "size", "rank", "key", "reference", "pts", "frame_times")


class RawVideos:
    """A VideoLibrary whose names are paths, absolute or relative to `root`.

    Args:
        root: folder that relative names start from; empty = the working directory.
        cache: folder for packet indices; None = `ONEREEL_CACHE`, or the user's cache folder.
        timeout_seconds: processor time that one clip may take to decode.
        stream: number of the video stream to read; None = the best one of each file.
    """

    def __init__(
        self,
        root: str = "",
        cache: str | None = None,
        timeout_seconds: float = 30.0,
        stream: int | None = None,
    ) -> None:
        self.root, self.stream = root, stream
        self.cache = Path(cache) if cache is not None else default_cache()
        self.decoder = FusedDecoder(timeout_seconds)
        self._indices: OrderedDict[str, PacketIndex] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indices": OrderedDict()}

    def __contains__(self, video: str) -> bool:
        return os.path.isfile(self.path(video))

    def path(self, video: str) -> str:
        """The file that `video` names."""
        return os.path.join(self.root, video)

    def videos(self) -> list[str]:
        """The files below `root` with the suffix of a video, hidden ones left out, sorted."""
        return sorted(files_below(self.root or "."))

    def chunk_frames(self, video: str) -> int:
        """See `VideoLibrary.chunk_frames`: raw files are whole."""
        return 0

    def info(self, video: str) -> VideoInfo:
        """See `VideoLibrary.info`."""
        return self.index(video).info()

    def read(self, spec: ClipSpec) -> Tensor:
        """See `VideoLibrary.read`."""
        return self.decoder.read(self._file(spec), spec.frame_indices, spec.crop, spec.size)

    def read_yuv(self, spec: ClipSpec) -> YuvClips:
        """See `VideoLibrary.read_yuv`."""
        return self.decoder.read_yuv(self._file(spec), spec.frame_indices, spec.crop, spec.size)

    def _file(self, spec: ClipSpec) -> VideoFile:
        return VideoFile(self.path(spec.video), self.index(spec.video), self.stream)

    def index(self, video: str) -> PacketIndex:
        """The packet index of `video`: from memory, from the cache on disk, or made now."""
        path = self.path(video)
        index = self._indices.get(path)
        if index is None:
            index = self._indices[path] = cached_packet_index(path, self.cache, self.stream)
            self._forget()
        else:
            self._indices.move_to_end(path)
        return index

    def _forget(self) -> None:
        """Drop the indices used longest ago, down to what may be kept in memory, but never the last one."""
        num_packets = sum(index.num_packets for index in self._indices.values())
        while len(self._indices) > 1 and (
            len(self._indices) > _KEPT_IN_MEMORY or num_packets > _KEPT_PACKETS
        ):
            num_packets -= self._indices.popitem(last=False)[1].num_packets


def default_cache() -> Path:
    """`ONEREEL_CACHE`, else `onereel` in the user's cache folder."""
    if chosen := os.environ.get("ONEREEL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "onereel"


def cached_packet_index(path: str, cache: Path, stream: int | None = None) -> PacketIndex:
    """The packet index of `path`, kept under `cache` for as long as the file keeps its size and time.

    Raises:
        DecodeError: see `build_packet_index`.
    """
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DecodeError(path, f"cannot be opened ({error.strerror})") from error
    key = repr((_FORMAT, path, status.st_size, status.st_mtime_ns, stream))
    entry = cache / "packets" / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npz"
    try:
        return load_packet_index(entry.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        index = build_packet_index(path, stream)  # absent or damaged: made again
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(entry, dump_packet_index(index), durable=False)
    except OSError as error:
        warnings.warn(f"cannot keep the packet index of {path}: {error}", stacklevel=2)
    return index


def dump_packet_index(index: PacketIndex) -> bytes:
    """The index as the bytes of an `.npz` file that holds no pickled object."""
    header = {
        field.name: getattr(index, field.name)
        for field in dataclasses.fields(index)
        if field.name not in _COLUMNS
    }
    header |= {"extradata": index.extradata.hex(), "time_base": str(index.time_base)}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, header=text, **{name: getattr(index, name) for name in _COLUMNS})
    return file.getvalue()


def load_packet_index(data: bytes) -> PacketIndex:
    """The opposite of `dump_packet_index`. Raises ValueError, KeyError, TypeError or BadZipFile on other bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        header = json.loads(bytes(file["header"]))
        columns = {name: file[name] for name in _COLUMNS}
    header["extradata"] = bytes.fromhex(header["extradata"])
    header["time_base"] = Fraction(header["time_base"])
    return PacketIndex(**header, **columns)
