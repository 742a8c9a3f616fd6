import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.data.sampling import dense_frames, frame_span, is_past_end, segment_frames
from onereel.errors import DataError
from onereel.seeding import numpy_generator
from onereel.types import VideoInfo

SPANS = st.tuples(st.integers(0, 10_000), st.integers(1, 2_000)).map(lambda s: (s[0], sum(s)))
NUM_FRAMES = st.integers(1, 64)
SEEDS = st.none() | st.integers(0, 1000)


def generator(seed):
    return None if seed is None else numpy_generator(seed)


# AVION's frame numbers: (start, end, fps, T) -> frames.
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, (3, 11, 18, 26)),
        (14.5, 15.5, (438, 446, 453, 461)),
        (2, 4, (67, 82, 97, 112)),
        (0, 0.1, (0, 1, 1, 2)),
    ],
)
def test_segment_midpoints_are_those_of_avion(start, end, expected):
    info = VideoInfo(num_frames=9000, fps=30.0, height=4, width=4)
    assert segment_frames(*frame_span(info, start, end), 4) == expected
    varying = VideoInfo(9000, 30.0, 4, 4, frame_times=np.arange(9000) / 30)
    assert segment_frames(*frame_span(varying, start, end), 4) == expected


@given(SPANS, NUM_FRAMES, SEEDS, st.integers(1, 5), st.data())
def test_segment_frames_lie_in_order_in_their_parts(span, num_frames, seed, num_clips, data):
    first, stop = span
    clip = data.draw(st.integers(0, num_clips - 1))
    frames = segment_frames(first, stop, num_frames, generator(seed), clip, num_clips)
    assert len(frames) == num_frames
    part = (stop - first) / num_frames
    for i, frame in enumerate(frames):
        assert isinstance(frame, int)
        assert first <= frame < stop
        assert first + i * part - 1 < frame < first + (i + 1) * part
    assert list(frames) == sorted(frames)


def test_segment_jitter_covers_each_part_evenly():
    draws = np.array([segment_frames(0, 40, 4, numpy_generator(i)) for i in range(4000)])
    assert np.allclose(draws.mean(0), [4.5, 14.5, 24.5, 34.5], atol=0.2)
    for part in range(4):
        assert set(draws[:, part]) == set(range(10 * part, 10 * part + 10))
    # U(-1/2, 1/2) * 39 / 4, rounded down: standard deviation sqrt(9.75^2 / 12 + 1 / 12 - ...) of about 2.8.
    assert np.allclose(draws.std(0), 9.75 / 12**0.5, atol=0.1)


def test_segment_views_share_no_frame_when_there_are_enough():
    views = [segment_frames(0, 160, 16, None, clip, 2) for clip in range(2)]
    assert views[0] == tuple(range(2, 160, 10))
    assert views[1] == tuple(range(7, 160, 10))


@given(SPANS, NUM_FRAMES, st.integers(1, 8), SEEDS, st.integers(1, 10), st.data())
def test_dense_frames_are_sampling_rate_apart(span, num_frames, rate, seed, num_clips, data):
    first, stop = span
    clip = data.draw(st.integers(0, num_clips - 1))
    frames = dense_frames(first, stop, num_frames, rate, generator(seed), clip, num_clips)
    assert len(frames) == num_frames
    assert all(isinstance(frame, int) and first <= frame < stop for frame in frames)
    for a, b in itertools.pairwise(frames):
        assert b - a == rate or b == stop - 1
    extent = (num_frames - 1) * rate + 1
    if extent <= stop - first:
        assert frames[-1] - frames[0] == extent - 1
    else:
        assert frames[0] == first


def test_dense_views_spread_from_first_to_last():
    starts = [dense_frames(0, 100, 4, 3, None, clip, 3)[0] for clip in range(3)]
    assert starts == [0, 45, 90]
    assert dense_frames(0, 100, 4, 3) == (45, 48, 51, 54)
    assert dense_frames(10, 14, 4, 3) == (10, 13, 13, 13)


def test_dense_starts_are_uniform():
    starts = [dense_frames(5, 25, 4, 4, numpy_generator(i))[0] for i in range(3000)]
    counts = np.bincount(starts, minlength=13)[5:]
    assert len(counts) == 8
    assert (abs(counts - 375) < 90).all()


def test_span_at_a_varying_rate_follows_the_clock():
    times = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.0])
    info = VideoInfo(6, 0.6, 4, 4, frame_times=times)
    assert frame_span(info) == (0, 6)
    assert frame_span(info, 5.0, 9.0) == (3, 5)
    assert frame_span(info, 0.14, 5.04) == (1, 3)
    assert frame_span(info, 6.0) == (4, 6)
    assert frame_span(info, 5.1, 100.0) == (4, 6)
    assert frame_span(info, 9.99, 12.0) == (5, 6)
    with pytest.raises(DataError, match=r"starts at 11 s, but the video has 10\.00 s"):
        frame_span(info, 11)


@given(st.floats(0, 400), st.floats(0.001, 50), st.integers(1, 9000))
def test_span_is_inside_the_video_or_refused(start, length, num_frames):
    info = VideoInfo(num_frames, 25.0, 4, 4)
    if round(start * 25) >= num_frames:
        with pytest.raises(DataError, match="the record starts at"):
            frame_span(info, start, start + length)
    else:
        first, stop = frame_span(info, start, start + length)
        assert 0 <= first < stop <= num_frames


def test_an_end_is_past_the_video_from_half_a_frame_on():
    info = VideoInfo(60, 30.0, 48, 64)
    ends = {None: False, 1.9: False, 2.0: False, 2.01: False, 2.03: True, 9.0: True}
    assert {end: is_past_end(info, end) for end in ends} == ends
    varying = VideoInfo(3, 2.0, 48, 64, np.array([0.0, 0.1, 1.0]))
    assert not is_past_end(varying, 1.2)


@given(st.integers(1, 400), st.sampled_from([10, 12.5, 25, 30000 / 1001]), st.floats(0, 1))
def test_a_record_may_start_anywhere_within_the_video(
    num_frames: int, fps: float, place: float
) -> None:
    info = VideoInfo(num_frames, fps, 48, 64)
    start = place * info.duration_seconds * (1 - 1e-9)
    first, stop = frame_span(info, start, start + 1)
    assert abs(first - start * fps) <= 1
    assert first < stop <= num_frames
    with pytest.raises(DataError, match="but the video has"):
        frame_span(info, info.duration_seconds)
