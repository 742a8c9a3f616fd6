"""From decoded frames to the clip that leaves the decoder: crop and scale once, in YUV, then turn and flip."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from onereel.types import CropBox, YuvLayout
from onereel.video.decode import finish
from onereel.video.index import PacketIndex
from onereel.video.swscale import (
    DIRECT_FORMATS,
    FULL_RANGE,
    Box,
    GraphScaler,
    SwscaleContext,
    swscale,
)

_KEPT_SCALERS = 32


def coded_box(index: PacketIndex | YuvLayout, crop: CropBox | None) -> Box:
    """The box of the coded frame that holds the pixels of `crop`, which speaks of the displayed frame."""
    if crop is None:
        return Box(0, 0, index.width, index.height)
    left, top, width, height = crop.left, crop.top, crop.width, crop.height
    if index.rotation == 90:
        return Box(top, index.height - left - width, height, width)
    if index.rotation == 180:
        return Box(index.width - left - width, index.height - top - height, width, height)
    if index.rotation == 270:
        return Box(index.width - top - height, left, height, width)
    return Box(left, top, width, height)


class ScalerCache(threading.local):
    """Scalers of this thread by what they convert, the least recently used dropped."""

    def __init__(self) -> None:
        self.scalers: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, key: tuple[Any, ...], make: Any) -> Any:
        """The scaler for `key`, made by `make()` where there is none."""
        scaler = self.scalers.get(key)
        if scaler is None:
            scaler = self.scalers[key] = make()
            if len(self.scalers) > _KEPT_SCALERS:
                self.scalers.popitem(last=False)
        else:
            self.scalers.move_to_end(key)
        return scaler


class Canvas:
    """The clip in the making: frames are drawn into their places as they are decoded, in any order.

    Args:
        cache: scalers to reuse.
        index: of the video; gives size and rotation.
        num_frames: T.
        crop: see `Decoder.read`.
        size: see `Decoder.read`.
        direct: whether to call swscale itself where it is found.
    """

    def __init__(
        self,
        cache: ScalerCache,
        index: PacketIndex,
        num_frames: int,
        crop: CropBox | None,
        size: tuple[int, int] | None,
        direct: bool = True,
    ) -> None:
        self.cache, self.rotation, self.crop, self.size = cache, index.rotation, crop, size
        turned = self.rotation in (90, 270)
        # A flip along the displayed width runs along the coded height where the picture lies on its side.
        self.flipped = () if crop is None or not crop.hflip else (-2 if turned else -1,)
        self.library = swscale() if direct else None
        self.box = coded_box(index, crop)
        self.coded_size = (self.box.height, self.box.width)
        if size is not None:
            self.coded_size = (size[1], size[0]) if turned else (size[0], size[1])
        self.is_scaled = self.coded_size != (self.box.height, self.box.width)
        upright = self.coded_size[::-1] if turned and not self.is_scaled else self.coded_size
        self.clip = torch.empty((num_frames, 3, *upright), dtype=torch.uint8)
        self.address, self.frame_bytes = self.clip.data_ptr(), 3 * upright[0] * upright[1]
        self.pixel_format = ""
        self.scaler: SwscaleContext | GraphScaler | None = None

    def draw(self, places: list[int], frame: Any) -> None:
        """Put a decoded frame into its places in the clip."""
        first = places[0]
        if self.is_scaled and self.pixel_format != frame.format.name:
            self.pixel_format, self.scaler = frame.format.name, self._scaler_for(frame)
        if isinstance(self.scaler, SwscaleContext):
            self.scaler.scale(frame, self.box, self.address + first * self.frame_bytes)
        elif self.scaler is not None:
            self.clip[first] = self.scaler.scale(frame)
        else:
            # Conversion without scaling must equal the reference bit for bit: the same call, on the whole frame.
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)).permute(2, 0, 1)
            self.clip[first] = finish(rgb, self.rotation, self.crop, None)
        for place in places[1:]:
            self.clip[place] = self.clip[first]

    def _scaler_for(self, frame: Any) -> SwscaleContext | GraphScaler:
        """Frames of one clip share their colours, so this is asked once per clip."""
        name, space, color_range = frame.format.name, int(frame.colorspace), int(frame.color_range)
        size, box = self.coded_size, self.box
        # Colour planes begin at half the box's origin: only from an even one do they match the brightness.
        even = not (box.left | box.top) & 1
        if (library := self.library) is not None and even and name in DIRECT_FORMATS:
            full = DIRECT_FORMATS[name] or color_range == FULL_RANGE
            key: tuple[Any, ...] = (box.width, box.height, size, space, full)
            return self.cache.get(key, lambda: SwscaleContext(library, box, size, space, full))
        key = (box, size, frame.width, frame.height, name, space, color_range)
        return self.cache.get(key, lambda: GraphScaler(frame, box, size))

    def finish(self) -> Tensor:
        """The clip, upright: uint8 `(T, 3, height, width)`."""
        clip = self.clip
        if self.is_scaled and self.flipped:
            clip = clip.flip(self.flipped)
        if self.is_scaled and self.rotation:
            clip = torch.rot90(clip, -self.rotation // 90, (-2, -1)).contiguous()
        return clip
