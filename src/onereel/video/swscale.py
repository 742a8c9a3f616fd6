"""FFmpeg's scaler, called where PyAV's wheel keeps it, so that pixels go straight into a tensor's planes.

PyAV reaches the scaler only through filter graphs and whole frames, which costs a copy per frame and a graph per crop.
The library is found by its file name, checked against a filter graph once, and not used where either fails.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from torch import Tensor

# libswscale/swscale.h: bilinear (widened when it shrinks, so antialiased), full chroma, exact rounding
FLAGS = 0x2 | 0x2000 | 0x40000
# libswscale/swscale.h, SWS_CS_*, by the AVColorSpace numbers of a frame; all others count as BT.601
COEFFICIENTS = {1: 1, 4: 4, 7: 7, 9: 9, 10: 9}
DIRECT_FORMATS = {"yuv420p": False, "yuvj420p": True}  # name -> full range by definition
FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_ONE = 1 << 16  # neutral contrast and saturation, 16.16 fixed point

_Pointers = ctypes.c_void_p * 4
_Strides = ctypes.c_int * 4


class Box(NamedTuple):
    """A rectangle of the coded frame (before rotation), in pixels."""

    left: int
    top: int
    width: int
    height: int


class SwscaleContext:
    """One conversion: a box of 4:2:0 YUV of fixed size to planar RGB of fixed size."""

    def __init__(
        self, library: Any, box: Box, size: tuple[int, int], space: int, full: bool
    ) -> None:
        height, width = size
        yuv, rgb = (library.av_get_pix_fmt(name) for name in (b"yuv420p", b"gbrp"))
        self._library, self._plane, self._height = library, height * width, box.height
        self._strides, self._target_strides = _Strides(), _Strides(width, width, width, 0)
        self._source, self._target = _Pointers(), _Pointers()
        self._context = library.sws_getContext(
            box.width, box.height, yuv, width, height, rgb, FLAGS, None, None, None
        )
        if not self._context:
            raise MemoryError(f"swscale cannot scale {box} to {size}")
        matrix = library.sws_getCoefficients(COEFFICIENTS.get(space, 5))
        library.sws_setColorspaceDetails(self._context, matrix, full, matrix, 1, 0, _ONE, _ONE)

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._library.sws_freeContext(self._context)

    def scale(self, frame: Any, box: Box, out: int) -> None:
        """Write the box's RGB planes to the address `out`, one after another without gaps."""
        source, strides, target = self._source, self._strides, self._target
        left, top = box.left, box.top
        for i, plane in enumerate(frame.planes):
            stride = strides[i] = plane.line_size
            origin = (
                top * stride + left
            )  # even, so that half of it is the origin in a half-size plane
            source[i] = plane.buffer_ptr + (origin >> 1 if i else origin)
        # FFmpeg's planar RGB is in the order G, B, R.
        target[0], target[1], target[2] = out + self._plane, out + 2 * self._plane, out
        self._library.sws_scale(
            self._context, source, strides, 0, self._height, target, self._target_strides
        )


@cache
def swscale() -> Any | None:
    """The library, or None where it is missing or does not do what a filter graph does."""
    package = Path(av.__file__).parent
    folders = (package.parent / "av.libs", package / ".dylibs")
    for path in sorted(p for folder in folders for p in folder.glob("*swscale*")):
        try:
            library = _declare(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):
            continue
        if library.swscale_version() >> 16 == av.library_versions["libswscale"][0]:
            return library if _agrees_with_graph(library) else None
    return None


def _declare(library: Any) -> Any:
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.swscale_version.restype = ctypes.c_uint
    library.av_get_pix_fmt.argtypes = [ctypes.c_char_p]
    library.sws_getContext.argtypes = [integer] * 7 + [pointer] * 3
    library.sws_getContext.restype = pointer
    library.sws_getCoefficients.argtypes = [integer]
    library.sws_getCoefficients.restype = pointer
    library.sws_setColorspaceDetails.argtypes = [pointer, pointer, integer, pointer, *[integer] * 4]
    library.sws_scale.argtypes = [
        pointer,
        _Pointers,
        _Strides,
        integer,
        integer,
        _Pointers,
        _Strides,
    ]
    library.sws_freeContext.argtypes = [pointer]
    library.sws_freeContext.restype = None
    return library


def _agrees_with_graph(library: Any) -> bool:
    """Whether one noisy picture comes out of both ways of scaling alike (to two grey levels)."""
    # The high bits of multiples of a large odd number look like noise and are the same everywhere.
    noise = ((np.arange(96 * 64) * 2654435761 >> 16) & 255).astype(np.uint8).reshape(96, 64)
    frame = av.VideoFrame.from_ndarray(noise, format="yuv420p")
    frame.colorspace, frame.color_range = 1, FULL_RANGE
    box, size = Box(8, 4, 48, 56), (32, 32)
    direct = torch.empty(3, *size, dtype=torch.uint8)
    SwscaleContext(library, box, size, 1, True).scale(frame, box, direct.data_ptr())
    difference = direct.int() - GraphScaler(frame, box, size).scale(frame).int()
    return int(difference.abs().max()) <= 2


class GraphScaler:
    """The same through a PyAV filter graph: every pixel format, no assumption about where the library lies."""

    def __init__(self, frame: Any, box: Box, size: tuple[int, int]) -> None:
        self.graph = av.filter.Graph()
        self.graph.threads = 1
        spaces = {1: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
        matrix = spaces.get(int(frame.colorspace), "bt601")
        is_full = int(frame.color_range) == FULL_RANGE or frame.format.name.startswith("yuvj")
        is_rgb = frame.format.is_rgb
        color = (
            ""
            if is_rgb
            else f":in_color_matrix={matrix}:in_range={'full' if is_full else 'limited'}"
        )
        flags = "bilinear+full_chroma_int+accurate_rnd"
        nodes = [
            self.graph.add(
                "buffer",
                video_size=f"{frame.width}x{frame.height}",
                pix_fmt=frame.format.name,
                time_base="1/1000",
                pixel_aspect="1/1",
                colorspace=str(int(frame.colorspace)),
                range=str(int(frame.color_range)),
            ),
            self.graph.add("crop", f"{box.width}:{box.height}:{box.left}:{box.top}:exact=1"),
            self.graph.add("scale", f"{size[1]}:{size[0]}:flags={flags}{color}:out_range=full"),
            self.graph.add("format", "gbrp"),
            self.graph.add("buffersink"),
        ]
        self.graph.link_nodes(*nodes).configure()

    def scale(self, frame: Any) -> Tensor:
        """uint8 `(3, height, width)` RGB of the box."""
        self.graph.vpush(frame)
        return torch.from_numpy(self.graph.vpull().to_ndarray(format="gbrp").copy()).permute(
            2, 0, 1
        )
