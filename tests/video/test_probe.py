"""Facts of files, and why some are of no use."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from onereel.errors import DecodeError
from onereel.video.probe import probe


def test_it_reads_the_header(make_video: Callable[..., Path], tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", num_frames=25, height=64, width=96, fps=25, audio=True)
    facts = probe(str(path))
    (stream,) = facts.video_streams
    assert (stream.codec, stream.height, stream.width, stream.fps) == ("h264", 64, 96, 25)
    assert (stream.num_frames, stream.duration_seconds) == (25, 1.0)
    assert (facts.best_stream, facts.num_audio_streams, facts.why_unusable) == (0, 1, "")
    assert facts.bytes == path.stat().st_size


def test_two_video_streams(real_data: Path) -> None:
    facts = probe(str(real_data / "long" / "nasa_13013_13s.mp4"))
    assert [s.stream for s in facts.video_streams] == [0, 3]
    assert facts.video_streams[1].fps == Fraction(30000, 1001)
    assert facts.best_stream == 3


def test_sound_alone_is_unusable(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(str(path)).why_unusable == "sound only, no video stream"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "empty"), (b"not a video at all", "no media file")],
)
def test_what_cannot_be_opened(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "x.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DecodeError, match=reason):
        probe(str(path))


def test_a_codec_that_nobody_knows(unknown_codec: Path) -> None:
    facts = probe(str(unknown_codec))
    assert facts.why_unusable == "stream 0 has an unknown codec; re-encode it"
    assert (facts.best_stream, facts.video_streams[0].codec) == (None, "")
