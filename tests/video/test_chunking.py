"""The constant-rate timeline: which source frame each tick shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.errors import DecodeError
from onereel.video.chunking import Settings, exact_rate, plan, timeline, told_of_rate
from onereel.video.index import PacketIndex, build_packet_index
from onereel.video.sources import Source

SETTINGS = Settings(0.5, 64, None, "fast", 23.0, None)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> PacketIndex:
    return build_packet_index(str(make_video(tmp_path_factory.mktemp("v") / "a.mp4", 30, 32, 48)))


def with_times(index: PacketIndex, times: list[float], constant: bool, fps: float) -> PacketIndex:
    return dataclasses.replace(index, frame_times=np.array(times), constant_rate=constant, fps=fps)


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (30.0, 30),
        (25, 25),
        (12.5, Fraction(25, 2)),
        (0.5, Fraction(1, 2)),
        (24.829157, Fraction(10900, 439)),
    ],
)
def test_rates_are_rounded_to_those_people_mean(fps: float, exact: Fraction) -> None:
    assert exact_rate(fps) == exact


@given(st.integers(1, 500_000), st.sampled_from([24, 25, 30, 60]), st.floats(-2e-4, 2e-4))
def test_a_rounded_rate_never_drifts_by_half_a_frame(
    index: PacketIndex, num_frames: int, usual: int, error: float
) -> None:
    fps = usual * (1 + error)
    rate = exact_rate(fps, num_frames)
    assert num_frames * abs(float(rate) / fps - 1) < 0.5
    assert max(rate.numerator, rate.denominator) < 2**31  # what MP4 and the manifest can hold


def test_an_hour_near_a_usual_rate_keeps_its_time(index: PacketIndex) -> None:
    fps = 30 * (1 + 9e-5)  # taken for 30, the last frame would come 0.32 s late
    times = [i / fps for i in range(108_000)]
    rate, shown = timeline(with_times(index, times, True, fps), None)
    assert np.abs(np.arange(len(shown)) / float(rate) - times).max() < 0.5 / fps
    _, shown = timeline(with_times(index, times, True, fps), Fraction(30))
    assert np.abs(np.array(times)[shown] - np.arange(len(shown)) / 30).max() < 0.51 / fps


@given(st.integers(1, 400), st.sampled_from([10, 24, 25, 29.97, 30, 59.94]))
def test_a_constant_rate_maps_one_to_one(index: PacketIndex, num_frames: int, fps: float) -> None:
    times = [i / fps for i in range(num_frames)]
    rate, shown = timeline(with_times(index, times, True, fps), None)
    assert rate == exact_rate(fps)
    assert shown.tolist() == list(range(num_frames))


@given(
    st.lists(st.floats(0.01, 0.5), min_size=1, max_size=60),
    st.sampled_from([None, Fraction(10), Fraction(30000, 1001)]),
)
def test_each_tick_shows_the_last_frame_begun_half_a_tick_later(
    index: PacketIndex, gaps: list[float], fps: Fraction | None
) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)]).tolist()
    rate, shown = timeline(with_times(index, times, False, len(gaps) / times[-1]), fps)
    for tick, frame in enumerate(shown.tolist()):
        begun = [i for i, t in enumerate(times) if t <= (tick + 0.5) / float(rate) + 1e-6]
        assert frame == begun[-1]
    last = len(shown) / float(rate) - times[-1]
    rounding = 0.51 / float(rate) + 1e-6
    assert min(gaps) - rounding <= last <= float(np.mean(gaps)) + rounding or len(shown) == 1


def test_a_pause_costs_no_frame_but_repeats_of_the_one_before(index: PacketIndex) -> None:
    times = [i / 10 for i in range(50)] + [365 + i / 10 for i in range(50)]
    rate, shown = timeline(with_times(index, times, False, 99 / times[-1]), None)
    assert rate == 10
    assert np.unique(shown).tolist() == list(range(100))
    assert (shown == 49).sum() == 3601
    assert len(shown) == 3700


@given(st.lists(st.sampled_from([1, 1, 1, 2, 3]), min_size=1, max_size=200))
def test_frames_that_a_phone_drops_are_no_pause(index: PacketIndex, gaps: list[int]) -> None:
    times = (np.cumsum([0, *gaps]) / 30).tolist()
    video = with_times(index, times, False, len(gaps) / times[-1])
    assert timeline(video, None)[0] == exact_rate(video.fps, len(times))


def test_a_rate_that_repeats_or_leaves_out_most_frames_is_told(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    def told(pts: list[int], settings: Settings = SETTINGS) -> str:
        path = make_video(tmp_path / "a.mkv", len(pts), 32, 48, pts=pts)
        return told_of_rate(plan(Source("a.mkv", str(path), "chunks/a.mkv"), settings))

    paused = [*range(0, 1000, 100), *range(5000, 6000, 100)]
    assert told(paused) == (
        "at 10 frames a second, its rate outside of pauses, 40 of 60 frames repeat the one before"
    )
    assert told(paused, dataclasses.replace(SETTINGS, fps="20")) == ""
    assert told([0, 20, 80, 100, 160, 180, 240]) == ""
    bursts = [start + i for start in range(0, 1000, 100) for i in range(4)]
    assert "of 40 frames are left out" in told(bursts)
    with pytest.raises(DecodeError, match="its clock jumps: it lasts 1000 s, of which"):
        told([0, 100, 200, 300, 400, 500, 600, 700, 800, 1_000_000])


def test_half_the_rate_takes_every_other_frame(index: PacketIndex) -> None:
    _, shown = timeline(with_times(index, [i / 30 for i in range(30)], True, 30.0), Fraction(15))
    assert len(shown) == 15
    assert np.diff(shown).tolist() == [2] * 14


def test_a_long_video_becomes_several_units(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_video(tmp_path / "a.mp4", 150, 32, 48, options={"g": "20"})
    units = plan(Source("a.mp4", str(path), "chunks/a.mp4"), SETTINGS)
    assert [u.first_chunk for u in units] == [0, 4, 8]
    assert [len(u.shown) for u in units] == [60, 60, 30]
    assert units[0].seek_pts is None
    assert units[1].seek_pts is not None
    assert 0 < units[1].first_rank <= 60 == units[1].shown[0]
    assert np.concatenate([u.shown for u in units]).tolist() == list(range(150))
