"""Which pixels a clip takes: boxes on the even lattice, drawn from a generator.

Sizes are rounded to the nearest even number and positions are drawn among even ones, so the last row or column of an
odd-sized frame is never part of a box.
"""

from __future__ import annotations

import math

import numpy as np

from onereel.errors import DataError
from onereel.types import CropBox

# VideoMAE, Kinetics and SSv2 pre-training: sides relative to the shorter one (TSN's multi-scale crop).
MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
# Top and left in quarters of the room: corners, centre, edge middles, and the points halfway to the corners.
MULTI_SCALE_OFFSETS = (
    *((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)),
    *((2, 0), (2, 4), (4, 2), (0, 2)),
    *((1, 1), (1, 3), (3, 1), (3, 3)),
)


def random_resized_box(
    height: int,
    width: int,
    generator: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> CropBox:
    """A box of random area and shape at a random place, as torchvision's RandomResizedCrop draws it.

    Args:
        scale: lowest and highest share of the frame's area; uniform.
        ratio: lowest and highest width over height; log-uniform.

    Ten tries; if none fits, the largest central box within `ratio`. Raises DataError for frames below 2 pixels.
    """
    _check_frame(height, width)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        shape = math.exp(generator.uniform(low, high))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        if round(w) <= width and round(h) <= height:
            h, w = _even_size(h, height), _even_size(w, width)
            top = 2 * int(generator.integers((height - h) // 2 + 1))
            left = 2 * int(generator.integers((width - w) // 2 + 1))
            return CropBox(top, left, h, w)
    return _place(height, width, width / ratio[0], height * ratio[1], 2, 2)


def multi_scale_box(
    height: int,
    width: int,
    generator: np.random.Generator,
    scales: tuple[float, ...] = MULTI_SCALES,
) -> CropBox:
    """A box whose sides are two of `scales`, at most one step apart, times the shorter side, at one of 13 places.

    As in TSN and VideoMAE. Raises DataError for frames below 2 pixels.
    """
    _check_frame(height, width)
    sides = [int(min(height, width) * s) for s in scales]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    h, w = pairs[generator.integers(len(pairs))]
    return _place(
        height, width, h, w, *MULTI_SCALE_OFFSETS[generator.integers(len(MULTI_SCALE_OFFSETS))]
    )


def center_box(height: int, width: int) -> CropBox:
    """The largest central square; scaled to the clip's size at test time, so that the short side is seen whole."""
    return three_crop_box(height, width, 1)


def three_crop_box(height: int, width: int, which: int) -> CropBox:
    """One of three largest squares along the longer side: 0 left or top, 1 centre, 2 right or bottom.

    Raises DataError for frames below 2 pixels.
    """
    _check_frame(height, width)
    side = min(height, width) // 2 * 2
    return _place(height, width, side, side, 2 * which, 2 * which)


def union_box(boxes: list[CropBox]) -> CropBox:
    """The smallest box that holds all of `boxes`."""
    top, left = min(b.top for b in boxes), min(b.left for b in boxes)
    bottom = max(b.top + b.height for b in boxes)
    right = max(b.left + b.width for b in boxes)
    return CropBox(top, left, bottom - top, right - left)


def _place(
    height: int, width: int, h: float, w: float, top_quarters: int, left_quarters: int
) -> CropBox:
    """A box of about (h, w), that many quarters of the room from the top left."""
    h, w = _even_size(h, height), _even_size(w, width)
    rows, columns = (height - h) // 2, (width - w) // 2
    return CropBox(2 * (rows * top_quarters // 4), 2 * (columns * left_quarters // 4), h, w)


def _even_size(size: float, limit: int) -> int:
    """The even number nearest to `size`, from 2 to `limit`."""
    return max(2, min(2 * round(size / 2), limit // 2 * 2))


def _check_frame(height: int, width: int) -> None:
    if min(height, width) < 2:
        raise DataError(f"a frame of {width}x{height} pixels is too small: at least 2x2")
