"""From decoded frames to a clip that leaves the decoder as it was coded, for the device to colour and scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from onereel.types import CropBox, YuvClips, YuvLayout
from onereel.video.index import PacketIndex
from onereel.video.scale import coded_box
from onereel.video.swscale import COEFFICIENTS, DIRECT_FORMATS, FULL_RANGE, Box, swscale

BT601 = 5  # AVCOL_SPC_BT470BG
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


class YuvCanvas:
    """The clip in the making, as `scale.Canvas` is one of RGB.

    4:2:0 frames of 8 bits are copied as they are. Others (and boxes that start at an odd pixel, as in a turned frame of
    odd size, and frames whose colours change in mid-stream) are converted to RGB, cut, and made 4:2:0.

    Args:
        index: of the video; gives size and rotation.
        num_frames: T.
        crop: pixels of the displayed frame.
        size: (height, width) that the clip will have.
        direct: whether to call FFmpeg's copy itself where it is found.
    """

    def __init__(
        self,
        index: PacketIndex,
        num_frames: int,
        crop: CropBox,
        size: tuple[int, int],
        direct: bool = True,
    ) -> None:
        self.rotation, self.hflip, self.size = index.rotation, crop.hflip, size
        self.box = box = coded_box(index, crop)
        self.boxes = boxes_of_planes(box)
        self.num_frames, self.frame_bytes = num_frames, box.height * box.width * 3 // 2
        self.values = torch.empty(num_frames * self.frame_bytes, dtype=torch.uint8)
        self.address = self.values.data_ptr()
        library = swscale() if direct else None
        # FFmpeg's own (libavutil/imgutils.h), which the scaler's library brings along.
        self.copy_plane = None if library is None else library.av_image_copy_plane
        self.layout: YuvLayout | None = None
        self.is_coded, self.colors = True, ("", 0, 0)

    def draw(self, places: list[int], frame: Any) -> None:
        """Put a decoded frame into its places in the clip."""
        if self.layout is None:
            self._begin(frame)
        if not self.is_coded or _colors(frame) != self.colors:
            self._put(self._by_way_of_rgb(frame), places)
        elif self.copy_plane is None:
            self._put(_cut(frame, self.box), places)
        else:
            for place in places:
                self._copy(self.copy_plane, frame, self.address + place * self.frame_bytes)

    def finish(self) -> YuvClips:
        """The clip, as coded."""
        assert self.layout is not None  # a request names one frame at least
        return YuvClips(self.values, (self.layout,), self.num_frames, self.size)

    def _begin(self, frame: Any) -> None:
        """Frames of one clip have one layout, that of the first; those that were coded otherwise are converted."""
        box, name, self.colors = self.box, frame.format.name, _colors(frame)
        self.is_coded = name in DIRECT_FORMATS and not (box.left | box.top) & 1
        space, full = BT601, True
        if self.is_coded:
            space = int(frame.colorspace)
            full = DIRECT_FORMATS[name] or int(frame.color_range) == FULL_RANGE
        self.layout = YuvLayout(box.height, box.width, space, full, self.rotation, self.hflip)

    def _put(self, picture: Tensor, places: list[int]) -> None:
        frames = self.values.view(self.num_frames, self.frame_bytes)
        for place in places:
            frames[place] = picture

    def _copy(self, copy: Callable[..., None], frame: Any, out: int) -> None:
        for plane, (left, top, width, height) in zip(frame.planes, self.boxes):
            stride = plane.line_size
            copy(out, width, plane.buffer_ptr + top * stride + left, stride, width, height)
            out += width * height

    def _by_way_of_rgb(self, frame: Any) -> Tensor:
        left, top, width, height = self.box
        rgb = frame.to_ndarray(format="rgb24", threads=1)[top : top + height, left : left + width]
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        assert self.layout is not None
        coded = picture.reformat(
            format="yuv420p",
            dst_colorspace=COEFFICIENTS.get(self.layout.color_space, BT601),
            dst_color_range=FULL_RANGE if self.layout.full_range else LIMITED_RANGE,
            threads=1,
        )
        return _cut(coded, Box(0, 0, width, height))


def _colors(frame: Any) -> tuple[str, int, int]:
    """What the numbers of a frame mean."""
    return frame.format.name, int(frame.colorspace), int(frame.color_range)


def boxes_of_planes(box: Box) -> tuple[Box, Box, Box]:
    """Where a box of the picture lies in each plane of 4:2:0: brightness, and at half the size the two colours."""
    half = Box(*(number >> 1 for number in box))
    return box, half, half


def cut(clip: YuvClips, area: CropBox, crop: CropBox, size: tuple[int, int]) -> YuvClips:
    """The pixels of `crop` out of one clip that shows `area`; both boxes speak of the displayed frame."""
    (layout,) = clip.layouts
    inside = CropBox(crop.top - area.top, crop.left - area.left, crop.height, crop.width)
    box = coded_box(layout, inside)
    parts = [
        plane[:, top : top + height, left : left + width].flatten(1)
        for plane, (left, top, width, height) in zip(
            layout.planes(clip.values), boxes_of_planes(box)
        )
    ]
    layout = layout._replace(height=box.height, width=box.width, hflip=crop.hflip)
    return YuvClips(torch.cat(parts, dim=1).flatten(), (layout,), clip.num_frames, size)


def _cut(frame: Any, box: Box) -> Tensor:
    """The box of a 4:2:0 frame, its planes one after another: uint8 `(h * w * 3 / 2,)`."""
    parts = []
    for plane, (left, top, width, height) in zip(frame.planes, boxes_of_planes(box)):
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        parts.append(rows[top : top + height, left : left + width].ravel())
    return torch.from_numpy(np.concatenate(parts))
