"""What every decoder promises, and the slow, obviously right one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import av
import torch
from torch import Tensor

from onereel.errors import DecodeError
from onereel.types import CropBox
from onereel.video.index import PacketIndex, build_packet_index
from onereel.video.opening import open_video


@dataclass(frozen=True)
class VideoFile:
    """A file to decode.

    Attributes:
        path: the file.
        index: its packet index; None = the decoder builds one.
        stream: number of the video stream to read; None = the best one. An index fixes the stream already.
    """

    path: str
    index: PacketIndex | None = None
    stream: int | None = None


class Decoder(Protocol):
    def read(
        self,
        source: VideoFile,
        frame_indices: Sequence[int],
        crop: CropBox | None,
        size: tuple[int, int] | None,
    ) -> Tensor:
        """Decode frames by display order, crop, scale and flip them.

        Args:
            source: the file.
            frame_indices: from 0, in any order, repeats allowed.
            crop: pixels of the displayed (upright) frame that all frames take; None = all of them.
            size: (height, width) of the result; None = as cropped.

        Returns:
            uint8 `(T, 3, height, width)` RGB.

        Raises:
            DecodeError: any of the frames cannot be read. No frame is ever substituted.
        """
        ...


class ReferenceDecoder:
    """Decode everything from the start, convert to RGB, turn, crop, resize (antialiased bilinear), flip."""

    def read(
        self,
        source: VideoFile,
        frame_indices: Sequence[int],
        crop: CropBox | None,
        size: tuple[int, int] | None,
    ) -> Tensor:
        """See `Decoder.read`."""
        index = source.index or build_packet_index(source.path, source.stream)
        check_request(source.path, index, frame_indices, crop)
        wanted = set(frame_indices)
        pictures: dict[int, Tensor] = {}
        try:
            with open_video(source.path) as container:
                video = container.streams[index.stream]
                video.codec_context.thread_count = 1
                video.codec_context.options = {"err_detect": "explode"}
                for number, frame in enumerate(container.decode(video)):
                    if number in wanted:
                        rgb = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1))
                        pictures[number] = finish(rgb.permute(2, 0, 1), index.rotation, crop, size)
                    if len(pictures) == len(wanted):
                        break
        except av.FFmpegError as error:
            missing = min(wanted - pictures.keys())
            raise DecodeError(source.path, f"corrupt ({error.strerror})", missing) from error
        for number in frame_indices:
            if number not in pictures:
                raise DecodeError(source.path, "the decoder did not give this frame", number)
        return torch.stack([pictures[number] for number in frame_indices])


def check_request(
    path: str, index: PacketIndex, frame_indices: Sequence[int], crop: CropBox | None
) -> None:
    """Refuse frames and pixels that the video does not have.

    Raises:
        DecodeError: an index is out of range, none is given, or the box leaves the frame.
    """
    if not len(frame_indices):
        raise DecodeError(path, "no frame was asked for")
    low, high = min(frame_indices), max(frame_indices)
    if low < 0 or high >= index.num_frames:
        given = low if low < 0 else high
        raise DecodeError(path, f"out of range: it has frames 0 to {index.num_frames - 1}", given)
    if crop is not None:
        height, width = index.height, index.width
        if index.rotation in (90, 270):
            height, width = width, height
        if crop.top + crop.height > height or crop.left + crop.width > width:
            raise DecodeError(path, f"{crop} leaves the frame of {height}x{width} pixels")


def finish(
    rgb: Tensor, rotation: int, crop: CropBox | None, size: tuple[int, int] | None
) -> Tensor:
    """Turn upright, crop, resize and flip a full uint8 `(..., 3, H, W)` picture."""
    rgb = torch.rot90(rgb, -rotation // 90, (-2, -1))
    if crop is not None:
        rgb = rgb[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if size is not None and size != tuple(rgb.shape[-2:]):
        values = torch.nn.functional.interpolate(
            rgb[None].float(), size, mode="bilinear", antialias=True, align_corners=False
        )
        rgb = values[0].round().clamp(0, 255).to(torch.uint8)
    if crop is not None and crop.hflip:
        rgb = rgb.flip(-1)
    return rgb.contiguous()
