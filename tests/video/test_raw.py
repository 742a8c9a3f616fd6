"""Raw videos: indexed once, the index kept on disk, damaged entries made again."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onereel.errors import DecodeError
from onereel.types import ClipSpec, CropBox
from onereel.video import raw
from onereel.video.index import build_packet_index
from onereel.video.raw import RawVideos, dump_packet_index, load_packet_index

BOX = CropBox(0, 0, 96, 144)


@pytest.fixture
def folder(zoo: Callable[[str], Any], tmp_path: Path) -> Path:
    """A folder with one video, `clips/a.mp4`."""
    (tmp_path / "clips").mkdir()
    shutil.copy(zoo("short_groups").path, tmp_path / "clips" / "a.mp4")
    return tmp_path


@pytest.fixture
def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were indexed, in order."""
    built: list[str] = []

    def build(path: str, stream: int | None = None) -> Any:
        built.append(path)
        return build_packet_index(path, stream)

    monkeypatch.setattr(raw, "build_packet_index", build)
    return built


@pytest.mark.parametrize("kind", ["fast", "rotated_90", "variable_rate", "asp_avi"])
def test_an_index_survives_the_disk(zoo: Callable[[str], Any], kind: str) -> None:
    index = build_packet_index(zoo(kind).path)
    copy = load_packet_index(dump_packet_index(index))
    for name, value in vars(index).items():
        if isinstance(value, np.ndarray):
            assert getattr(copy, name).dtype == value.dtype
            assert (getattr(copy, name) == value).all()
        else:
            assert getattr(copy, name) == value


def test_names_are_paths_relative_to_the_root_or_absolute(
    folder: Path, zoo: Callable[[str], Any]
) -> None:
    videos = RawVideos(str(folder), cache=str(folder / "cache"))
    for name in ("clips/a.mp4", str(folder / "clips" / "a.mp4")):
        assert name in videos
        assert videos.info(name).num_frames == 60
        clip = videos.read(ClipSpec(name, (5, 3), BOX, (96, 144)))
        assert torch.equal(clip, zoo("short_groups").frames[[5, 3]])
    assert "clips/b.mp4" not in videos
    assert "clips" not in videos
    with pytest.raises(DecodeError, match=r"b\.mp4"):
        videos.info("clips/b.mp4")


def test_videos_are_the_files_below_the_root(tmp_path: Path) -> None:
    for name in ("b/c.MKV", "a.mp4", ".hidden.mp4", ".git/d.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    videos = RawVideos(str(tmp_path))
    assert videos.videos() == ["a.mp4", "b/c.MKV"]
    assert videos.chunk_frames("a.mp4") == 0


def test_a_file_is_indexed_once(folder: Path, count_builds: list[str]) -> None:
    for _ in range(2):
        videos = RawVideos(str(folder), cache=str(folder / "cache"))
        videos.info("clips/a.mp4")
        videos.read(ClipSpec("clips/a.mp4", (0,), BOX, (32, 32)))
    assert len(count_builds) == 1


@pytest.mark.parametrize("most", [0, 59, 60, 150, 1000])
def test_indices_in_memory_are_bounded_by_their_packets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(raw, "_KEPT_PACKETS", most)
    videos = RawVideos(str(folder), cache=str(folder / "cache"))
    names = [f"clips/{name}.mp4" for name in "abcde"]
    for name in names[1:]:
        shutil.copy(folder / names[0], folder / name)
    for name in [*names, *names]:
        assert videos.info(name).num_frames == 60
        kept = sum(index.num_packets for index in videos._indices.values())
        assert kept <= max(most, 60)
        assert list(videos._indices)[-1] == str(folder / name)
    assert len(videos._indices) == max(1, min(most // 60, 5))


def test_a_changed_file_is_indexed_again(folder: Path, count_builds: list[str]) -> None:
    cache = str(folder / "cache")
    RawVideos(str(folder), cache=cache).info("clips/a.mp4")
    os.utime(folder / "clips" / "a.mp4", ns=(5, 5))
    RawVideos(str(folder), cache=cache).info("clips/a.mp4")
    assert len(count_builds) == 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a zip file", b"\x93NUMPY"])
def test_a_damaged_cache_entry_is_made_again(
    folder: Path, count_builds: list[str], damage: bytes
) -> None:
    cache = folder / "cache"
    RawVideos(str(folder), cache=str(cache)).info("clips/a.mp4")
    (entry,) = (cache / "packets").iterdir()
    whole = entry.read_bytes()
    for content in (damage, whole[: len(whole) // 2]):
        entry.write_bytes(content)
        assert RawVideos(str(folder), cache=str(cache)).info("clips/a.mp4").num_frames == 60
        assert entry.read_bytes() == whole
    assert len(count_builds) == 3


def test_a_cache_that_cannot_be_written_is_said(folder: Path) -> None:
    (folder / "cache").write_text("a file where the folder should be")
    videos = RawVideos(str(folder), cache=str(folder / "cache"))
    with pytest.warns(UserWarning, match="cannot keep the packet index"):
        assert videos.info("clips/a.mp4").num_frames == 60


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("ONEREEL_CACHE", raising=False)
    assert raw.default_cache() == Path("/somewhere/onereel")
    monkeypatch.setenv("ONEREEL_CACHE", "/elsewhere")
    assert raw.default_cache() == Path("/elsewhere")


def test_it_pickles_small(folder: Path) -> None:
    videos = RawVideos(str(folder), cache=str(folder / "cache"))
    videos.read(ClipSpec("clips/a.mp4", (0,), BOX, (32, 32)))
    data = pickle.dumps(videos)
    assert len(data) < 1000
    assert pickle.loads(data).info("clips/a.mp4").num_frames == 60


def test_another_stream_can_be_asked_for(real_data: Path, tmp_path: Path) -> None:
    name = "nasa_13013_13s.mp4"
    best = RawVideos(str(real_data / "long"), cache=str(tmp_path))
    other = RawVideos(str(real_data / "long"), cache=str(tmp_path), stream=0)
    assert best.info(name).width == 480
    assert other.info(name).width == 320


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(raw.os, "replace", full)
    with pytest.warns(UserWarning, match="cannot keep the packet index"):
        RawVideos(str(folder), cache=str(folder / "cache")).info("clips/a.mp4")
    assert not list((folder / "cache" / "packets").iterdir())
