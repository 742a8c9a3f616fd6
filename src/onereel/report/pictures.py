"""Pictures and numbers as text, so that a page carries them itself."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


def data_uri(jpeg: bytes) -> str:
    """A JPEG file as the `src` of an image."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def jpeg_uri(picture: Image.Image, quality: int) -> str:
    """`data_uri` of a picture, encoded at `quality` (1 to 95)."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return data_uri(file.getvalue())


def frame_picture(frame: Tensor) -> Image.Image:
    """The picture of a uint8 `(3, H, W)` frame."""
    return Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())


def base64_array(values: Tensor) -> str:
    """The bytes of a tensor, little-endian as JavaScript's typed arrays read them on every common machine."""
    array = values.contiguous().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")
