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
BILINEAR = 0x2
FLAGS = BILINEAR | 0x2000 | 0x40000
RGB_FIRST_BELOW = 1.15  # source pixels per target pixel, the lesser of both axes
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
    """4:2:0 YUV boxes of one size to planar RGB of one size.

    A picture that shrinks is scaled and converted at once. Otherwise (`RGB_FIRST_BELOW`) the box is converted as it is
    and its three planes are scaled: pixels are few then, and saturated edges keep the reference's colours (60 dB
    instead of 37 to 46).
    """

    def __init__(
        self, library: Any, box: Box, size: tuple[int, int], space: int, full: bool
    ) -> None:
        height, width = size
        self._library, self._height, self._plane = library, box.height, height * width
        self._contexts: list[int] = []
        self._strides, self._source, self._target = _Strides(), _Pointers(), _Pointers()
        self._target_strides = _Strides(width, width, width, 0)
        self._rgb: Tensor | None = None
        if not is_rgb_first(box, size) or box.width % 2 or box.height % 2:
            self._add(box[2:], b"yuv420p", (width, height), b"gbrp", FLAGS, space, full)
            return
        # The converter works on 16 columns at a time and leaves out the rest of a row, so it gets whole blocks. What
        # it reads beyond the frame's last row lies in the padding of a decoder's buffer (libavcodec/get_buffer.c).
        whole = -(-box.width // 16) * 16
        self._rgb = torch.empty((3, box.height, whole + 64), dtype=torch.uint8)
        row = self._rgb.stride(1)
        self._rgb_planes, self._rgb_strides = _Pointers(), _Strides(row, row, row, 0)
        _point(self._rgb_planes, self._rgb.data_ptr(), self._rgb.stride(0))
        self._add(
            (whole, box.height), b"yuv420p", (whole, box.height), b"gbrp", BILINEAR, space, full
        )
        # To the scaler 4:4:4 is three planes to treat alike, whatever they show: one call, no conversion.
        self._add(box[2:], b"yuv444p", (width, height), b"yuv444p", BILINEAR, space, True)

    def _add(
        self,
        source_size: tuple[int, ...],
        source_format: bytes,
        size: tuple[int, ...],
        target_format: bytes,
        flags: int,
        space: int,
        full: bool,
    ) -> None:
        library = self._library
        formats = [library.av_get_pix_fmt(name) for name in (source_format, target_format)]
        context = library.sws_getContext(
            *source_size, formats[0], *size, formats[1], flags, None, None, None
        )
        if not context:
            raise MemoryError(f"swscale cannot scale {source_size} to {size}")
        self._contexts.append(context)
        matrix = library.sws_getCoefficients(COEFFICIENTS.get(space, 5))
        library.sws_setColorspaceDetails(context, matrix, full, matrix, 1, 0, _ONE, _ONE)

    def __del__(self) -> None:
        for context in getattr(self, "_contexts", ()):
            self._library.sws_freeContext(context)

    def scale(self, frame: Any, box: Box, out: int) -> None:
        """Write the box's RGB planes to the address `out`, one after another without gaps."""
        source, strides = self._source, self._strides
        left, top = box.left, box.top
        for i, plane in enumerate(frame.planes):
            stride = strides[i] = plane.line_size
            origin = (
                top * stride + left
            )  # even, so that half of it is the origin in a half-size plane
            source[i] = plane.buffer_ptr + (origin >> 1 if i else origin)
        _point(self._target, out, self._plane)
        if self._rgb is None:
            self._run(0, source, strides, self._target, self._target_strides)
        else:
            self._run(0, source, strides, self._rgb_planes, self._rgb_strides)
            self._run(1, self._rgb_planes, self._rgb_strides, self._target, self._target_strides)

    def _run(self, stage: int, source: Any, strides: Any, target: Any, rows: Any) -> None:
        context, height = self._contexts[stage], self._height
        self._library.sws_scale(context, source, strides, 0, height, target, rows)


def _point(planes: Any, address: int, plane_bytes: int) -> None:
    """Aim at three planes stored as R, G, B: FFmpeg's planar RGB is in the order G, B, R."""
    planes[0], planes[1], planes[2] = address + plane_bytes, address + 2 * plane_bytes, address


def is_rgb_first(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box is converted to RGB before it is scaled."""
    return min(box.height / size[0], box.width / size[1]) < RGB_FIRST_BELOW


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
    library.av_image_copy_plane.argtypes = [pointer, integer, pointer, integer, integer, integer]
    library.av_image_copy_plane.restype = None
    library.sws_freeContext.argtypes = [pointer]
    library.sws_freeContext.restype = None
    return library


def _agrees_with_graph(library: Any) -> bool:
    """Whether one noisy picture comes out of both ways of scaling alike (to two grey levels)."""
    # The high bits of multiples of a large odd number look like noise and are the same everywhere.
    noise = ((np.arange(96 * 64) * 2654435761 >> 16) & 255).astype(np.uint8).reshape(96, 64)
    frame = av.VideoFrame.from_ndarray(noise, format="yuv420p")
    frame.colorspace, frame.color_range = 1, FULL_RANGE
    box = Box(8, 4, 48, 56)
    for size in ((32, 32), (64, 64)):
        direct = torch.empty(3, *size, dtype=torch.uint8)
        SwscaleContext(library, box, size, 1, True).scale(frame, box, direct.data_ptr())
        difference = direct.int() - GraphScaler(frame, box, size).scale(frame).int()
        if int(difference.abs().max()) > 2:
            return False
    return True


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
        convert: list[tuple[str, str]] = []
        if is_rgb_first(box, size):
            # Packed RGB, and the whole frame: FFmpeg's planar converter leaves out columns of widths like 130.
            convert = [("scale", f"flags=bilinear{color}:out_range=full"), ("format", "rgb24")]
            color = ""
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
            *(self.graph.add(*stage) for stage in convert),
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
