"""The chunk store as a video library: (video, frame) to (chunk, local frame) to pixels."""

from __future__ import annotations

import os
from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from onereel.errors import DataError, DecodeError
from onereel.types import ClipSpec, VideoInfo
from onereel.video.decode import VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.manifest import BATCH_ROWS, packet_index, read_rows
from onereel.video.marker import read_marker


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
        self._root: str = read_marker(Path(self.path))["settings"]["root"]
        if not os.path.exists(self._packets):
            raise DataError(
                f"{self.path} holds no finished video yet; run the same `onereel prepare` command again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_rows", "_aliases")}

    def __contains__(self, video: str) -> bool:
        return self._find(video) is not None

    def videos(self) -> list[str]:
        """The names of all videos, sorted."""
        starts = np.flatnonzero(self._rows["chunk"].to_numpy() == 0)
        return self._rows["video"].take(pa.array(starts)).to_pylist()

    def info(self, video: str) -> VideoInfo:
        """See `VideoLibrary.info`."""
        columns, i = self._row(self._first_row(video))
        fps = columns["fps_numerator"][i].as_py() / columns["fps_denominator"][i].as_py()
        return VideoInfo(
            num_frames=columns["video_frames"][i].as_py(),
            fps=fps,
            height=columns["height"][i].as_py(),
            width=columns["width"][i].as_py(),
        )

    def read(self, spec: ClipSpec) -> Tensor:
        """See `VideoLibrary.read`: one read per chunk that the clip touches, all with the same crop."""
        first_row = self._first_row(spec.video)
        columns, i = self._row(first_row)
        num_frames, chunk_frames = (
            columns["video_frames"][i].as_py(),
            columns["num_frames"][i].as_py(),
        )
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
        columns, i = self._row(row)
        path = os.path.join(self.path, columns["path"][i].as_py())
        expected = columns["bytes"][i].as_py()
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
        return VideoFile(path, packet_index(columns, i))

    @property
    def _packets(self) -> Path:
        return Path(self.path) / "packets.arrow"

    @cached_property
    def _rows(self) -> pa.Table:
        return read_rows(self._packets)

    def _row(self, row: int) -> tuple[dict[str, pa.Array], int]:
        """The columns of the record batch that holds `row`, and its place there."""
        batch, i = divmod(row, BATCH_ROWS)
        return {name: self._rows[name].chunk(batch) for name in self._rows.column_names}, i

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
            if (row := self._lookup(name)) is not None:
                return row
        alias = self._aliases.get(os.path.realpath(full))
        return None if alias is None else self._lookup(alias)

    def _lookup(self, name: str) -> int | None:
        column = self._rows["video"]

        def name_of(row: int) -> str:
            batch, i = divmod(row, BATCH_ROWS)
            return column.chunk(batch)[i].as_py()

        row = bisect_left(range(len(column)), name, key=name_of)
        return row if row < len(column) and name_of(row) == name else None

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Name by real path: made only where no cheaper spelling finds a video."""
        return {os.path.realpath(os.path.join(self._root, name)): name for name in self.videos()}
