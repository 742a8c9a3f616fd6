"""The facts of a video file, read from its header: nothing is decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

import av

from onereel.errors import DecodeError
from onereel.video.opening import open_video

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
"""Files of a folder that count as videos (lower case)."""


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One video stream, as the container and the codec header describe it.

    Attributes:
        stream: number of the stream in the file.
        codec: FFmpeg's name of the codec, or "" where there is no decoder for it.
        height: coded pixels, before rotation; 0 where unknown.
        width: likewise.
        fps: average rate as the container states it, or None.
        num_frames: frames as the container states them, or None. Only an index knows for sure.
        duration_seconds: as stated, or None.
        pixel_format: FFmpeg's name, or "" where unknown.
        is_cover: an attached picture, not a film.
    """

    stream: int
    codec: str
    height: int
    width: int
    fps: Fraction | None
    num_frames: int | None
    duration_seconds: float | None
    pixel_format: str
    is_cover: bool

    @property
    def why_unusable(self) -> str:
        """One clause, or the empty string where nothing in the header speaks against the stream."""
        if self.is_cover:
            return "only a cover picture, no film"
        if not self.codec:
            return f"stream {self.stream} has an unknown codec; re-encode it"
        if self.height < 2 or self.width < 2:
            return f"no picture size in the header of stream {self.stream}"
        return ""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the header of a file says.

    Attributes:
        path: the file.
        container: FFmpeg's name of the format.
        bytes: size of the file.
        video_streams: in the order of the file.
        num_audio_streams: sound streams, which nothing here reads.
        best_stream: number of the stream that a player would choose, or None where none is usable.
        why_unusable: one clause, or the empty string.
    """

    path: str
    container: str
    bytes: int
    video_streams: tuple[StreamFacts, ...]
    num_audio_streams: int
    best_stream: int | None
    why_unusable: str


def probe(path: str) -> FileFacts:
    """The facts of the file at `path`; raises DecodeError where it is missing, empty or no media file at all."""
    if not os.path.isfile(path):
        raise DecodeError(path, "there is no such file")
    size = os.path.getsize(path)
    if size == 0:
        raise DecodeError(path, "the file is empty")
    try:
        with open_video(path) as container:
            streams = tuple(_stream_facts(stream) for stream in container.streams.video)
            best = container.streams.best("video")
            usable = [facts.stream for facts in streams if not facts.why_unusable]
            if best is not None and best.index in usable:
                usable = [best.index]
            return FileFacts(
                path=path,
                container=container.format.name,
                bytes=size,
                video_streams=streams,
                num_audio_streams=len(container.streams.audio),
                best_stream=usable[0] if usable else None,
                why_unusable=_why_unusable(streams, len(container.streams.audio), bool(usable)),
            )
    except (av.FFmpegError, ValueError) as error:
        detail = getattr(error, "strerror", None) or error
        raise DecodeError(path, f"no media file that FFmpeg can open, or cut ({detail})") from error


def _stream_facts(stream: av.VideoStream) -> StreamFacts:
    seconds = None
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    context: av.VideoCodecContext | None = (
        stream.codec_context
    )  # None: no decoder, whatever the type says
    return StreamFacts(
        stream=stream.index,
        codec=context.name if context else "",
        height=context.height if context else 0,
        width=context.width if context else 0,
        fps=stream.average_rate or stream.guessed_rate,
        num_frames=stream.frames or None,
        duration_seconds=seconds,
        pixel_format=(context.pix_fmt if context else None) or "",
        is_cover=bool(stream.disposition & stream.disposition.attached_pic),
    )


def _why_unusable(streams: tuple[StreamFacts, ...], num_audio: int, usable: bool) -> str:
    if usable:
        return ""
    if streams:
        return streams[0].why_unusable
    return "sound only, no video stream" if num_audio else "no video stream"
