"""Sparse decoding: one read per span of packets, only the packets that matter, pixels scaled once."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import av
from torch import Tensor

from onereel.errors import DecodeError
from onereel.types import CropBox, YuvClips
from onereel.video.decode import VideoFile, check_request
from onereel.video.index import PacketIndex, build_packet_index
from onereel.video.opening import open_video
from onereel.video.packets import addressed_packets, check_unchanged, demuxed_packets
from onereel.video.planes import YuvCanvas
from onereel.video.scale import Canvas, ScalerCache
from onereel.video.spans import Span, plan_spans, widen_span

_KEPT_CONTEXTS = 16
_ATTEMPTS = 3  # key frames to try, each one earlier, before a frame counts as lost
# "explode": a damaged packet is an error, never a guess. "strict": frames of streams that do not say how far they are
# reordered wait for one another as long as the standard allows, so that a skipped packet cannot cost another frame.
_OPTIONS = {"err_detect": "explode", "strict": "strict"}

AnyCanvas = TypeVar("AnyCanvas", Canvas, YuvCanvas)


class FusedDecoder:
    """The fast decoder: bit for bit what `ReferenceDecoder` reads, until pixels are scaled.

    Args:
        timeout_seconds: how long one clip may take; DecodeError after that. It is processor time, looked at between
            packets, so that a busy machine, or a process that was stopped for a while, loses no clip; and how long
            a demuxer may wait for one read.
        direct: False = scale through PyAV's filter graphs even where swscale can be called directly.
    """

    def __init__(self, timeout_seconds: float = 30.0, direct: bool = True) -> None:
        self.timeout_seconds, self.direct = timeout_seconds, direct
        self._contexts, self._scalers = _ContextCache(), ScalerCache()

    def __reduce__(self) -> tuple[type, tuple[float, bool]]:
        return type(self), (self.timeout_seconds, self.direct)

    def read(
        self,
        source: VideoFile,
        frame_indices: Sequence[int],
        crop: CropBox | None,
        size: tuple[int, int] | None,
    ) -> Tensor:
        """See `Decoder.read`."""

        def canvas(index: PacketIndex) -> Canvas:
            return Canvas(self._scalers, index, len(frame_indices), crop, size, self.direct)

        return self._filled(canvas, source, frame_indices, crop).finish()

    def read_yuv(
        self,
        source: VideoFile,
        frame_indices: Sequence[int],
        crop: CropBox,
        size: tuple[int, int],
    ) -> YuvClips:
        """The same clip before it is coloured and scaled, which is left to the device (`data/yuv.py`)."""

        def canvas(index: PacketIndex) -> YuvCanvas:
            return YuvCanvas(index, len(frame_indices), crop, size, self.direct)

        return self._filled(canvas, source, frame_indices, crop).finish()

    def _filled(
        self,
        canvas_for: Callable[[PacketIndex], AnyCanvas],
        source: VideoFile,
        frame_indices: Sequence[int],
        crop: CropBox | None,
    ) -> AnyCanvas:
        """The canvas with all frames drawn."""
        deadline = time.thread_time() + self.timeout_seconds
        index = source.index or build_packet_index(source.path, source.stream)
        check_request(source.path, index, frame_indices, crop)
        canvas = canvas_for(index)
        clip = _Clip(source.path, index, canvas, deadline)
        with _opened(source.path, index) as file:
            for span in plan_spans(index, frame_indices):
                self._draw(clip, span, file)
        return canvas

    def _draw(self, clip: _Clip, span: Span, file: int) -> None:
        """Decode a span onto the canvas; where its key frame does not start clean, from an earlier one."""
        problem, wider = "", span
        for _ in range(_ATTEMPTS):
            missing, reason = self._draw_once(clip, wider, file)
            if not missing:
                return
            problem = problem or reason
            if wider.rows[0] == 0:
                break
            wider = widen_span(clip.index, wider, missing)
        raise clip.error(problem, missing)

    def _draw_once(self, clip: _Clip, span: Span, file: int) -> tuple[set[int], str]:
        """Decode a span onto the canvas; gives the wanted packets whose frames did not come, and why."""
        index = clip.index
        if index.addressable:
            context = self._contexts.get(index)
            packets = addressed_packets(clip.path, file, index, span.rows)
            return clip.decode(context, packets, span)
        patience = max(self.timeout_seconds, 0.001)
        try:
            with open_video(clip.path, timeout=patience) as container:
                context = _prepared(container.streams[index.stream].codec_context)
                packets = demuxed_packets(clip.path, container, index, span.rows)
                return clip.decode(context, packets, span)
        except (av.FFmpegError, IndexError) as error:
            reason = "changed behind its index, or unreadable: the demuxer fails"
            raise clip.error(f"{reason} ({error})", span.wanted) from error


@dataclass(frozen=True)
class _Clip:
    """One call of `read`."""

    path: str
    index: PacketIndex
    canvas: Canvas | YuvCanvas
    deadline: float

    def decode(
        self, context: Any, packets: Iterable[tuple[int, Any]], span: Span
    ) -> tuple[set[int], str]:
        """Feed packets, draw the wanted frames; gives the packets whose frames are missing, and why."""
        missing = set(span.wanted)
        first_rank = self.index.rank[span.rows[0]]
        try:
            for row, packet in packets:
                if time.thread_time() > self.deadline:
                    raise self.error("took longer than the time limit of one clip", missing)
                try:
                    frames = context.decode(packet)
                except av.FFmpegError:
                    # What precedes `trusted`, or is shown before the key frame, may refer to packets not decoded.
                    if row >= span.trusted and self.index.rank[row] >= first_rank:
                        raise
                    continue
                if frames:
                    self._draw(frames, span, missing)
            self._draw(context.decode(None), span, missing)
        except av.FFmpegError as error:
            return missing, f"corrupt ({error.strerror})"
        finally:
            context.flush_buffers()
        return missing, "the decoder did not give this frame"

    def _draw(self, frames: list[Any], span: Span, missing: set[int]) -> None:
        for frame in frames:
            row = frame.pts
            if row not in missing:
                continue
            if frame.is_corrupt:
                raise self.error("corrupt (the decoder marks it so)", [row])
            if (frame.width, frame.height) != (self.index.width, self.index.height):
                given = f"{frame.width}x{frame.height}"
                raise self.error(f"the frame size changes to {given} in mid-stream", [row])
            try:
                self.canvas.draw(span.wanted[row], frame)
            except (av.FFmpegError, MemoryError, ValueError) as error:
                raise self.error(f"cannot be scaled or converted ({error})", [row]) from error
            missing.remove(row)

    def error(self, reason: str, rows: Iterable[int]) -> DecodeError:
        return DecodeError(self.path, reason, min(int(self.index.rank[row]) for row in rows))


@contextmanager
def _opened(path: str, index: PacketIndex) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise DecodeError(path, f"cannot be opened ({error.strerror})") from error
    try:
        check_unchanged(path, index, os.fstat(file))
        yield file
    finally:
        os.close(file)


class _ContextCache(threading.local):
    """Decoders of this thread by stream header: opening one costs as much as decoding a small frame."""

    def __init__(self) -> None:
        self.contexts: OrderedDict[tuple[str, str, bytes], Any] = OrderedDict()

    def get(self, index: PacketIndex) -> Any:
        key = (index.codec, index.codec_tag, index.extradata)
        context = self.contexts.get(key)
        if context is None:
            context = av.CodecContext.create(index.codec, "r")
            if index.extradata:
                context.extradata = index.extradata
            if index.codec_tag:
                context.codec_tag = index.codec_tag
            context = self.contexts[key] = _prepared(context)
            if len(self.contexts) > _KEPT_CONTEXTS:
                self.contexts.popitem(last=False)
        else:
            self.contexts.move_to_end(key)
        return context


def _prepared(context: Any) -> Any:
    context.thread_count, context.thread_type, context.options = 1, "NONE", _OPTIONS
    return context
