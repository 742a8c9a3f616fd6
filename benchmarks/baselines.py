"""How people read clips today: decord, PyAV and torchcodec on whole frames, then a resize in torch."""

from __future__ import annotations

import importlib
from typing import Any

import av
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from onereel.types import CropBox

SIZE = 224


def find(module: str) -> Any | None:
    """The module, or None where it is not installed or its libraries are missing."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):
        return None


def decord_frames(path: str, frames: list[int]) -> Tensor:
    """uint8 `(T, H, W, 3)`."""
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    return torch.from_numpy(reader.get_batch(frames).asnumpy())


def pyav_frames(path: str, frames: list[int]) -> Tensor:
    """uint8 `(T, H, W, 3)`: seek to the key frame before, decode to the last wanted frame."""
    pictures = {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        ticks = 1 / (stream.average_rate * stream.time_base)
        container.seek(int(frames[0] * ticks), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts / ticks)
            if number in frames:
                pictures[number] = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1))
            if number >= frames[-1]:
                break
    return torch.stack([pictures[number] for number in frames])


def torchcodec_frames(path: str, frames: list[int]) -> Tensor:
    """uint8 `(T, H, W, 3)`."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(
        path, num_ffmpeg_threads=1, seek_mode="exact", dimension_order="NHWC"
    )
    return decoder.get_frames_at(frames).data


def float_resize(frames: Tensor, crop: CropBox) -> Tensor:
    """What published video pipelines do: all frames to float32, crop, bilinear resize, flip."""
    return _resized(frames.float(), crop, antialias=False)


def byte_resize(frames: Tensor, crop: CropBox) -> Tensor:
    """The fastest way within torch: crop first, resize uint8 with antialiasing."""
    return _resized(frames, crop, antialias=True)


def _resized(frames: Tensor, crop: CropBox, antialias: bool) -> Tensor:
    rows = slice(crop.top, crop.top + crop.height)
    part = frames.permute(0, 3, 1, 2)[..., rows, crop.left : crop.left + crop.width]
    clip = interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=antialias)
    return clip.flip(-1) if crop.hflip else clip
