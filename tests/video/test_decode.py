"""The reference decoder, and what every decoder refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from onereel.errors import DecodeError
from onereel.types import CropBox
from onereel.video.decode import ReferenceDecoder, VideoFile, finish


@pytest.mark.parametrize("kind", ["default", "rotated_90", "edit_list", "asp_avi"])
def test_frames_come_in_the_order_asked_for(zoo: Callable[[str], Any], kind: str) -> None:
    sample = zoo(kind)
    clip = ReferenceDecoder().read(VideoFile(sample.path), [9, 0, 9, 4], None, None)
    assert clip.dtype == torch.uint8
    assert torch.equal(clip, sample.frames[[9, 0, 9, 4]])


def test_crop_resize_and_flip_are_done_in_this_order() -> None:
    picture = torch.arange(2 * 3 * 8 * 12, dtype=torch.uint8).reshape(2, 3, 8, 12)[0]
    box = CropBox(2, 4, 4, 6, hflip=True)
    assert torch.equal(finish(picture, 0, box, None), picture[:, 2:6, 4:10].flip(-1))
    assert finish(picture, 0, box, (2, 3)).shape == (3, 2, 3)
    upright = torch.rot90(picture, -1, (1, 2))
    assert torch.equal(finish(picture, 90, None, None), upright)
    assert torch.equal(finish(picture, 90, CropBox(0, 2, 4, 4), None), upright[:, :4, 2:6])


def test_a_constant_picture_stays_constant_when_scaled() -> None:
    picture = torch.full((3, 50, 70), 93, dtype=torch.uint8)
    assert (finish(picture, 0, CropBox(2, 4, 40, 60), (17, 29)) == 93).all()


@pytest.mark.parametrize("frames", [[], [-1], [60]])
def test_frames_that_do_not_exist(zoo: Callable[[str], Any], frames: list[int]) -> None:
    with pytest.raises(DecodeError):
        ReferenceDecoder().read(VideoFile(zoo("default").path), frames, None, None)
