"""The chunk store as a video library: (video, frame) to (chunk, local frame) to pixels."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from onereel.errors import DataError, DecodeError
from onereel.types import ClipSpec, VideoInfo, YuvClips
from onereel.video.decode import VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.manifest import Rows
from onereel.video.marker import read_marker

_KEPT_FILES = 256
_KEPT_ENTRIES = 4096

T = TypeVar("T")


class _Entry(NamedTuple):
    """A video in the store: the row of its first chunk, frames per chunk, and what is known of it."""

    first_row: int
    chunk_frames: int
    info: VideoInfo


class ChunkStore:
    """A VideoLibrary over the folder that `onereel prepare` wrote. Opening it costs the same for any number of chunks.

    A video is named by its path below the folder that was prepared (as written, for a list); an absolute path, or
    another spelling of the same path, finds it too.

    Args:
        path: the store.
        timeout_seconds: processor time that one clip may take to decode.

    Raises:
        DataError: `path` is not a chunk store, or was never finished.
    """

    def __init__(self, path: str, timeout_seconds: float = 30.0) -> None:
        self.path = os.path.abspath(path)
        self.decoder = FusedDecoder(timeout_seconds)
        self._files: OrderedDict[int, VideoFile] = OrderedDict()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._root: str = read_marker(Path(self.path))["settings"]["root"]
        if not os.path.exists(os.path.join(self.path, "packets.arrow")):
            raise DataError(
                f"{self.path} holds no finished video yet; run the same `onereel prepare` command again"
            )

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.__dict__.items() if k not in ("_rows", "_real_paths")}
        return {**kept, "_files": OrderedDict(), "_entries": OrderedDict()}

    def __contains__(self, video: str) -> bool:
        return self._find(video) is not None

    def videos(self) -> list[str]:
        """The names of all videos, sorted."""
        return self._rows.videos()

    def info(self, video: str) -> VideoInfo:
        """See `VideoLibrary.info`."""
        return self._entry(video).info

    def chunk_frames(self, video: str) -> int:
        """See `VideoLibrary.chunk_frames`."""
        return self._entry(video).chunk_frames

    def read(self, spec: ClipSpec) -> Tensor:
        """See `VideoLibrary.read`: one read per chunk that the clip touches, all with the same crop."""
        parts = self._parts(spec, self.decoder.read)
        if len(parts) == 1:
            return parts[0][1]
        clip = torch.empty((len(spec.frame_indices), 3, *spec.size), dtype=torch.uint8)
        for places, part in parts:
            clip[places] = part
        return clip

    def read_yuv(self, spec: ClipSpec) -> YuvClips:
        """See `VideoLibrary.read_yuv`."""
        parts = self._parts(spec, self.decoder.read_yuv)
        whole, num_frames = parts[0][1], len(spec.frame_indices)
        if len(parts) == 1:
            return whole
        frames = torch.empty((num_frames, whole.layouts[0].frame_bytes), dtype=torch.uint8)
        for places, part in parts:
            frames[places] = part.values.view(len(places), -1)
        return replace(whole, values=frames.view(-1), num_frames=num_frames)

    def _parts(self, spec: ClipSpec, read: Callable[..., T]) -> list[tuple[list[int], T]]:
        """What `read` gives of each chunk that the clip touches, with its places in the clip."""
        entry, frames = self._entry(spec.video), spec.frame_indices
        last, length = entry.info.num_frames - 1, entry.chunk_frames
        if not frames or min(frames) < 0 or max(frames) > last:
            outside = next((frame for frame in frames if not 0 <= frame <= last), None)
            raise DecodeError(spec.video, f"out of range: it has frames 0 to {last}", outside)
        parts = []
        for chunk in sorted({frame // length for frame in frames}):
            places = [i for i, frame in enumerate(frames) if frame // length == chunk]
            local = [frames[i] - chunk * length for i in places]
            parts.append((places, self._read_chunk(entry.first_row + chunk, local, spec, read)))
        return parts

    def _read_chunk(self, row: int, frames: list[int], spec: ClipSpec, read: Callable[..., T]) -> T:
        source = self._file(row)
        try:
            return read(source, frames, spec.crop, spec.size)
        except DecodeError as error:
            raise self._with_remedy(row, error) from error

    def _with_remedy(self, row: int, error: DecodeError) -> DecodeError:
        """The error, or what to do about it where the chunk's file is not the one that was indexed."""
        path = os.path.join(self.path, self._rows.value("path", row))
        expected = self._rows.value("bytes", row)
        remedy = "run the same `onereel prepare` command again to restore it"
        try:
            size = os.stat(path).st_size
        except OSError as problem:
            return DecodeError(path, f"chunk cannot be opened ({problem.strerror}); {remedy}")
        if size != expected:
            reason = f"chunk changed behind its index ({size} bytes, not {expected}); {remedy}"
            return DecodeError(path, reason)
        return error

    def _file(self, row: int) -> VideoFile:
        """The chunk of a row with its packet index: one of those used last, or out of the index file."""
        file = self._files.pop(row, None)
        if file is None:
            path = os.path.join(self.path, self._rows.value("path", row))
            file = VideoFile(path, self._rows.packet_index(row))
        self._files[row] = file
        if len(self._files) > _KEPT_FILES:
            self._files.popitem(last=False)
        return file

    @cached_property
    def _rows(self) -> Rows:
        return Rows(Path(self.path) / "packets.arrow")

    def _entry(self, video: str) -> _Entry:
        """What the rows say of a video: one of those used last, or looked up. Raises DecodeError."""
        entry = self._entries.pop(video, None) or self._look_up(video)
        self._entries[video] = entry
        if len(self._entries) > _KEPT_ENTRIES:
            self._entries.popitem(last=False)
        return entry

    def _look_up(self, video: str) -> _Entry:
        row, rows = self._find(video), self._rows
        if row is None:
            raise DecodeError(
                video, f"not in the store {self.path}; prepare it with `onereel prepare`"
            )
        info = VideoInfo(
            num_frames=rows.value("video_frames", row),
            fps=rows.value("fps_numerator", row) / rows.value("fps_denominator", row),
            height=rows.value("height", row),
            width=rows.value("width", row),
        )
        return _Entry(row, rows.value("num_frames", row), info)

    def _find(self, video: str) -> int | None:
        """The row of the first chunk of `video`, by its name or another spelling of it; None where there is none."""
        rows = map(self._rows.find, self._spellings(video))
        return next((row for row in rows if row is not None), None)

    def _spellings(self, video: str) -> Iterator[str]:
        """Names that `video` may have in the store, the cheapest to find first."""
        yield video
        full = os.path.normpath(os.path.join(self._root, video))
        yield os.path.relpath(full, self._root)
        yield full
        real = os.path.realpath(full)
        folders, links = self._real_paths
        for path in (real, full):
            parent, file = os.path.split(path)
            for folder in folders.get(os.path.realpath(parent), ()):
                yield os.path.join(folder, file)
        yield from links.get(real, ())

    @cached_property
    def _real_paths(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The folders of names, and the links in these folders, by their real paths.

        Made only where no cheaper spelling finds a video; but a list that names one that the store lacks makes every
        worker do so, all at once. So folders are listed, and no file that is not a link is looked at.
        """
        folders: dict[str, list[str]] = {}
        links: dict[str, list[str]] = {}
        for folder in sorted({os.path.dirname(name) for name in self.videos()}):
            real = os.path.realpath(os.path.join(self._root, folder))
            folders.setdefault(real, []).append(folder)
            with contextlib.suppress(OSError), os.scandir(real) as entries:
                for entry in filter(os.DirEntry.is_symlink, entries):
                    name = os.path.join(folder, entry.name)
                    links.setdefault(os.path.realpath(entry.path), []).append(name)
        return folders, links
