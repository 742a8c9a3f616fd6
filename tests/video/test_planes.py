"""Clips that leave the decoder as they were coded: made RGB they are the reference's, cut they are their own read."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from onereel.data.yuv import to_rgb
from onereel.errors import DecodeError
from onereel.types import CropBox
from onereel.video.decode import ReferenceDecoder, VideoFile, finish
from onereel.video.fused import FusedDecoder
from onereel.video.index import build_packet_index
from onereel.video.planes import cut

DECODER, REFERENCE = FusedDecoder(), ReferenceDecoder()
KINDS = ("fast", "default", "asp_avi", "vp9", "hevc", "transport", "variable_rate")
TURNED = ("rotated_90", "rotated_180", "rotated_270")
BOX = CropBox(10, 4, 70, 96, hflip=True)


def read(path: str, frames: list[int], crop: CropBox, size: tuple[int, int]) -> Tensor:
    (clip,) = to_rgb(DECODER.read_yuv(VideoFile(path), frames, crop, size))
    return clip


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (a.double() - b.double()).square().mean()))


@pytest.mark.parametrize("second", ["yuv444p", "yuv420p10le", "yuvj420p"])
def test_frames_that_are_coded_otherwise_in_mid_stream(tmp_path: Path, second: str) -> None:
    path = tmp_path / "two.h264"
    path.write_bytes(stream_of("yuv420p") + stream_of(second))
    everything = CropBox(0, 0, 48, 64)
    clip = read(str(path), [0, 9, 10, 19], everything, (48, 64))
    expected = REFERENCE.read(VideoFile(str(path)), [0, 9, 10, 19], everything, (48, 64))
    assert psnr(clip, expected) > 35  # colours are halved twice


def stream_of(pixel_format: str) -> bytes:
    """Ten frames of H.264 without a container."""
    out = io.BytesIO()
    rows, columns = np.mgrid[:48, :64]
    with av.open(out, "w", format="h264") as writer:
        stream = writer.add_stream("libx264", rate=25, options={"g": "5", "qp": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for number in range(10):
            picture = np.stack([4 * rows, 3 * columns, rows + columns + 9 * number], axis=-1)
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            writer.mux(stream.encode(frame.reformat(format=pixel_format)))
        writer.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS + TURNED)
def test_frames_are_the_references_but_for_rounding(zoo: Callable[[str], Any], kind: str) -> None:
    path = zoo(kind).path
    box = BOX if kind not in TURNED[::2] else CropBox(4, 10, 96, 70, hflip=True)
    for size in ((box.height, box.width), (32, 48), (90, 60)):
        clip = read(path, [7, 2, 7], box, size)
        expected = REFERENCE.read(VideoFile(path), [7, 2, 7], box, size)
        assert clip.shape == expected.shape
        # The reference's table of colours truncates; that is all.
        assert (clip.int() - expected.int()).abs().max() <= 3


def test_colors_of_interlaced_frames_are_read_line_by_line(zoo: Callable[[str], Any]) -> None:
    """The reference knows which field a colour sample is of; scaling, here as in `read`, does not."""
    path = zoo("interlaced").path
    expected = REFERENCE.read(VideoFile(path), [7, 2], BOX, (32, 48))
    assert psnr(read(path, [7, 2], BOX, (32, 48)), expected) >= 40


def test_real_clips_are_the_references_within_45_db(real_data: Path) -> None:
    generator = np.random.default_rng(1)
    paths = sorted((real_data / "long").iterdir())
    for path in paths:
        index = build_packet_index(str(path))
        source, info = VideoFile(str(path), index), index.info()
        frames = sorted(generator.integers(0, min(info.num_frames, 40), 2).tolist())
        full = REFERENCE.read(source, frames, None, None)
        for _ in range(2):
            h, w = (2 * int(generator.integers(s // 4, s // 2 + 1)) for s in full.shape[-2:])
            crop = CropBox(0, 2 * int(generator.integers((full.shape[-1] - w) // 2 + 1)), h, w)
            expected = torch.stack([finish(f, index.rotation, crop, (224, 224)) for f in full])
            (clip,) = to_rgb(DECODER.read_yuv(source, frames, crop, (224, 224)))
            assert psnr(clip, expected) >= 45, path.name


def test_a_picture_of_odd_size_turned_over(tmp_path: Path) -> None:
    """An even box of it starts at an odd pixel as coded, where colours and brightness do not match."""
    path, turned = tmp_path / "odd.mp4", tmp_path / "turned.mp4"
    y, x = np.mgrid[0:96, 0:145]
    picture = np.stack([x, y * 2, (x + y) // 2], -1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 145, 96, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as reader, av.open(str(turned), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.set_display_rotation(180)
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    box = CropBox(6, 10, 60, 80)
    expected = REFERENCE.read(VideoFile(str(turned)), [0], box, (60, 80))
    assert psnr(read(str(turned), [0], box, (60, 80)), expected) >= 40


@pytest.mark.parametrize("kind", ["fast", *TURNED])
def test_it_needs_no_direct_call(zoo: Callable[[str], Any], kind: str) -> None:
    source, box = VideoFile(zoo(kind).path), CropBox(2, 4, 80, 60)
    direct, plain = (
        FusedDecoder(direct=way).read_yuv(source, [5, 0, 5], box, (32, 32)) for way in (True, False)
    )
    assert torch.equal(direct.values, plain.values)
    assert direct.layouts == plain.layouts


@pytest.mark.parametrize("kind", ["fast", *TURNED])
def test_a_part_cut_from_a_larger_area_is_its_own_read(
    zoo: Callable[[str], Any], kind: str
) -> None:
    source = VideoFile(zoo(kind).path)
    area, box = CropBox(4, 8, 84, 80), CropBox(10, 20, 40, 36, hflip=True)
    whole = DECODER.read_yuv(source, [3, 1], area, (84, 80))
    part = cut(whole, area, box, (24, 16))
    alone = DECODER.read_yuv(source, [3, 1], box, (24, 16))
    assert torch.equal(part.values, alone.values)
    assert (part.layouts, part.num_frames, part.size) == (alone.layouts, 2, (24, 16))


def test_errors_name_file_and_frame(zoo: Callable[[str], Any]) -> None:
    source = VideoFile(zoo("fast").path)
    with pytest.raises(DecodeError, match="out of range: it has frames 0 to 79"):
        DECODER.read_yuv(source, [80], BOX, (32, 32))
    with pytest.raises(DecodeError, match="leaves the frame"):
        DECODER.read_yuv(source, [0], CropBox(0, 0, 98, 100), (32, 32))
