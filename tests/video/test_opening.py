"""Files whose titles are in any encoding are read like others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from onereel.errors import DecodeError
from onereel.types import CropBox
from onereel.video.decode import ReferenceDecoder, VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.index import build_packet_index
from onereel.video.prepare import PrepareReport
from onereel.video.probe import probe

Run = Callable[..., PrepareReport]


@pytest.fixture(params=[".mp4", ".mkv", ".avi"])
def titled(request: pytest.FixtureRequest, zoo: Callable[[str], Any], tmp_path: Path) -> str:
    """A video whose title is in Latin-1."""
    kind = {".mp4": "default", ".mkv": "matroska", ".avi": "asp_avi"}[request.param]
    path = tmp_path / f"titled{request.param}"
    with av.open(zoo(kind).path) as reader, av.open(str(path), "w") as writer:
        writer.metadata["title"] = "Cafe\u0301 noir"
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = stream
                writer.mux(packet)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Cafe\xcc\x81 noir", b"Cafe\xe9\xe9 noir"))
    assert path.read_bytes() != data
    return str(path)


def test_a_title_in_another_encoding_does_no_harm(titled: str, run: Run, tmp_path: Path) -> None:
    assert probe(titled).why_unusable == ""
    index = build_packet_index(titled)
    crop, frames = CropBox(0, 0, 96, 144), [3, 40]
    for decoder in (ReferenceDecoder(), FusedDecoder()):
        read = decoder.read(VideoFile(titled, index), frames, crop, (96, 144))
        assert read.shape == (2, 3, 96, 144)
    assert run(titled, tmp_path / "out").quarantined == ()


def test_whatever_else_is_wrong_with_a_file_is_said_of_that_file(
    zoo: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("a stream of 0 channels")

    monkeypatch.setattr("onereel.video.index._header", fail)
    with pytest.raises(DecodeError, match=r"default\.mp4: .*a stream of 0 channels"):
        build_packet_index(zoo("default").path)
