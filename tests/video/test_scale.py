"""Boxes under rotation, and the canvas that frames are drawn on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onereel.types import CropBox
from onereel.video.index import build_packet_index
from onereel.video.scale import Canvas, ScalerCache, coded_box


@given(data=st.data(), turn=st.sampled_from([0, 90, 180, 270]))
def test_the_coded_box_holds_the_displayed_pixels(data: Any, turn: int) -> None:
    height, width = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    coded = np.arange(height * width).reshape(height, width)
    shown = np.rot90(coded, -turn // 90)
    h, w = (2 * data.draw(st.integers(1, side // 2)) for side in shown.shape)
    top = 2 * data.draw(st.integers(0, (shown.shape[0] - h) // 2))
    left = 2 * data.draw(st.integers(0, (shown.shape[1] - w) // 2))
    index = type("Index", (), {"height": height, "width": width, "rotation": turn})()
    box = coded_box(index, CropBox(top, left, h, w))
    part = coded[box.top : box.top + box.height, box.left : box.left + box.width]
    assert (np.rot90(part, -turn // 90) == shown[top : top + h, left : left + w]).all()


def test_scalers_are_reused_and_few_are_kept() -> None:
    cache, made = ScalerCache(), []

    def make(number: int) -> int:
        made.append(number)
        return number

    for number in [*range(40), 39, 38, 0]:
        assert cache.get((number,), lambda n=number: make(n)) == number
    assert made == [*range(40), 0]


def test_a_picture_of_odd_size_turned_over_uses_the_graph(zoo: Callable[[str], Any]) -> None:
    """Half a turn of an odd width puts an even box at an odd column, where the colour planes do not match."""
    index = dataclasses.replace(build_packet_index(zoo("default").path), rotation=180, width=145)
    canvas = Canvas(ScalerCache(), index, 1, CropBox(0, 0, 40, 40), (20, 20))
    assert canvas.box.left % 2 == 1
    frame = av.VideoFrame(146, 96, "yuv420p")
    canvas.draw([0], frame)
    assert type(canvas.scaler).__name__ == "GraphScaler"


@pytest.mark.parametrize("turn", [0, 90])
def test_places_that_share_a_frame_are_all_filled(zoo: Callable[[str], Any], turn: int) -> None:
    index = dataclasses.replace(build_packet_index(zoo("default").path), rotation=turn)
    canvas = Canvas(ScalerCache(), index, 3, None, (30, 20))
    frame = av.VideoFrame.from_ndarray(np.full((144, 144), 99, np.uint8), format="yuv420p")
    canvas.draw([0, 2], frame)
    canvas.draw([1], frame)
    clip = canvas.finish()
    assert clip.shape == (3, 3, 30, 20)
    assert torch.equal(clip[0], clip[1])
    assert torch.equal(clip[0], clip[2])
