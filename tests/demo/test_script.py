"""What the demo's videos are said to show: classes that only time tells, balanced, inside their shots."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest

from onereel.demo.script import MOTIONS, Script, write_scripts

OPPOSITE = {
    a: b
    for (a, (kind, _)), (b, (other, _)) in itertools.permutations(MOTIONS.items(), 2)
    if kind == other
}
MINUTES = 10.0


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    return write_scripts(MINUTES, seed=0)


def test_same_seed_same_scripts_and_other_seed_others(scripts: list[Script]) -> None:
    assert write_scripts(MINUTES, seed=0) == scripts
    assert write_scripts(MINUTES, seed=1) != scripts


def test_videos_are_a_minute_or_two_and_last_as_long_as_asked(scripts: list[Script]) -> None:
    seconds = [script.num_frames / script.fps for script in scripts]
    assert sum(seconds) == pytest.approx(60 * MINUTES, abs=1)
    assert all(55 < length < 120 for length in seconds)
    assert {script.fps for script in scripts} == {15, 20, 25}


def test_events_lie_inside_their_shots_and_never_overlap(scripts: list[Script]) -> None:
    for script in scripts:
        assert script.shots[0].first == 0
        assert script.shots[-1].last == script.num_frames
        for one, after in itertools.pairwise(script.shots):
            assert one.last == after.first
        for event in script.events:
            shot = script.shot_of(event)
            assert shot.first <= event.first < event.last <= shot.last
            assert 1.9 <= (event.last - event.first) / script.fps <= 2.5
        for one, after in itertools.pairwise(script.events):
            assert one.last < after.first


def test_there_are_enough_events_and_classes_are_balanced(scripts: list[Script]) -> None:
    counts = Counter(event.label for script in scripts for event in script.events)
    assert counts.total() > 200
    assert set(counts) == set(MOTIONS)
    assert max(counts.values()) - min(counts.values()) <= len(scripts)


def test_shape_and_colour_are_no_hint(scripts: list[Script]) -> None:
    events = [event for script in scripts for event in script.events]
    for label in MOTIONS:
        looks = {(event.shape, event.color) for event in events if event.label == label}
        assert len({shape for shape, _ in looks}) >= 5
        assert len({color for _, color in looks}) >= 5


def test_events_cross_the_borders_of_15_second_chunks(scripts: list[Script]) -> None:
    crossing = [
        event
        for script in scripts
        for event in script.events
        if event.first // (15 * script.fps) != (event.last - 1) // (15 * script.fps)
    ]
    assert len(crossing) >= 5


def test_a_fifth_of_the_shots_has_a_moving_camera_of_each_kind(scripts: list[Script]) -> None:
    cameras = Counter(shot.camera for script in scripts for shot in script.shots)
    assert cameras["static"] == 4 * (cameras["handheld"] + cameras["pan"])
    assert cameras["handheld"] == cameras["pan"]


def test_objects_stay_inside_the_central_square(scripts: list[Script]) -> None:
    for event in (event for script in scripts for event in script.events):
        for frame in range(event.first, event.last):
            x, y, _ = event.place(frame)
            assert 0.1 < x < 0.9
            assert 0.1 < y < 0.9


def test_an_event_played_backwards_is_one_of_the_opposite_class(scripts: list[Script]) -> None:
    for event in (event for script in scripts for event in script.events):
        opposite = replace(event, label=OPPOSITE[event.label])
        backwards = [event.place(frame) for frame in reversed(range(event.first, event.last))]
        forwards = [opposite.place(frame) for frame in range(event.first, event.last)]
        assert forwards == [pytest.approx(place) for place in backwards]


def test_objects_move_as_the_label_says(scripts: list[Script]) -> None:
    for event in (event for script in scripts for event in script.events):
        x0, y0, r0 = event.place(event.first)
        x1, y1, r1 = event.place(event.last - 1)
        quarter = event.place(event.first + round((event.last - event.first - 1) / 4))
        expected = {
            "moves right": x1 - x0 > 0.4 and y1 == y0,
            "moves left": x0 - x1 > 0.4 and y1 == y0,
            "moves down": y1 - y0 > 0.4 and x1 == x0,
            "moves up": y0 - y1 > 0.4 and x1 == x0,
            # y points down: from the top, clockwise goes right first.
            "circles clockwise": quarter[0] > x0 + 0.1,
            "circles counter-clockwise": quarter[0] < x0 - 0.1,
            "grows": r1 > 3 * r0,
            "shrinks": r0 > 3 * r1,
        }
        assert expected[event.label], event
        assert event.label in event.caption
        assert event.shape in event.caption


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_no_time_at_all_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        write_scripts(minutes, seed=0)
