"""Which frames a clip takes: integers from a generator, nothing else."""

from __future__ import annotations

import numpy as np

from onereel.errors import DataError
from onereel.types import VideoInfo


def frame_span(
    info: VideoInfo, start: float | None = None, end: float | None = None
) -> tuple[int, int]:
    """Frames (first, stop) of `start` to `end` seconds, stop excluded, at least one frame.

    A border falls on the frame nearest in time: round(seconds * fps), half to even, at a constant rate (AVION); by
    frame times where the rate varies. A start within the last frame is that frame, and an end behind the video's is
    cut. Raises DataError where the span lies wholly outside the video.
    """
    first = 0 if start is None else _nearest_frame(info, start)
    if first == info.num_frames and start is not None and start < info.duration_seconds:
        first -= 1
    stop = info.num_frames if end is None else min(_nearest_frame(info, end), info.num_frames)
    if first >= info.num_frames:
        raise DataError(
            f"the record starts at {start:g} s, but the video has {info.duration_seconds:.2f} s"
        )
    return first, max(stop, first + 1)


def is_past_end(info: VideoInfo, end: float | None) -> bool:
    """Whether a record ends more than half a frame behind its video."""
    return end is not None and _nearest_frame(info, end) > info.num_frames


def segment_frames(
    first: int,
    stop: int,
    num_frames: int,
    generator: np.random.Generator | None = None,
    clip: int = 0,
    num_clips: int = 1,
) -> tuple[int, ...]:
    """One frame of each of `num_frames` equal parts of [first, stop) (TSN; AVION's form of it).

    With a generator, each part's midpoint moves by U(-1/2, 1/2) * (stop - first - 1) / num_frames. Without one, view
    `clip` of `num_clips` takes the point (2 * clip + 1) / (2 * num_clips) of each part: the midpoint for one view.
    Spans shorter than `num_frames` repeat frames.
    """
    span = stop - first
    if generator is None:
        steps = 2 * num_clips * num_frames
        offsets = [2 * num_clips * part + 2 * clip + 1 for part in range(num_frames)]
        return tuple(first + span * offset // steps for offset in offsets)
    midpoints = first + (np.arange(num_frames) + 0.5) * span / num_frames
    jitter = (generator.random(num_frames) - 0.5) * (span - 1) / num_frames
    return tuple(int(frame) for frame in midpoints + jitter)


def dense_frames(
    first: int,
    stop: int,
    num_frames: int,
    sampling_rate: int,
    generator: np.random.Generator | None = None,
    clip: int = 0,
    num_clips: int = 1,
) -> tuple[int, ...]:
    """`num_frames` frames of [first, stop), `sampling_rate` apart.

    With a generator the start is uniform over all that fit. Without one, a single view is centred, and several spread
    evenly from the first start that fits to the last. In a span that is too short the clip starts at `first` and
    repeats the last frame.
    """
    room = max(0, stop - first - ((num_frames - 1) * sampling_rate + 1))
    if generator is not None:
        start = int(generator.integers(room + 1))
    elif num_clips == 1:
        start = room // 2
    else:
        start = (2 * room * clip + num_clips - 1) // (2 * (num_clips - 1))
    return tuple(min(first + start + i * sampling_rate, stop - 1) for i in range(num_frames))


def _nearest_frame(info: VideoInfo, seconds: float) -> int:
    """The frame nearest in time; `num_frames` or more behind the end of the last one."""
    times = info.frame_times
    if times is None:
        return round(seconds * info.fps)
    after = int(np.searchsorted(times, seconds))
    if after == 0:
        return 0
    if after == len(times):
        return after if seconds - times[-1] > 0.5 / info.fps else after - 1
    return after if times[after] - seconds < seconds - times[after - 1] else after - 1
