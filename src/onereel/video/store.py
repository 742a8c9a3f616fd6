"""The chunk store as a video library: (video, frame) to (chunk, local frame) to pixels."""

from __future__ import annotations

import os
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onereel.errors import DataError, DecodeError
from onereel.types import ClipSpec, VideoInfo
from onereel.video.decode import VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.index import PacketIndex
from onereel.video.manifest import Rows
from onereel.video.marker import read_marker

_KEPT_INDICES = 256


class ChunkStore:
    """A VideoLibrary over the folder that `onereel prepare` wrote. Opening it costs the same for any number of chunks.

    A video is named by its path below the folder that was prepared (as written, for a list); an absolute path, or
    another spelling of the same path, finds it too.

    Args:
        path: the store.
        timeout_seconds: how long one clip may take to decode.

    Raises:
        DataError: `path` is not a chunk store, or was never finished.
    """

    def __init__(self, path: str, timeout_seconds: float = 30.0) -> None:
        self.path = os.path.abspath(path)
        self.decoder = FusedDecoder(timeout_seconds)
        self._indices: OrderedDict[int, PacketIndex] = OrderedDict()
        self._root: str = read_marker(Path(self.path))["settings"]["root"]
        if not os.path.exists(os.path.join(self.path, "packets.arrow")):
            raise DataError(
                f"{self.path} holds no finished video yet; run the same `onereel prepare` command again"
            )

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_rows", "_aliases")}
        return {**kept, "_indices": OrderedDict()}

    def __contains__(self, video: str) -> bool:
        return self._find(video) is not None

    def videos(self) -> list[str]:
        """The names of all videos, sorted."""
        return self._rows.videos()

    def info(self, video: str) -> VideoInfo:
        """See `VideoLibrary.info`."""
        rows, row = self._rows, self._first_row(video)
        return VideoInfo(
            num_frames=rows.value("video_frames", row),
            fps=rows.value("fps_numerator", row) / rows.value("fps_denominator", row),
            height=rows.value("height", row),
            width=rows.value("width", row),
        )

    def read(self, spec: ClipSpec) -> Tensor:
        """See `VideoLibrary.read`: one read per chunk that the clip touches, all with the same crop."""
        first_row = self._first_row(spec.video)
        num_frames = self._rows.value("video_frames", first_row)
        chunk_frames = self._rows.value("num_frames", first_row)
        frames = np.asarray(spec.frame_indices, np.int64)
        outside = frames[(frames < 0) | (frames >= num_frames)]
        if len(outside) or not len(frames):
            reason = f"out of range: it has frames 0 to {num_frames - 1}"
            raise DecodeError(spec.video, reason, int(outside[0]) if len(outside) else None)
        chunks, local = np.divmod(frames, chunk_frames)
        clip = torch.empty((len(frames), 3, *spec.size), dtype=torch.uint8)
        for chunk in np.unique(chunks).tolist():
            wanted = np.flatnonzero(chunks == chunk)
            source = self._file(first_row + chunk)
            part = self.decoder.read(source, local[wanted].tolist(), spec.crop, spec.size)
            if len(wanted) == len(frames):
                return part
            clip[torch.from_numpy(wanted)] = part
        return clip

    def _file(self, row: int) -> VideoFile:
        """The chunk of a row with its packet index; raises DecodeError where the file is not the one indexed."""
        path = os.path.join(self.path, self._rows.value("path", row))
        expected = self._rows.value("bytes", row)
        remedy = "run the same `onereel prepare` command again to restore it"
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise DecodeError(
                path, f"chunk cannot be opened ({error.strerror}); {remedy}"
            ) from error
        if size != expected:
            raise DecodeError(
                path, f"chunk changed behind its index ({size} bytes, not {expected}); {remedy}"
            )
        return VideoFile(path, self._index(row))

    def _index(self, row: int) -> PacketIndex:
        """The packet index of a chunk: one of those used last, or out of the file."""
        index = self._indices.pop(row, None) or self._rows.packet_index(row)
        self._indices[row] = index
        if len(self._indices) > _KEPT_INDICES:
            self._indices.popitem(last=False)
        return index

    @cached_property
    def _rows(self) -> Rows:
        return Rows(Path(self.path) / "packets.arrow")

    def _first_row(self, video: str) -> int:
        row = self._find(video)
        if row is None:
            raise DecodeError(
                video, f"not in the store {self.path}; prepare it with `onereel prepare`"
            )
        return row

    def _find(self, video: str) -> int | None:
        """The row of the first chunk of `video`, by its name or another spelling of it; None where there is none."""
        full = os.path.normpath(os.path.join(self._root, video))
        spellings = (video, os.path.relpath(full, self._root), full)
        for name in dict.fromkeys(spellings):
            if (row := self._rows.find(name)) is not None:
                return row
        alias = self._aliases.get(os.path.realpath(full))
        return None if alias is None else self._rows.find(alias)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Name by real path: made only where no cheaper spelling finds a video."""
        return {os.path.realpath(os.path.join(self._root, name)): name for name in self.videos()}
