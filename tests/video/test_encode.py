"""What a chunk looks like inside: structure of each profile, exact counts, one colour space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given
from hypothesis import strategies as st

from onereel.video.encode import PROFILES, FrameScaler, fitted_size, luma, psnr, write_chunk
from onereel.video.index import build_packet_index


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(16, 800))
def test_fitted_size_is_even_and_never_larger(height: int, width: int, short_side: int) -> None:
    fitted = fitted_size(height, width, short_side)
    assert all(
        side % 2 == 0 and 2 <= side <= max(given, 2) for side, given in zip(fitted, (height, width))
    )
    assert min(fitted) <= max(short_side, 2)
    if min(height, width) >= short_side:
        assert min(fitted) >= short_side - 1
        ratio = (width / height) / (fitted[1] / fitted[0])
        assert abs(ratio - 1) < 2.5 / min(fitted)


def pictures(num_frames: int, height: int = 64, width: int = 96) -> Iterator[av.VideoFrame]:
    noise = np.random.default_rng(0).integers(0, 255, (height, width + num_frames, 3), np.uint8)
    scale = FrameScaler(height, width, 0)
    for i in range(num_frames):
        yield scale(av.VideoFrame.from_ndarray(noise[:, i : i + width].copy(), format="rgb24"))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("num_frames", [1, 2, 33, 70])
def test_every_profile_shows_exactly_the_frames_given(
    tmp_path: Path, profile: str, num_frames: int
) -> None:
    path = str(tmp_path / "x.mp4")
    fps = Fraction(30000, 1001)
    assert write_chunk(path, pictures(num_frames), fps, profile, 23.0) == num_frames
    with av.open(path) as container:
        assert len(container.streams) == 1
        video = container.streams.video[0]
        times = [frame.pts * frame.time_base for frame in container.decode(video)]
        assert times == [Fraction(i) / fps for i in range(num_frames)]
        assert (video.codec_context.colorspace, video.codec_context.color_range) == (6, 1)
        assert video.average_rate == fps
    index = build_packet_index(path)
    assert index.num_frames == index.num_packets == num_frames
    assert index.addressable
    assert index.constant_rate


def test_structures(tmp_path: Path) -> None:
    shares, keys = {}, {}
    for profile in PROFILES:
        path = str(tmp_path / f"{profile}.mp4")
        write_chunk(path, pictures(96), Fraction(30), profile, 30.0)
        index = build_packet_index(path)
        shares[profile] = 1 - index.reference.mean()
        keys[profile] = sorted(index.rank[index.key].tolist())
    # of every 32 frames a key frame and two P-frames are referred to, the other 29 are not
    assert shares["fast"] == pytest.approx(29 / 32)
    assert shares["intra"] == 0 < shares["small"] < shares["balanced"] < shares["fast"]
    assert keys["fast"] == keys["balanced"] == [0, 32, 64]
    assert keys["small"] == [0, 30, 60, 90]
    assert keys["intra"] == list(range(96))


@pytest.mark.parametrize("profile", ["fast", "balanced"])
def test_x264_understood_what_makes_a_profile_cheap_to_read(tmp_path: Path, profile: str) -> None:
    """It writes its settings into the stream."""
    path = tmp_path / "x.mp4"
    write_chunk(str(path), pictures(40), Fraction(30), profile, 23.0)
    data = path.read_bytes()
    for setting in (b"cabac=0", b"deblock=0:", b"psy=0", b"keyint=32", b"scenecut=0", b"b_adapt=0"):
        assert setting in data
    assert (b" ref=1 " in data) == (b"b_pyramid=0" in data) == (profile == "fast")


def test_better_quality_costs_bytes(tmp_path: Path) -> None:
    sizes = []
    for crf in (18.0, 23.0, 30.0):
        write_chunk(str(tmp_path / "x.mp4"), pictures(40), Fraction(30), "fast", crf)
        sizes.append((tmp_path / "x.mp4").stat().st_size)
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709, Colorspace.BT2020])
@pytest.mark.parametrize("value_range", [ColorRange.MPEG, ColorRange.JPEG])
def test_colours_survive_the_change_of_matrix_and_range(
    matrix: Colorspace, value_range: ColorRange
) -> None:
    y, x = np.mgrid[0:64, 0:96]
    rgb = np.stack([2 * x + 30, 255 - 2 * y - x // 2, 3 * y], axis=-1).astype(np.uint8)
    source = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv444p", dst_colorspace=matrix, dst_color_range=value_range
    )
    assert source.color_range == value_range
    frame = FrameScaler(64, 96, 0)(source)
    assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 6, 1)
    error = frame.to_ndarray(format="rgb24").astype(float) - rgb
    assert abs(error).mean() < 2.5  # a wrong matrix or range costs 5 to 20


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_clockwise(rotation: int, make_video: Callable[..., Path]) -> None:
    (picture,) = pictures(1)
    height, width = (96, 64) if rotation != 180 else (64, 96)
    turned = FrameScaler(height, width, rotation)(picture)
    expected = np.rot90(picture.to_ndarray(format="rgb24"), -rotation // 90)
    assert (turned.to_ndarray(format="rgb24") == expected).mean() > 0.99


def test_luma_and_psnr() -> None:
    (picture,) = pictures(1, 64, 90)  # a width that planes pad
    assert (luma(picture) == picture.to_ndarray()[:64]).all()
    assert psnr(0.0) == 100.0
    assert psnr(1.0) == pytest.approx(48.13, abs=0.01)
