"""What is written into a page can be read back."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.report.pictures import base64_array, frame_picture, jpeg_uri


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_arrays_are_little_endian(dtype: torch.dtype) -> None:
    values = torch.arange(-3, 9).view(3, 4).to(dtype).T
    array = np.frombuffer(
        base64.b64decode(base64_array(values)), f"<{'f' if dtype.is_floating_point else 'i'}4"
    )
    assert np.array_equal(array, values.flatten().numpy())
    assert base64_array(torch.tensor([1], dtype=torch.int32)) == "AQAAAA=="


def test_pictures_survive() -> None:
    frame = torch.zeros(3, 32, 48, dtype=torch.uint8)
    frame[0, :, 24:] = 250
    uri = jpeg_uri(frame_picture(frame), 95)
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as picture:
        shown = torch.from_numpy(np.array(picture)).permute(2, 0, 1).int()
    assert shown.shape == frame.shape
    assert (shown - frame.int()).abs().float().mean() < 4
