"""Pixels of the demo's videos: textured backgrounds, a camera, sensor noise, and anti-aliased shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onereel.demo.script import COLORS, Event, Script, Shot
from onereel.seeding import numpy_generator

NOISE_SIGMA = 2.0
"""Grey levels. Run-length tokens take noise for motion from a sigma of 5 to 6 on."""
PAN_SECONDS = 12.0
"""Time in which a panning camera passes one width of the frame."""
SHAKE_PIXELS = 6
RIM_PIXELS = 2.0


def draw_frames(script: Script, width: int, height: int) -> Iterator[np.ndarray]:
    """The frames of a video in order, uint8 `(height, width, 3)` RGB."""
    noise = _noise_field(script, width, height)
    for number, shot in enumerate(script.shots):
        generator = numpy_generator(script.seed, number, script.number, "demo shot")
        corners = camera_path(shot, script.fps, width, generator)
        span_x, span_y = corners.max(axis=0) - corners.min(axis=0)
        scene = background(height + span_y, width + span_x, generator)
        events = [event for event in script.events if shot.first <= event.first < shot.last]
        for frame, (left, top) in enumerate(corners - corners.min(axis=0), shot.first):
            picture = scene[top : top + height, left : left + width].copy()
            for event in events:
                if event.first <= frame < event.last:
                    shake = corners[frame - shot.first] if shot.camera == "handheld" else (0, 0)
                    draw_object(picture, event, frame, shake)
            row, column = generator.integers(0, [noise.shape[0] - height, noise.shape[1] - width])
            picture += noise[row : row + height, column : column + width]
            yield np.clip(picture, 0, 255).astype(np.uint8)


def camera_path(shot: Shot, fps: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Where the frame's top left corner lies in the scene, int64 `(frames of the shot, 2)` as (x, y) pixels.

    Labels speak of the frame: in a pan the background slides behind the object, in a hand-held shot both shake.
    """
    time = np.arange(shot.last - shot.first) / fps
    if shot.camera == "pan":
        speed = generator.choice([-1, 1]) * width / PAN_SECONDS
        return np.stack([np.round(time * speed), np.zeros_like(time)], axis=1).astype(np.int64)
    if shot.camera == "handheld":
        hertz = generator.uniform(0.3, 1.7, (4, 2))
        phase = generator.uniform(0, 2 * np.pi, (4, 2))
        sway = np.sin(2 * np.pi * time[:, None, None] * hertz + phase).mean(axis=1)
        return np.round(SHAKE_PIXELS * sway).astype(np.int64)
    return np.zeros((len(time), 2), np.int64)


def background(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """A muted texture of four scales, int16 `(height, width, 3)` in 20..200 or so."""
    relief = np.zeros((height, width))
    for cell, amplitude in ((96, 14.0), (32, 9.0), (9, 6.0), (2, 4.0)):
        relief += amplitude * _smooth_noise(height, width, cell, generator)
    tint = generator.uniform(0.6, 1.4, 3)
    base = generator.uniform(80, 140) + generator.uniform(-14, 14, 3)
    return np.clip(base + relief[..., None] * tint, 16, 235).astype(np.int16)


def draw_object(
    picture: np.ndarray, event: Event, frame: int, shift: tuple[int, int] | np.ndarray = (0, 0)
) -> None:
    """Paint the event's object into `picture`, int16 `(H, W, 3)`, in place; `shift` is the camera's, in pixels."""
    height, width, _ = picture.shape
    x, y, radius = (value * height for value in event.place(frame))
    x, y = x + (width - height) / 2 - shift[0], y - shift[1]
    reach = 1.2 * radius + 2
    top, bottom = (int(v) for v in np.clip([y - reach, y + reach + 2], 0, height))
    left, right = (int(v) for v in np.clip([x - reach, x + reach + 2], 0, width))
    rows, columns = np.mgrid[top:bottom, left:right]
    distance = signed_distance(event.shape, columns - x, rows - y, radius)[..., None]
    inside = np.clip(0.5 - distance, 0, 1)
    rim = np.clip(0.5 + RIM_PIXELS + distance, 0, 1)
    color = np.asarray(COLORS[event.color]) * (1 - 0.65 * rim)
    box = picture[top:bottom, left:right]
    box[:] = np.round(box + inside * (color - box))


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Pixels outside (positive) or inside (negative) the outline of a shape centred on the origin."""
    ax, ay = abs(x), abs(y)
    if shape == "disc":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.7 * radius) - 0.32 * radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.85 * radius
    if shape == "diamond":
        return (ax + ay) / np.sqrt(2) - 0.8 * radius
    if shape == "triangle":
        return np.maximum(y, np.sqrt(0.75) * ax - y / 2) - 0.58 * radius
    arm, end = 0.36 * radius, radius
    return np.minimum(np.maximum(ax - arm, ay - end), np.maximum(ax - end, ay - arm))


def _noise_field(script: Script, width: int, height: int) -> np.ndarray:
    """Sensor noise somewhat larger than a frame: each frame takes it from a random place, which costs no drawing."""
    generator = numpy_generator(script.seed, 0, script.number, "demo noise")
    field = generator.standard_normal((height + 64, width + 64, 3), dtype=np.float32)
    return np.round(NOISE_SIGMA * field).astype(np.int16)


def _smooth_noise(height: int, width: int, cell: int, generator: np.random.Generator) -> np.ndarray:
    """Normal values on a lattice of `cell` pixels, interpolated bilinearly to `(height, width)`."""
    values = generator.standard_normal((height // cell + 2, width // cell + 2))
    return _hat_weights(height, cell) @ values @ _hat_weights(width, cell).T


def _hat_weights(length: int, cell: int) -> np.ndarray:
    """Linear interpolation as a matrix `(length, nodes)`."""
    nodes = np.arange(length // cell + 2)
    return np.clip(1 - abs(np.arange(length)[:, None] / cell - nodes), 0, None)
