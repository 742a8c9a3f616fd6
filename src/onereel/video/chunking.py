"""One video in, its chunks out: the constant-rate timeline, and the frames that fill it.

Tick i of a video's timeline is shown at `i / fps` seconds after the first frame of the source. It shows the last
source frame that begins at or before half a tick later, so a source of constant rate maps one to one: no frame is
lost, none doubled. Chunk k holds ticks `[k * n, (k + 1) * n)` with `n = round(chunk_seconds * fps)`; the last
chunk of a video holds what is left.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from onereel.errors import DecodeError
from onereel.files import move_whole
from onereel.video.encode import FrameScaler, fitted_size, luma, psnr, write_chunk
from onereel.video.index import PacketIndex, build_packet_index
from onereel.video.manifest import chunk_row, write_part
from onereel.video.opening import open_video
from onereel.video.probe import probe
from onereel.video.sources import Source

CHUNKS_PER_UNIT = 4
"""Chunks that one process makes in one go: long videos split over processes, short restarts lose little."""
PSNR_EVERY = 7
"""One frame in seven is compared with its source: odd, so that every place in a GOP of 32 has its turn."""
LONGEST_GAP = 4
"""Gaps between frames past so many usual ones are pauses: a phone that drops a few frames makes none."""
MOST_STILL = 100
"""Times that a video may last as long as its frames do without its pauses: past it, the clock has jumped."""
DENOMINATORS = (1001, 1_000_000)
"""The largest of a rate: the usual one, and one for rates that it would bend (the MP4 clock is a 32-bit number)."""


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a store; the same for all its chunks."""

    chunk_seconds: float
    short_side: int
    fps: str | None
    profile: str
    crf: float
    stream: int | None


@dataclass(frozen=True, eq=False)
class Unit:
    """A run of consecutive chunks of one video, with all that a process must know to make them.

    Attributes:
        source: the video.
        settings: of the store.
        source_bytes: size of its file.
        stream: number of its video stream.
        fps: rate of the timeline.
        height: of the chunks, in pixels.
        width: likewise.
        rotation: clockwise turn applied to the source.
        first_chunk: number of the first chunk.
        num_chunks: chunks of the whole video.
        num_frames: ticks of the whole video.
        chunk_frames: ticks of a full chunk.
        shown: int32, for each tick of the unit the source frame (display order) that it shows.
        seek_pts: where decoding starts, or None for the beginning of the file.
        first_rank: source frame at which decoding starts.
        pts: int64, of the source frames from `first_rank` on; empty where the file has no usable pts, and frames are
            counted from its beginning.
    """

    source: Source
    settings: Settings
    source_bytes: int
    stream: int
    fps: Fraction
    height: int
    width: int
    rotation: int
    first_chunk: int
    num_chunks: int
    num_frames: int
    chunk_frames: int
    shown: np.ndarray
    seek_pts: int | None
    first_rank: int
    pts: np.ndarray


@dataclass(frozen=True)
class UnitDone:
    """What a finished unit adds to the progress."""

    video: str
    num_chunks: int
    seconds: float
    share: float


def exact_rate(fps: float | Fraction, num_frames: int = 1) -> Fraction:
    """The usual rate that `fps` stands for (29.97 is 30000/1001), or else the simplest fraction near it.

    Over `num_frames` frames the result never drifts from `fps` by half a frame.
    """
    allowed = min(1e-4, 0.5 / num_frames)
    usual = [Fraction(round(fps)), Fraction(round(fps * 1.001) * 1000, 1001)]
    simple = [Fraction(fps).limit_denominator(limit) for limit in DENOMINATORS]
    return next(
        (r for r in [*usual, *simple] if abs(float(r / Fraction(fps)) - 1) < allowed), simple[-1]
    )


def timeline(index: PacketIndex, fps: Fraction | None) -> tuple[Fraction, np.ndarray]:
    """The rate, and for each tick the source frame that it shows, int32 `(num_ticks,)`."""
    usual = usual_rate(index)
    own = exact_rate(usual, index.num_frames)
    rate = own if fps is None else fps
    if index.constant_rate and rate == own:
        return rate, np.arange(index.num_frames, dtype=np.int32)
    times = index.frame_times
    num_ticks = max(1, round((times[-1] + 1 / usual) * float(rate)))
    half_later = (np.arange(num_ticks) + 0.5) / float(rate) + 1e-6  # a tie, rounded, stays a tie
    shown = np.searchsorted(times, half_later, side="right") - 1
    return rate, np.maximum(shown, 0).astype(np.int32)


def usual_rate(index: PacketIndex) -> float:
    """Frames per second outside of pauses. What is usual is the median over four neighbouring gaps."""
    gaps = np.diff(index.frame_times)
    if index.constant_rate or not len(gaps):
        return index.fps
    span = min(4, len(gaps))
    usual = np.median(index.frame_times[span:] - index.frame_times[:-span]) / span
    if gaps.max() <= LONGEST_GAP * usual:
        return index.fps
    return float(1 / gaps[gaps <= LONGEST_GAP * usual].mean())


def told_of_rate(units: list[Unit]) -> str:
    """What a video's uneven rate costs where that is much: most frames are left out, or most ticks repeat one."""
    if units[0].settings.fps is not None:
        return ""
    shown = np.concatenate([unit.shown for unit in units])
    num_shown, num_frames = len(np.unique(shown)), int(shown[-1]) + 1
    rate = f"at {float(units[0].fps):.4g} frames a second, its rate outside of pauses,"
    if num_frames > 2 * num_shown:
        return f"{rate} {num_frames - num_shown} of {num_frames} frames are left out"
    if len(shown) > 2 * num_shown:
        return f"{rate} {len(shown) - num_shown} of {len(shown)} frames repeat the one before"
    return ""


def plan(source: Source, settings: Settings) -> list[Unit]:
    """Index the video and cut its timeline into units; raises DecodeError where it cannot be used."""
    if os.fsencode(source.name) != source.name.encode(errors="replace"):
        raise DecodeError(source.path, "its name is not valid UTF-8; rename it")
    facts = probe(source.path)
    if facts.why_unusable:
        raise DecodeError(source.path, facts.why_unusable)
    index = build_packet_index(source.path, settings.stream)
    seconds, frame_seconds = index.frame_times[-1], index.num_frames / usual_rate(index)
    if seconds > MOST_STILL * frame_seconds:
        raise DecodeError(
            source.path,
            f"its clock jumps: it lasts {seconds:.0f} s, of which its frames fill {frame_seconds:.3g} s; "
            "re-encode it, or cut out the pauses",
        )
    rate, shown = timeline(index, Fraction(settings.fps) if settings.fps else None)
    chunk_frames = max(1, round(settings.chunk_seconds * rate))
    info = index.info()
    height, width = fitted_size(info.height, info.width, settings.short_side)
    pts = index.pts[index.packet_of_frame]
    can_seek = bool((np.diff(pts) > 0).all())
    step = chunk_frames * CHUNKS_PER_UNIT if can_seek else len(shown)
    units = []
    for start in range(0, len(shown), step):
        ticks = shown[start : start + step]
        packet = index.start_of_frame[ticks[0]]
        seeks = can_seek and packet > 0
        base = int(index.rank[packet])
        units.append(
            Unit(
                source=source,
                settings=settings,
                source_bytes=facts.bytes,
                stream=index.stream,
                fps=rate,
                height=height,
                width=width,
                rotation=index.rotation,
                first_chunk=start // chunk_frames,
                num_chunks=-(-len(shown) // chunk_frames),
                num_frames=len(shown),
                chunk_frames=chunk_frames,
                shown=ticks,
                seek_pts=int(index.pts[packet]) if seeks else None,
                first_rank=base,
                pts=pts[base : ticks[-1] + 1] if can_seek else pts[:0],
            )
        )
    return units


def make_unit(unit: Unit, out: str) -> UnitDone:
    """Encode the unit's chunks, put them in place, and record them.

    Raises:
        DecodeError: the source fails, or its frames cannot be scaled or encoded.
        OSError: the store cannot be written.
    """
    try:
        return _make_unit(unit, out)
    except OSError:
        raise
    except (av.FFmpegError, ValueError, AssertionError, MemoryError) as error:
        reason = f"cannot be scaled or encoded ({type(error).__name__}: {error})"
        raise DecodeError(unit.source.path, reason) from error


def _make_unit(unit: Unit, out: str) -> UnitDone:
    aside = Path(out) / "partial" / str(os.getpid())
    aside.mkdir(parents=True, exist_ok=True)
    frames = _ticks(unit)
    rows = []
    for offset in range(0, len(unit.shown), unit.chunk_frames):
        number = unit.first_chunk + offset // unit.chunk_frames
        length = min(unit.chunk_frames, len(unit.shown) - offset)
        rows.append(_make_chunk(unit, number, length, frames, aside, Path(out)))
    write_part(rows, Path(out), unit.source.name, unit.first_chunk)
    return UnitDone(
        unit.source.name,
        len(rows),
        float(len(unit.shown) / unit.fps),
        len(unit.shown) / unit.num_frames,
    )


def _make_chunk(
    unit: Unit, number: int, length: int, frames: Iterator[av.VideoFrame], aside: Path, out: Path
) -> dict[str, Any]:
    """Encode the next `length` frames, check what came out, and move it to its place; the manifest row."""
    partial = aside / f"{number:06d}.mp4"
    sample: dict[int, np.ndarray] = {}
    settings = unit.settings
    write_chunk(
        str(partial), _sampled(frames, length, sample), unit.fps, settings.profile, settings.crf
    )
    error = _mean_squared_error(str(partial), length, sample, unit.source.path)
    index = build_packet_index(str(partial))
    data = partial.read_bytes()
    first = number * unit.chunk_frames
    place = f"{unit.source.folder}/{number:06d}.mp4"
    facts = {
        "video": unit.source.name,
        "chunk": number,
        "num_chunks": unit.num_chunks,
        "path": place,
        "source": unit.source.path,
        "source_bytes": unit.source_bytes,
        "start_seconds": float(first / unit.fps),
        "end_seconds": float((first + length) / unit.fps),
        "first_frame": first,
        "video_frames": unit.num_frames,
        "fps_numerator": unit.fps.numerator,
        "fps_denominator": unit.fps.denominator,
        "bytes": len(data),
        "checksum": hashlib.blake2b(data, digest_size=16).hexdigest(),
        "source_rotation": unit.rotation,
        "psnr": psnr(error),
    }
    target = out / place
    target.parent.mkdir(parents=True, exist_ok=True)
    move_whole(partial, target)
    return chunk_row(facts, index)


def _sampled(
    frames: Iterator[av.VideoFrame], length: int, sample: dict[int, np.ndarray]
) -> Iterator[av.VideoFrame]:
    """The next `length` frames; the brightness of some of them is kept in `sample`."""
    for number, frame in enumerate(itertools.islice(frames, length)):
        if number % PSNR_EVERY == 0:
            sample[number] = luma(frame)
        yield frame


def _mean_squared_error(
    path: str, length: int, sample: dict[int, np.ndarray], source: str
) -> float:
    """Decode the whole chunk; the mean squared luma error of the sampled frames.

    Raises:
        DecodeError: the chunk does not show exactly `length` frames.
    """
    errors, count = [], 0
    with open_video(path) as container:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        for count, frame in enumerate(container.decode(video), start=1):
            if (before := sample.get(count - 1)) is not None:
                difference = luma(frame).astype(np.int16) - before
                errors.append(float(np.mean(np.square(difference, dtype=np.int32))))
    if count != length:
        raise DecodeError(source, f"its chunk shows {count} frames instead of {length}")
    return float(np.mean(errors))


def _ticks(unit: Unit) -> Iterator[av.VideoFrame]:
    """The scaled frame of each tick, in order; raises DecodeError where the source ends before the last."""
    scale = FrameScaler(unit.height, unit.width, unit.rotation)
    tick, shown = 0, unit.shown.tolist()
    for rank, frame in _source_frames(unit):
        if rank != shown[tick]:
            continue
        scaled = scale(frame)
        while shown[tick] == rank:
            yield scaled
            tick += 1
            if tick == len(shown):
                return
    raise DecodeError(unit.source.path, "ends before this frame", shown[tick])


def _source_frames(unit: Unit) -> Iterator[tuple[int, av.VideoFrame]]:
    """(display rank, frame) from the unit's first frame or a little before."""
    if unit.seek_pts is not None:
        frames = _decoded(unit, unit.seek_pts)
        try:
            head = next(frames, None)
        except DecodeError:
            head = None  # what the seek met may be decodable from the start of the file
        if head is not None and head[0] <= unit.shown[0]:
            yield head
            yield from frames
            return
    yield from _decoded(unit, None)


def _decoded(unit: Unit, seek_pts: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
    path, rank = unit.source.path, -1
    rank_of = {pts: unit.first_rank + i for i, pts in enumerate(unit.pts.tolist())}
    try:
        with open_video(path) as container:
            (video,) = (s for s in container.streams.video if s.index == unit.stream)
            video.codec_context.thread_count = 1
            video.codec_context.options = {"err_detect": "explode"}
            if seek_pts is not None:
                container.seek(seek_pts, stream=video)
            for number, frame in enumerate(container.decode(video)):
                known = rank_of.get(frame.pts, -1) if rank_of else number
                if known < 0:
                    continue
                if frame.is_corrupt or (rank >= 0 and known != rank + 1):
                    raise DecodeError(path, "damaged, or frames are missing", rank + 1)
                rank = known
                yield rank, frame
    except av.FFmpegError as error:
        raise DecodeError(path, f"damaged ({error.strerror})", max(rank + 1, 0)) from error
