"""Pixels of the demo: noise, cameras, and shapes that are where the script says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from onereel.demo.drawing import NOISE_SIGMA, camera_path, draw_frames, draw_object
from onereel.demo.script import COLORS, SHAPES, Event, Script, Shot, write_scripts
from onereel.seeding import numpy_generator

WIDTH, HEIGHT = 192, 144
EVENT = Event("moves right", "disc", "red", 0, 30, 0.5, 0.5, 0.12, (0.5,))


def short_script(camera: str, events: tuple[Event, ...] = ()) -> Script:
    return Script("reel", 0, 0, 15, 30, (Shot(camera, 0, 30),), events)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frame", [0, 11, 29])
def test_an_object_is_painted_around_its_place(shape: str, frame: int) -> None:
    event = replace(EVENT, shape=shape, color="white")
    picture = np.zeros((HEIGHT, WIDTH, 3), np.int16)
    draw_object(picture, event, frame)
    weight = picture[..., 0] / picture[..., 0].sum()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y, radius = (value * HEIGHT for value in event.place(frame))
    assert (weight * columns).sum() == pytest.approx(x + (WIDTH - HEIGHT) / 2, abs=0.3)
    assert (weight * rows).sum() == pytest.approx(y, abs=0.3)
    painted = (picture[..., 0] > 0).sum()
    assert 0.8 * radius**2 < painted < 3.6 * radius**2


def test_an_object_at_the_edge_is_cut_off_not_wrapped() -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.int16)
    draw_object(picture, EVENT, 0, (WIDTH // 2, 0))
    assert not picture[:, WIDTH // 2 :].any()
    draw_object(picture, EVENT, 0, (10 * WIDTH, 0))
    assert not picture[:, WIDTH // 2 :].any()


def test_a_static_shot_without_events_holds_still_but_for_sensor_noise() -> None:
    frames = np.stack(list(draw_frames(short_script("static"), WIDTH, HEIGHT))).astype(float)
    assert frames.shape == (30, HEIGHT, WIDTH, 3)
    noise = frames - frames.mean(axis=0)
    assert noise.std() == pytest.approx(NOISE_SIGMA, rel=0.1)
    assert frames.mean(axis=0).std() > 5  # the background has texture


@pytest.mark.parametrize(("camera", "least"), [("handheld", 2), ("pan", 20)])
def test_moving_cameras_move_smoothly_and_alike_for_the_same_draw(camera: str, least: int) -> None:
    shot = Shot(camera, 0, 60)
    paths = [camera_path(shot, 15, 384, numpy_generator(0, 0, 0, "test")) for _ in range(2)]
    assert np.array_equal(*paths)
    assert abs(paths[0] - paths[0][0]).max() >= least
    assert abs(np.diff(paths[0], axis=0)).max() <= 5


def test_frames_are_a_function_of_the_script() -> None:
    script = short_script("handheld", (EVENT,))
    once, twice = (list(draw_frames(script, WIDTH, HEIGHT)) for _ in range(2))
    assert np.array_equal(once, twice)
    other = list(draw_frames(replace(script, seed=1), WIDTH, HEIGHT))
    assert not np.array_equal(once, other)


def test_an_object_is_there_exactly_during_its_event() -> None:
    event = replace(EVENT, color="yellow", first=5, last=25)
    frames = list(draw_frames(short_script("static", (event,)), WIDTH, HEIGHT))
    yellow = [
        (abs(frame.astype(int) - COLORS["yellow"]).max(axis=-1) < 25).sum() for frame in frames
    ]
    assert [count > 100 for count in yellow] == [5 <= frame < 25 for frame in range(30)]


def test_backgrounds_differ_from_shot_to_shot() -> None:
    script = write_scripts(0.5, seed=0)[0]
    frames = draw_frames(script, WIDTH, HEIGHT)
    firsts = {shot.first for shot in script.shots}
    shown = [frame.astype(int) for number, frame in enumerate(frames) if number in firsts]
    for one, other in itertools.combinations(shown, 2):
        assert abs(one - other).mean() > 5
