"""A video library: clips by name, from raw files or from a chunk store."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from onereel.types import ClipSpec, VideoInfo, YuvClips
from onereel.video.raw import RawVideos

__all__ = ["RawVideos", "VideoLibrary", "open_library"]


class VideoLibrary(Protocol):
    """Picklable, and cheap to send to a worker process: files and decoders are opened where they are used."""

    def info(self, video: str) -> VideoInfo:
        """What sampling must know of `video`. Raises DecodeError where it cannot be used."""
        ...

    def read(self, spec: ClipSpec) -> Tensor:
        """The clip, uint8 `(T, 3, height, width)` RGB. Raises DecodeError where a frame cannot be read."""
        ...

    def read_yuv(self, spec: ClipSpec) -> YuvClips:
        """The same clip as it was decoded, its box neither coloured nor scaled. Raises DecodeError likewise."""
        ...

    def __contains__(self, video: str) -> bool: ...

    def videos(self) -> list[str]:
        """The names of all videos, sorted."""
        ...

    def chunk_frames(self, video: str) -> int:
        """Frames in each chunk of `video` but the last; 0: it is one file. Raises DecodeError."""
        ...


def open_library(store: str = "", root: str = "", timeout_seconds: float = 30.0) -> VideoLibrary:
    """The chunk store at `store`, or, where that is empty, raw files under `root`.

    Args:
        store: folder that `onereel prepare` wrote.
        root: folder that relative video names start from.
        timeout_seconds: processor time that one clip may take to decode.
    """
    if store:
        from onereel.video.store import ChunkStore

        return ChunkStore(store, timeout_seconds=timeout_seconds)
    return RawVideos(root, timeout_seconds=timeout_seconds)
