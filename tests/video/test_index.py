"""The packet index: order, time, starting points, and the files that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from onereel.errors import DecodeError
from onereel.video.encode import PROFILES
from onereel.video.index import NO_TIME, build_packet_index, is_reference

KINDS = (
    "default",
    *PROFILES,
    "open_gop",
    "avc_avi",
    "asp_avi",
    "transport",
    "edit_list",
    "variable_rate",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_has_one_packet_and_a_start_before_it(
    zoo: Callable[[str], Any], kind: str
) -> None:
    index = build_packet_index(zoo(kind).path)
    frames = np.arange(index.num_frames)
    assert (index.rank[index.packet_of_frame] == frames).all()
    starts = index.start_of_frame
    assert (starts <= index.packet_of_frame).all()
    assert index.key[starts].all()
    assert (index.rank[starts] <= frames).all()


@pytest.mark.parametrize("kind", [*PROFILES, "default", "matroska", "avc_avi", "asp_avi"])
def test_frames_are_in_display_order(
    zoo: Callable[[str], Any], number_of: Callable[[Any], int], kind: str
) -> None:
    sample = zoo(kind)
    assert [number_of(frame) for frame in sample.frames] == list(range(len(sample.frames)))
    index = build_packet_index(sample.path)
    assert index.info().num_frames == len(sample.frames)
    assert index.constant_rate
    assert index.fps == pytest.approx(30)
    assert index.frame_times == pytest.approx(np.arange(len(sample.frames)) / 30, abs=1e-3)


def test_times_of_an_avi_are_not_taken_for_times_of_display(zoo: Callable[[str], Any]) -> None:
    """Its demuxer numbers H.264 packets in the order of decoding."""
    sample = zoo("avc_avi")
    with av.open(sample.path) as container:
        pts = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert pts == sorted(pts)
    index = build_packet_index(sample.path)
    assert index.rank[:5].tolist() == [0, 4, 2, 1, 3]
    assert (index.pts == NO_TIME).all()


def test_fast_profile_has_the_structure_that_makes_it_fast(zoo: Callable[[str], Any]) -> None:
    index = build_packet_index(zoo("fast").path)
    assert index.rank[:4].tolist() == [0, 16, 1, 2]
    assert index.reference[:4].tolist() == [True, True, False, False]
    assert np.flatnonzero(index.key).tolist() == [0, 32, 64]


def test_leading_pictures_of_an_open_group_start_one_key_frame_earlier(
    zoo: Callable[[str], Any],
) -> None:
    index = build_packet_index(zoo("open_gop").path)
    keys = np.flatnonzero(index.key)
    packets = index.packet_of_frame
    leading = [
        frame
        for frame in range(index.num_frames)
        if index.rank[keys[np.searchsorted(keys, packets[frame], "right") - 1]] > frame
    ]
    assert leading, "the encoder made no open group"
    for frame in leading:
        start = index.start_of_frame[frame]
        assert start == keys[np.searchsorted(keys, packets[frame], "right") - 2]


def test_variable_rate(zoo: Callable[[str], Any]) -> None:
    index = build_packet_index(zoo("variable_rate").path)
    expected = np.cumsum([0] + [20 + 17 * (i % 4) for i in range(49)]) / 1000
    assert not index.constant_rate
    assert index.frame_times == pytest.approx(expected, abs=2e-3)
    assert index.info().frame_times is index.frame_times
    assert index.fps == pytest.approx(49 / expected[-1], rel=1e-2)


def test_edit_list_hides_frames(zoo: Callable[[str], Any], number_of: Callable[[Any], int]) -> None:
    sample = zoo("edit_list")
    index = build_packet_index(sample.path)
    assert index.num_frames == len(sample.frames) == 45
    assert index.num_packets == 60
    assert (index.rank < 0).sum() == 15
    assert number_of(sample.frames[0]) == 15


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_rotation_is_stated_clockwise(
    zoo: Callable[[str], Any], number_of: Callable[[Any], int], turn: int
) -> None:
    sample = zoo(f"rotated_{turn}")
    index = build_packet_index(sample.path)
    assert index.rotation == turn
    assert (index.height, index.width) == (96, 144)
    assert (index.info().height, index.info().width) == sample.frames.shape[-2:]
    coded = np.rot90(sample.frames[5].numpy(), turn // 90, (1, 2))
    assert number_of(coded) == 5


@pytest.mark.parametrize(
    ("turn", "mirror", "expected"), [(0, True, 0), (90, True, 90), (270, False, 270)]
)
def test_a_mirror_is_not_taken_for_half_a_turn(
    tmp_path: Path, turn: int, mirror: bool, expected: int
) -> None:
    path = tmp_path / "mirrored.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 144, 96, "yuv420p"
        stream.set_display_rotation(-turn, hflip=mirror)
        container.mux(stream.encode(av.VideoFrame(144, 96, "yuv420p")))
        container.mux(stream.encode(None))
    assert build_packet_index(str(path)).rotation == expected


def test_files_whose_packets_are_in_pieces_are_not_addressable(zoo: Callable[[str], Any]) -> None:
    assert build_packet_index(zoo("default").path).addressable
    assert build_packet_index(zoo("asp_avi").path).addressable
    assert not build_packet_index(zoo("transport").path).addressable


def test_the_best_of_several_streams_or_the_one_that_is_asked_for(real_data: Path) -> None:
    path = str(real_data / "long" / "nasa_13013_13s.mp4")
    best, other = build_packet_index(path), build_packet_index(path, stream=0)
    assert (best.stream, best.width, best.height, best.num_frames) == (3, 480, 270, 390)
    assert (other.stream, other.width, other.height) == (0, 320, 180)
    with pytest.raises(DecodeError, match=r"stream 1 is no video stream; video streams: \[0, 3\]"):
        build_packet_index(path, stream=1)


def test_packets_that_show_nothing_are_counted_out(real_data: Path) -> None:
    """This MPEG-4 ASP file has two place holders, marked as key frames, after its first picture."""
    index = build_packet_index(str(real_data / "long" / "bgs_highway_static_30s.avi"))
    assert (index.num_packets, index.num_frames) == (750, 748)
    assert index.rank[:4].tolist() == [0, -1, -1, 3]
    assert np.flatnonzero(index.key).tolist() == [0, 302, 602]


def test_nal_ref_idc_of_the_first_slice() -> None:
    annex_b = b"\0\0\0\1\x06\x05\x01\0\0\1"
    assert is_reference(annex_b + b"\x41\xff", 0)
    assert not is_reference(annex_b + b"\x01\xff", 0)
    assert not is_reference(b"\0\0\0\2\x06\x05\0\0\0\2\x01\xff", 4)
    assert is_reference(b"\0\2\x06\x05\0\2\x65\xff", 2)
    assert is_reference(b"", 4)


class TestBadInput:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DecodeError, match=r"nothing\.mp4: cannot be opened \(No such file"):
            build_packet_index(str(tmp_path / "nothing.mp4"))

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(DecodeError, match=r"empty\.mp4: is empty"):
            build_packet_index(str(tmp_path / "empty.mp4"))

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DecodeError, match="is not a regular file"):
            build_packet_index(str(tmp_path))

    def test_not_a_video(self, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("these are words " * 100)
        with pytest.raises(DecodeError, match=r"text\.mp4: not a readable video"):
            build_packet_index(str(tmp_path / "text.mp4"))

    @pytest.mark.parametrize("share", [0.3, 0.9])
    @pytest.mark.parametrize("faststart", [False, True])
    def test_truncated(
        self, tmp_path: Path, make_video: Callable[..., Path], share: float, faststart: bool
    ) -> None:
        path = make_video(tmp_path / "whole.mp4", num_frames=30)
        if faststart:
            path = remuxed_with_header_first(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(DecodeError, match="truncated"):
            build_packet_index(str(path))

    def test_truncated_avi(self, zoo: Callable[[str], Any], tmp_path: Path) -> None:
        data = Path(zoo("asp_avi").path).read_bytes()
        (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
        with pytest.raises(DecodeError, match="truncated"):
            build_packet_index(str(tmp_path / "half.avi"))

    def test_audio_only(self, tmp_path: Path) -> None:
        path = tmp_path / "sound.m4a"
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=16000)
            silence = np.zeros((1, 16000), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with pytest.raises(DecodeError, match=r"no video stream \(audio only\)"):
            build_packet_index(str(path))

    def test_unknown_codec(self, unknown_codec: Path) -> None:
        with pytest.raises(DecodeError, match=r"unknown\.mkv: .* whose codec is unknown"):
            build_packet_index(str(unknown_codec))

    def test_zero_frames(self, tmp_path: Path) -> None:
        path = tmp_path / "none.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 144, 96, "yuv420p"
            container.mux(stream.encode(None))
        with pytest.raises(DecodeError, match=r"none\.mp4"):
            build_packet_index(str(path))


def remuxed_with_header_first(path: Path) -> Path:
    out = path.with_name("first.mp4")
    with (
        av.open(str(path)) as reader,
        av.open(str(out), "w", options={"movflags": "+faststart"}) as writer,
    ):
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    return out
