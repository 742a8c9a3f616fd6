"""What happens in the demo's videos: which shots, which objects, when they move and how. Numbers only, no pixels.

Every class has an opposite, and an event played backwards is an event of the opposite class. So the frames without
their order never say which of the two they show, and shape, colour, place and background are drawn regardless of
class: only motion over time tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onereel.seeding import numpy_generator

SHAPES = ("square", "disc", "triangle", "diamond", "cross", "ring")
COLORS = {
    "red": (214, 48, 40),
    "green": (40, 168, 72),
    "blue": (44, 92, 220),
    "yellow": (240, 204, 36),
    "purple": (150, 60, 190),
    "orange": (244, 132, 30),
    "white": (244, 244, 240),
}
MOTIONS = {
    "moves right": ("horizontal", False),
    "moves left": ("horizontal", True),
    "moves down": ("vertical", False),
    "moves up": ("vertical", True),
    "circles clockwise": ("circle", False),
    "circles counter-clockwise": ("circle", True),
    "grows": ("scale", False),
    "shrinks": ("scale", True),
}
"""Label -> (kind of motion, whether it runs backwards)."""

VIDEO_SECONDS = 75.0
EVENT_SECONDS = (2.0, 2.4)
GAP_SECONDS = (0.1, 0.4)
SHOTS_PER_VIDEO = 5
"""Of which exactly one has a moving camera: hand-held in even videos, panning in odd ones (a fifth of all shots)."""
FRAME_RATES = (15, 20, 25)
NEAR_EDGE, FAR_EDGE = 0.16, 0.84


@dataclass(frozen=True)
class Event:
    """One object doing one thing. Lengths are in short sides of the frame, origin top left of its central square.

    Attributes:
        first: frame of the video in which the object appears.
        last: first frame in which it is gone.
        path: for "horizontal" and "vertical": travel; "circle": orbit's radius and starting angle; "scale": growth.
    """

    label: str
    shape: str
    color: str
    first: int
    last: int
    x: float
    y: float
    radius: float
    path: tuple[float, ...]

    @property
    def caption(self) -> str:
        article = "an" if self.color[0] in "aeiou" else "a"
        return f"{article} {self.color} {self.shape} {self.label}"

    def place(self, frame: int) -> tuple[float, float, float]:
        """(x, y, radius) of the object at `frame` of the video; `first <= frame < last`."""
        kind, backwards = MOTIONS[self.label]
        done = (frame - self.first) / max(1, self.last - 1 - self.first)
        done = 1 - done if backwards else done
        if kind == "horizontal":
            return self.x + (done - 0.5) * self.path[0], self.y, self.radius
        if kind == "vertical":
            return self.x, self.y + (done - 0.5) * self.path[0], self.radius
        if kind == "scale":
            return self.x, self.y, self.radius * self.path[0] ** (done - 0.5)
        orbit, start = self.path
        angle = start + 2 * math.pi * done
        return self.x + orbit * math.cos(angle), self.y + orbit * math.sin(angle), self.radius


@dataclass(frozen=True)
class Shot:
    """Frames `[first, last)` of one background; camera is "static", "handheld" or "pan"."""

    camera: str
    first: int
    last: int


@dataclass(frozen=True)
class Script:
    """One video: everything that its pixels depend on, with `seed` and `number`."""

    name: str
    number: int
    seed: int
    fps: int
    num_frames: int
    shots: tuple[Shot, ...]
    events: tuple[Event, ...]

    def shot_of(self, event: Event) -> Shot:
        return next(shot for shot in self.shots if shot.first <= event.first < shot.last)


def write_scripts(minutes: float, seed: int) -> list[Script]:
    """Scripts of videos of about `VIDEO_SECONDS` each that last `minutes` together; at least two videos."""
    if not minutes > 0:
        raise ValueError(f"minutes is {minutes!r}; allowed: above 0")
    count = max(2, round(60 * minutes / VIDEO_SECONDS))
    generator = numpy_generator(seed, 0, 0, "demo durations")
    share = generator.uniform(0.8, 1.2, count)
    seconds = 60 * minutes * share / share.sum()
    return [_script(number, float(length), seed) for number, length in enumerate(seconds)]


def _script(number: int, seconds: float, seed: int) -> Script:
    generator = numpy_generator(seed, 0, number, "demo script")
    fps = FRAME_RATES[number % len(FRAME_RATES)]
    num_frames = max(SHOTS_PER_VIDEO, round(seconds * fps))
    shots = _shots(number, num_frames, generator)
    labels = _endless_labels(generator)
    events = [event for shot in shots for event in _events(shot, fps, labels, generator)]
    return Script(f"reel_{number:02d}", number, seed, fps, num_frames, shots, tuple(events))


def _shots(number: int, num_frames: int, generator: np.random.Generator) -> tuple[Shot, ...]:
    share = generator.uniform(0.8, 1.2, SHOTS_PER_VIDEO)
    cuts = np.round(np.cumsum(share / share.sum()) * num_frames).astype(int).tolist()
    cameras = ["static"] * SHOTS_PER_VIDEO
    cameras[generator.integers(SHOTS_PER_VIDEO)] = ("handheld", "pan")[number % 2]
    return tuple(Shot(*one) for one in zip(cameras, [0, *cuts[:-1]], cuts))


def _endless_labels(generator: np.random.Generator) -> Iterator[str]:
    """All labels in random order, again and again: classes are balanced within every video."""
    while True:
        for index in generator.permutation(len(MOTIONS)):
            yield list(MOTIONS)[index]


def _events(
    shot: Shot, fps: int, labels: Iterator[str], generator: np.random.Generator
) -> list[Event]:
    events: list[Event] = []
    frame = shot.first
    while True:
        first = frame + round(generator.uniform(*GAP_SECONDS) * fps)
        last = first + round(generator.uniform(*EVENT_SECONDS) * fps)
        if last > shot.last:
            return events
        events.append(_event(next(labels), first, last, generator))
        frame = last


def _event(label: str, first: int, last: int, generator: np.random.Generator) -> Event:
    kind, _ = MOTIONS[label]
    draw = generator.uniform
    radius, travel, reach_x, reach_y = draw(0.11, 0.15), draw(0.46, 0.62), 0.0, 0.0
    path: tuple[float, ...] = (travel,)
    if kind == "horizontal":
        reach_x = travel / 2
    elif kind == "vertical":
        reach_y = travel / 2
    elif kind == "circle":
        # One turn that begins and ends near the top, so that it is the same set of places backwards.
        reach_x = reach_y = draw(0.26, 0.32)
        path = (reach_x, draw(-0.56, -0.44) * math.pi)
    else:
        path = (draw(3.5, 5.0),)
    return Event(
        label=label,
        shape=SHAPES[generator.integers(len(SHAPES))],
        color=list(COLORS)[generator.integers(len(COLORS))],
        first=first,
        last=last,
        x=draw(NEAR_EDGE + reach_x, FAR_EDGE - reach_x),
        y=draw(NEAR_EDGE + reach_y, FAR_EDGE - reach_y),
        radius=radius,
        path=path,
    )
