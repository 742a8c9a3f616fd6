"""Reading a store: the right frames across chunk borders, by any spelling of a name, and never a wrong file."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.data.yuv import to_rgb
from onereel.errors import DataError, DecodeError
from onereel.types import ClipSpec, CropBox
from onereel.video import manifest
from onereel.video.decode import ReferenceDecoder, VideoFile
from onereel.video.library import open_library
from onereel.video.prepare import prepare
from onereel.video.store import ChunkStore

LENGTHS = {"deep/er/c.mkv": 31, "one.mp4": 10, "two.avi": 75}
SIZE = (64, 96)
WHOLE = CropBox(0, 0, *SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Videos below `in`, and `out`, their store in chunks of ten frames."""
    folder = tmp_path_factory.mktemp("store")
    for name, length in LENGTHS.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        make_video(path, length, *SIZE, fps=20, codec=codec, options={"b": "900k"})
    arguments = {"chunk_seconds": 0.5, "num_workers": 1, "progress": False}
    prepare(folder / "in", folder / "out", **arguments)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> ChunkStore:
    return ChunkStore(str(folder / "out"))


def test_what_it_holds(store: ChunkStore) -> None:
    assert store.videos() == sorted(LENGTHS)
    for name, length in LENGTHS.items():
        info = store.info(name)
        assert (info.num_frames, info.fps, info.height, info.width) == (length, 20.0, *SIZE)
        assert info.frame_times is None
        assert store.chunk_frames(name) == 10
    with pytest.raises(DecodeError, match="not in the store"):
        store.chunk_frames("gone.mp4")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_request_shows_the_frames_it_names(
    store: ChunkStore, number_of: Callable[..., int], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(LENGTHS)))
    start = data.draw(st.integers(0, LENGTHS[name] - 1))
    end = data.draw(st.integers(start, LENGTHS[name] - 1))
    step = data.draw(st.integers(1, 5))
    clip = store.read(ClipSpec(name, tuple(range(start, end + 1, step)), WHOLE, SIZE))
    assert [number_of(frame) for frame in clip] == list(range(start, end + 1, step))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 74), min_size=1, max_size=12))
def test_any_order_and_repeats(
    store: ChunkStore, number_of: Callable[..., int], frames: list[int]
) -> None:
    clip = store.read(ClipSpec("two.avi", tuple(frames), WHOLE, SIZE))
    assert [number_of(frame) for frame in clip] == frames


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 74), min_size=1, max_size=12))
def test_clips_as_coded_have_the_same_frames(
    store: ChunkStore, number_of: Callable[..., int], frames: list[int]
) -> None:
    clip = store.read_yuv(ClipSpec("two.avi", tuple(frames), WHOLE, SIZE))
    assert (clip.num_frames, len(clip.layouts), clip.size) == (len(frames), 1, SIZE)
    assert [number_of(frame) for frame in to_rgb(clip)[0]] == frames


def test_pixels_are_those_of_a_full_decode_of_the_chunks(folder: Path, store: ChunkStore) -> None:
    chunks = sorted((folder / "out" / "chunks" / "two.avi").iterdir())
    assert len(chunks) == 8
    reference = ReferenceDecoder()
    full = [reference.read(VideoFile(str(c)), range(5), None, None) for c in chunks]
    clip = store.read(ClipSpec("two.avi", tuple(range(75)), WHOLE, SIZE))
    for number, first in enumerate(full):
        assert (clip[10 * number : 10 * number + 5] == first).all()


def test_one_crop_for_all_chunks(store: ChunkStore) -> None:
    box = CropBox(8, 16, 40, 48, hflip=True)
    clip = store.read(ClipSpec("one.mp4", (0, 9), box, (40, 48)))
    across = store.read(ClipSpec("two.avi", (9, 10), box, (40, 48)))
    whole = store.read(ClipSpec("two.avi", (9, 10), WHOLE, SIZE))
    assert clip.shape == across.shape == (2, 3, 40, 48)
    expected = whole[..., 8:48, 16:64].flip(-1)
    assert (across.float() - expected.float()).abs().mean() < 2.0
    assert across.dtype == torch.uint8


def test_names_have_many_spellings(folder: Path, store: ChunkStore) -> None:
    for name in ("one.mp4", "./one.mp4", "deep/../one.mp4", str(folder / "in" / "one.mp4")):
        assert name in store
        assert store.info(name).num_frames == 10
    link = folder / "link"
    link.symlink_to(folder / "in", target_is_directory=True)
    assert str(link / "deep" / "er" / "c.mkv") in store
    for name in ("two.mp4", "", "zzz", str(folder / "one.mp4")):
        assert name not in store
    with pytest.raises(DecodeError, match="not in the store"):
        store.info("two.mp4")


def test_files_that_are_links_have_two_names(
    folder: Path, tmp_path: Path, run: Callable[..., object]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").symlink_to(folder / "in" / "one.mp4")
    (tmp_path / "way").symlink_to(tmp_path / "in", target_is_directory=True)
    run(tmp_path / "in", tmp_path / "out")
    store = ChunkStore(str(tmp_path / "out"))
    for name in (
        folder / "in" / "one.mp4",
        tmp_path / "way" / "a.mp4",
        folder / "in/../in/one.mp4",
    ):
        assert str(name) in store
    assert str(folder / "in" / "two.avi") not in store


def test_a_video_that_is_not_there_costs_no_look_at_each_that_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, resolved = ChunkStore(str(folder / "out")), []
    monkeypatch.setattr(store, "videos", lambda: [f"deep/{n:05d}.mp4" for n in range(1000)])
    resolve = os.path.realpath

    def counted(path: str) -> str:
        resolved.append(path)
        return resolve(path)

    monkeypatch.setattr("onereel.video.store.os.path.realpath", counted)
    assert "missing.mp4" not in store
    assert len(resolved) < 10


def test_it_travels_to_workers_and_to_other_folders(folder: Path, store: ChunkStore) -> None:
    spec = ClipSpec("deep/er/c.mkv", (3, 30), WHOLE, SIZE)
    clip = store.read(spec)
    state = pickle.dumps(store)
    assert len(state) < 2000
    assert (pickle.loads(state).read(spec) == clip).all()
    shutil.copytree(folder / "out", folder / "copy")
    assert (open_library(str(folder / "copy")).read(spec) == clip).all()


@pytest.mark.parametrize("frames", [(-1,), (0, 10), ()])
def test_frames_that_do_not_exist(store: ChunkStore, frames: tuple[int, ...]) -> None:
    with pytest.raises(DecodeError, match=r"frames 0 to 9|no frame"):
        store.read(ClipSpec("one.mp4", frames, WHOLE, SIZE))


def test_a_file_that_changed_behind_its_index_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "out", tmp_path / "out")
    store = ChunkStore(str(tmp_path / "out"))
    spec = ClipSpec("two.avi", (5, 15), WHOLE, SIZE)
    store.read(spec)
    chunk = tmp_path / "out" / "chunks" / "two.avi" / "000001.mp4"
    data = chunk.read_bytes()
    chunk.write_bytes(data + b"!")
    with pytest.raises(
        DecodeError, match=r"000001.mp4: .*changed behind its index.*prepare"
    ) as error:
        store.read(spec)
    assert error.value.path == str(chunk)
    chunk.unlink()
    with pytest.raises(DecodeError, match=r"000001.mp4.*cannot be opened.*prepare"):
        store.read(spec)
    store.read(ClipSpec("two.avi", (5, 25), WHOLE, SIZE))  # the other chunks still serve


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*gone; if the store was moved, say"):
        ChunkStore(str(tmp_path / "gone"))
    with pytest.raises(DataError, match="onereel prepare SRC"):
        ChunkStore(str(tmp_path))
    (tmp_path / "store.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="store format 99"):
        ChunkStore(str(tmp_path))
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        ChunkStore(str(tmp_path))


def test_the_packet_index_is_the_one_of_the_file(folder: Path, store: ChunkStore) -> None:
    from onereel.video.index import build_packet_index

    for row in range(store._rows.num_rows):
        file = store._file(row)
        assert file.index is not None
        fresh = build_packet_index(file.path)
        for name in ("rank", "position", "size", "key", "reference", "pts", "frame_times"):
            np.testing.assert_allclose(getattr(file.index, name), getattr(fresh, name), atol=1e-9)
        for name in ("codec", "extradata", "width", "height", "rotation", "pixel_format"):
            assert getattr(file.index, name) == getattr(fresh, name)
        for name in ("color_space", "color_range", "time_base", "fps", "addressable", "file_size"):
            assert getattr(file.index, name) == getattr(fresh, name)
        assert file.index.fps == Fraction(20)
    assert os.listdir(folder / "out" / "chunks" / "one.mp4") == ["000000.mp4"]


def test_rows_are_found_across_batches(
    folder: Path, tmp_path: Path, number_of: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "BATCH_ROWS", 3)
    arguments = {"chunk_seconds": 0.5, "num_workers": 1, "progress": False}
    prepare(folder / "in", tmp_path / "out", **arguments)  # type: ignore[arg-type]
    store = ChunkStore(str(tmp_path / "out"))
    assert store.videos() == sorted(LENGTHS)
    for name, length in LENGTHS.items():
        clip = store.read(ClipSpec(name, tuple(range(length)), WHOLE, SIZE))
        assert [number_of(frame) for frame in clip] == list(range(length))


def test_players_play_the_chunks(folder: Path) -> None:
    for chunk in (folder / "out").rglob("*.mp4"):
        if chunk.is_file():
            with av.open(str(chunk)) as container:
                frames = list(container.decode(video=0))
                assert frames[0].pts == 0
                assert container.format.name.startswith("mov")
