"""The fast decoder against a plain full decode, bit for bit before scaling, and within 40 dB after."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onereel.data.yuv import to_rgb
from onereel.errors import DecodeError
from onereel.types import CropBox
from onereel.video.decode import ReferenceDecoder, VideoFile, finish
from onereel.video.encode import PROFILES
from onereel.video.fused import FusedDecoder
from onereel.video.index import build_packet_index

KINDS = (
    *PROFILES,
    *("default", "short_groups", "open_gop", "intra_refresh", "interlaced", "sound"),
    *("matroska", "transport", "avc_avi", "asp_avi", "asp_mp4", "vp9", "hevc", "h263_avi"),
    *("variable_rate", "rotated_90", "rotated_180", "rotated_270", "edit_list"),
)
few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DECODER = FusedDecoder()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    error = (a.double() - b.double()).square().mean().item()
    return 10 * np.log10(255**2 / error) if error else 100.0


def random_box(generator: np.random.Generator, height: int, width: int) -> CropBox:
    h, w = (2 * int(generator.integers(s // 4, s // 2 + 1)) for s in (height, width))
    top, left = (
        2 * int(generator.integers((s - t) // 2 + 1)) for s, t in ((height, h), (width, w))
    )
    return CropBox(top, left, h, w, bool(generator.integers(2)))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@few
def test_any_frames_equal_a_full_decode(zoo: Callable[[str], Any], kind: str, data: Any) -> None:
    sample = zoo(kind)
    index = build_packet_index(sample.path)
    assert index.num_frames == len(sample.frames)
    last = index.num_frames - 1
    frames = data.draw(st.lists(st.integers(0, last), min_size=1, max_size=6))
    variants = {
        "as indexed": index,
        "through the demuxer": dataclasses.replace(index, addressable=False),
        "without skipping": dataclasses.replace(index, reference=np.ones_like(index.reference)),
    }
    for name, variant in variants.items():
        clip = DECODER.read(VideoFile(sample.path, variant), frames, None, None)
        assert torch.equal(clip, sample.frames[frames]), name


@pytest.mark.parametrize(
    "kind", ["fast", "open_gop", "rotated_90", "rotated_180", "rotated_270", "edit_list"]
)
def test_crop_and_flip_without_scaling_are_exact(zoo: Callable[[str], Any], kind: str) -> None:
    sample = zoo(kind)
    height, width = sample.frames.shape[-2:]
    box = CropBox(10, 4, height - 20, width - 32, hflip=True)
    clip = DECODER.read(VideoFile(sample.path), [3, 1], box, (box.height, box.width))
    expected = sample.frames[[3, 1], :, 10 : height - 10, 4 : width - 28].flip(-1)
    assert torch.equal(clip, expected)


@pytest.mark.parametrize("kind", ["default", "rotated_90", "rotated_180", "rotated_270"])
@pytest.mark.parametrize("direct", [True, False])
def test_scaled_clips_match_the_reference(
    zoo: Callable[[str], Any], kind: str, direct: bool
) -> None:
    sample, generator = zoo(kind), np.random.default_rng(0)
    decoder, source = FusedDecoder(direct=direct), VideoFile(sample.path)
    for _ in range(4):
        box = random_box(generator, *sample.frames.shape[-2:])
        clip = decoder.read(source, [7, 2, 7], box, (64, 48))
        expected = ReferenceDecoder().read(source, [7, 2, 7], box, (64, 48))
        assert clip.shape == (3, 3, 64, 48)
        assert clip.is_contiguous()
        assert (
            psnr(clip, expected) >= 38
        )  # saturated bars with one-pixel edges; real video is tested below


def test_real_clips_match_the_reference_within_40_db(real_data: Path) -> None:
    generator = np.random.default_rng(1)
    paths = sorted((real_data / "long").iterdir()) + sorted(
        (real_data / "captions24").glob("*.mp4")
    )
    for path in paths:
        index = build_packet_index(str(path))
        source, info = VideoFile(str(path), index), index.info()
        frames = sorted(generator.integers(0, min(info.num_frames, 40), 2).tolist())
        full = ReferenceDecoder().read(source, frames, None, None)
        assert torch.equal(DECODER.read(source, frames, None, None), full), path.name
        for _ in range(2):
            box = random_box(generator, info.height, info.width)
            expected = torch.stack(
                [finish(frame, index.rotation, box, (224, 224)) for frame in full]
            )
            assert psnr(DECODER.read(source, frames, box, (224, 224)), expected) >= 40, path.name


@pytest.mark.parametrize("space", [1, 6, 2])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("direct", [True, False])
def test_color_space_and_range_are_honoured(
    tmp_path: Path, make_video: Callable[..., Path], space: int, full: bool, direct: bool
) -> None:
    path = make_colored(tmp_path / "colored.mp4", space, full)
    source = VideoFile(str(path))
    expected = ReferenceDecoder().read(source, [1], None, (48, 72)).double()
    clip = FusedDecoder(direct=direct).read(source, [1], None, (48, 72)).double()
    # The reference's converter truncates, the scaler rounds: half a level or so. Ignoring matrix and range costs 15.
    assert (clip.mean((0, 2, 3)) - expected.mean((0, 2, 3))).abs().max() < 1.5
    (later,) = to_rgb(DECODER.read_yuv(source, [1], CropBox(0, 0, 96, 144), (48, 72)))
    assert (later - expected).abs().max() <= 3
    assert torch.equal(
        DECODER.read(source, [1], None, None), ReferenceDecoder().read(source, [1], None, None)
    )


def make_colored(path: Path, space: int, full: bool) -> Path:
    y, x = np.mgrid[0:96, 0:144]
    planes = [y + x, 60 + x[:48, :72], 200 - y[:48, :72]]
    flat = np.concatenate([p.astype(np.uint8).reshape(-1) for p in planes]).reshape(-1, 144)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 144, 96, "yuv420p"
        stream.codec_context.colorspace = space
        stream.codec_context.color_range = 2 if full else 1
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        *(("libx264", f) for f in ("yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "gray")),
        ("png", "rgb24"),
    ],
)
def test_other_pixel_formats(tmp_path: Path, codec: str, pixel_format: str) -> None:
    path = tmp_path / "video.mov"
    y, x = np.mgrid[0:96, 0:144]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 144, 96, pixel_format
        for i in range(4):
            picture = np.stack([x + i, y + 2 * i, (x + y) // 2], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    source = VideoFile(str(path), build_packet_index(str(path)))
    full = ReferenceDecoder().read(source, [3, 1], None, None)
    assert torch.equal(DECODER.read(source, [3, 1], None, None), full)
    box = CropBox(8, 6, 60, 90, hflip=True)
    expected = ReferenceDecoder().read(source, [3, 1], box, (48, 48))
    assert psnr(DECODER.read(source, [3, 1], box, (48, 48)), expected) >= 40
    (later,) = to_rgb(DECODER.read_yuv(source, [3, 1], box, (48, 48)))
    assert psnr(later, expected) >= 40


def test_only_the_packets_that_matter_are_decoded(zoo: Callable[[str], Any]) -> None:
    """In the fast profile a frame costs four packets at most: I, P, P, itself."""
    from onereel.video.spans import plan_spans

    index = build_packet_index(zoo("fast").path)
    costs = [sum(len(s.rows) for s in plan_spans(index, [f])) for f in range(index.num_frames)]
    assert max(costs) <= 4
    assert np.mean(costs) < 3.5


def test_two_decoders_of_one_thread_and_threads_of_one_decoder_do_not_mix(
    zoo: Callable[[str], Any],
) -> None:
    samples = [zoo("fast"), zoo("default"), zoo("short_groups")]
    failures: list[int] = []

    def work(number: int) -> None:
        generator = np.random.default_rng(number)
        for _ in range(6):
            sample = samples[generator.integers(3)]
            frames = generator.integers(0, 60, 3).tolist()
            clip = DECODER.read(VideoFile(sample.path), frames, None, None)
            if not torch.equal(clip, sample.frames[frames]):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_codec_tag_reaches_the_decoder(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    """By the tag `XVID` FFmpeg chooses Xvid's inverse transform, which rounds in its own way."""
    options = {"g": "12", "flags": "bitexact"}  # without the encoder's name in the stream
    path = make_video(tmp_path / "plain.avi", 20, codec="mpeg4", options=options)
    tagged = tmp_path / "tagged.avi"
    with av.open(str(path)) as reader, av.open(str(tagged), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        stream.codec_context.codec_tag = "XVID"
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    clips = []
    for file in (path, tagged):
        source = VideoFile(str(file), build_packet_index(str(file)))
        clips.append(DECODER.read(source, [3, 9], None, None))
        assert torch.equal(clips[-1], ReferenceDecoder().read(source, [3, 9], None, None))
    assert not torch.equal(*clips)


@pytest.mark.parametrize("room", ["index", "packets"])
def test_a_disk_that_fails_is_a_file_that_cannot_be_read(
    zoo: Callable[[str], Any], room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    path = zoo("default").path
    index = None if room == "index" else build_packet_index(path)
    monkeypatch.setattr(f"onereel.video.{room}.os.pread", failing)
    with pytest.raises(DecodeError, match=r"default\.mp4.*Input/output error"):
        FusedDecoder().read(VideoFile(path, index), [3], None, None)


def test_it_pickles(zoo: Callable[[str], Any]) -> None:
    DECODER.read(VideoFile(zoo("short_groups").path), [0], None, None)
    copy = pickle.loads(pickle.dumps(FusedDecoder(timeout_seconds=3.0)))
    assert copy.timeout_seconds == 3.0
    assert copy.read(VideoFile(zoo("short_groups").path), [0], None, None).shape == (1, 3, 96, 144)


class TestBadInput:
    @pytest.mark.parametrize("frames", [[], [-1], [0, 60]])
    def test_frames_that_do_not_exist(self, zoo: Callable[[str], Any], frames: list[int]) -> None:
        with pytest.raises(DecodeError, match=r"out of range: it has frames 0 to 59|no frame"):
            DECODER.read(VideoFile(zoo("short_groups").path), frames, None, None)

    def test_a_box_outside_the_frame(self, zoo: Callable[[str], Any]) -> None:
        with pytest.raises(DecodeError, match="leaves the frame of 96x144"):
            DECODER.read(VideoFile(zoo("short_groups").path), [0], CropBox(0, 0, 98, 100), (32, 32))

    @pytest.mark.parametrize("kind", ["default", "transport"])
    def test_a_decode_that_takes_too_long(self, zoo: Callable[[str], Any], kind: str) -> None:
        source = VideoFile(zoo(kind).path, build_packet_index(zoo(kind).path))
        with pytest.raises(DecodeError, match="frame 40: took longer than the time limit"):
            FusedDecoder(timeout_seconds=0.0).read(source, [40], None, None)

    def test_time_that_passes_without_work_costs_no_clip(
        self, zoo: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "monotonic", iter(range(0, 10**9, 3600)).__next__)
        source = VideoFile(zoo("default").path, build_packet_index(zoo("default").path))
        assert len(FusedDecoder().read(source, [40], None, None)) == 1

    @pytest.mark.parametrize("error", [MemoryError("no context"), av.ArgumentError(22, "no graph")])
    def test_a_scaler_that_cannot_be_made(
        self, zoo: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("onereel.video.scale.Canvas._scaler_for", fail)
        with pytest.raises(DecodeError, match=r"frame 7: cannot be scaled or converted"):
            FusedDecoder().read(VideoFile(zoo("fast").path), [7], None, (32, 32))

    @pytest.mark.parametrize("kind", ["default", "transport"])
    def test_a_file_that_is_gone(
        self, zoo: Callable[[str], Any], tmp_path: Path, kind: str
    ) -> None:
        path = Path(shutil.copy(zoo(kind).path, tmp_path))
        source = VideoFile(str(path), build_packet_index(str(path)))
        path.unlink()
        with pytest.raises(DecodeError, match="cannot be opened"):
            DECODER.read(source, [0], None, None)

    def test_a_file_changed_behind_its_index(
        self, zoo: Callable[[str], Any], tmp_path: Path
    ) -> None:
        path = Path(shutil.copy(zoo("short_groups").path, tmp_path))
        index = build_packet_index(str(path))
        os.utime(path, ns=(1, 1))
        with pytest.raises(DecodeError, match="it was modified since"):
            DECODER.read(VideoFile(str(path), index), [0], None, None)
        undated = dataclasses.replace(index, mtime_ns=0)
        assert len(DECODER.read(VideoFile(str(path), undated), [0], None, None)) == 1
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DecodeError, match="changed behind its index"):
            DECODER.read(VideoFile(str(path), undated), [0], None, None)

    @pytest.mark.parametrize("kind", ["short_groups", "transport"])
    def test_another_file_of_the_same_size(
        self, zoo: Callable[[str], Any], tmp_path: Path, kind: str
    ) -> None:
        path = Path(shutil.copy(zoo(kind).path, tmp_path))
        index = dataclasses.replace(build_packet_index(str(path)), mtime_ns=0)
        path.write_bytes(bytes(index.file_size))
        with pytest.raises(DecodeError, match=path.name):
            DECODER.read(VideoFile(str(path), index), [30], None, None)

    @pytest.mark.parametrize("decoder", [DECODER, ReferenceDecoder()])
    def test_a_damaged_packet_is_named_and_not_concealed(
        self, zoo: Callable[[str], Any], tmp_path: Path, decoder: Any
    ) -> None:
        path = Path(shutil.copy(zoo("short_groups").path, tmp_path))
        index = dataclasses.replace(build_packet_index(str(path)), mtime_ns=0)
        packet = int(index.packet_of_frame[30])
        start, size = int(index.position[packet]), int(index.size[packet])
        data = bytearray(path.read_bytes())
        noise = np.random.default_rng(0).integers(0, 256, size - 9, np.uint8)
        data[start + 9 : start + size] = noise.tobytes()
        path.write_bytes(data)
        with pytest.raises(DecodeError, match=r"frame 30: corrupt"):
            decoder.read(VideoFile(str(path), index), [30], None, None)
        assert len(decoder.read(VideoFile(str(path), index), [2], None, None)) == 1
