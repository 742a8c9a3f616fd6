"""Raw videos of every kind become a store; bad ones are named, and what is in the store stays."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from onereel.errors import ConfigError, DataError
from onereel.types import ClipSpec, CropBox
from onereel.video.encode import PROFILES
from onereel.video.prepare import PrepareReport, refusals
from onereel.video.store import ChunkStore

KINDS = (
    *("open_gop", "intra_refresh", "interlaced", "sound", "matroska", "transport", "avc_avi"),
    *("asp_avi", "asp_mp4", "vp9", "hevc", "rotated_90", "rotated_180", "rotated_270", "edit_list"),
)
MakeVideo = Callable[..., Path]
Run = Callable[..., PrepareReport]
Numbers = Callable[[Path, str], list[int]]
Manifest = Callable[[Path], list[dict[str, Any]]]
Files = Callable[[Path], set[str]]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_frame_of_the_source_is_in_the_store(
    run: Run,
    numbers: Numbers,
    manifest: Manifest,
    profile: str,
    make_video: MakeVideo,
    tmp_path: Path,
) -> None:
    make_video(tmp_path / "in.mp4", 70, 96, 144)
    report = run(tmp_path / "in.mp4", tmp_path / "out", profile=profile)
    assert numbers(tmp_path / "out", "in.mp4") == list(range(70))
    rows = manifest(tmp_path / "out")
    assert [row["num_frames"] for row in rows] == [15, 15, 15, 15, 10]
    assert [row["first_frame"] for row in rows] == [0, 15, 30, 45, 60]
    assert [row["start_seconds"] for row in rows] == [0, 0.5, 1, 1.5, 2]
    assert rows[-1]["end_seconds"] == pytest.approx(70 / 30)
    assert {(row["height"], row["width"]) for row in rows} == {(64, 96)}
    assert (report.videos, report.chunks, report.quarantined) == (1, 5, ())
    assert report.video_seconds == pytest.approx(70 / 30)
    assert report.source_bytes == (tmp_path / "in.mp4").stat().st_size
    assert report.store_bytes == sum(
        (tmp_path / "out" / str(r["path"])).stat().st_size for r in rows
    )
    assert 30 < report.psnr < 60
    assert "5 chunks" in str(report)
    assert not {"parts", "partial"} & set(os.listdir(tmp_path / "out"))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_sources(
    run: Run, manifest: Manifest, kind: str, zoo: Callable[[str], Any], tmp_path: Path
) -> None:
    sample = zoo(kind)
    settings = {"short_side": 96, "chunk_seconds": 0.2, "crf": 12}
    report = run(sample.path, tmp_path / "out", **settings)
    name = Path(sample.path).name
    assert report.quarantined == ()
    store = ChunkStore(str(tmp_path / "out"))
    info = store.info(name)
    assert (info.num_frames, info.height, info.width) == tuple(sample.frames[:, 0].shape)
    size = (info.height, info.width)
    clip = store.read(ClipSpec(name, tuple(range(info.num_frames)), CropBox(0, 0, *size), size))
    error = (clip.float() - sample.frames.float()).square().mean((1, 2, 3))
    assert 10 * np.log10(255**2 / float(error.max())) > 27  # the frame before or after is at 15
    row = manifest(tmp_path / "out")[0]
    assert row["source_rotation"] == (int(kind[8:]) if kind.startswith("rotated") else 0)
    with av.open(str(tmp_path / "out" / str(row["path"]))) as chunk:
        assert [s.type for s in chunk.streams] == ["video"]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_units_that_start_inside_a_video(
    run: Run, numbers: Numbers, name: str, make_video: MakeVideo, tmp_path: Path
) -> None:
    make_video(tmp_path / name, 150, 48, 72, options={"g": "25"})
    run(tmp_path / name, tmp_path / "out", chunk_seconds=0.4)
    assert numbers(tmp_path / "out", name) == list(range(150))


def test_variable_rate_becomes_constant(
    run: Run, numbers: Numbers, manifest: Manifest, make_video: MakeVideo, tmp_path: Path
) -> None:
    pts = np.cumsum([0] + [20, 60] * 15).tolist()  # ms: 31 frames, 25 a second on average
    make_video(tmp_path / "in.mkv", 31, 64, 96, pts=pts)
    run(tmp_path / "in.mkv", tmp_path / "out")
    rows = manifest(tmp_path / "out")
    assert {(r["fps_numerator"], r["fps_denominator"]) for r in rows} == {(25, 1)}
    expected = [max(i for i, t in enumerate(pts) if t <= 40 * tick + 20) for tick in range(31)]
    assert numbers(tmp_path / "out", "in.mkv") == expected


def test_a_pause_loses_no_frame_and_is_told(
    run: Run, numbers: Numbers, make_video: MakeVideo, tmp_path: Path
) -> None:
    pts = [*range(0, 1000, 100), *range(5000, 6000, 100)]
    make_video(tmp_path / "in.mkv", 20, 64, 96, pts=pts)
    report = run(tmp_path / "in.mkv", tmp_path / "out")
    assert numbers(tmp_path / "out", "in.mkv") == [*range(10), *[9] * 40, *range(10, 20)]
    assert "uneven       1; another rate for all: --fps\n  in.mkv: at 10 frames a second" in str(
        report
    )


def test_another_rate(run: Run, numbers: Numbers, make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "in.mp4", 60, 64, 96)
    run(tmp_path / "in.mp4", tmp_path / "half", fps=15)
    shown = numbers(tmp_path / "half", "in.mp4")
    assert len(shown) == 30
    assert np.diff(shown).tolist() == [2] * 29
    run(tmp_path / "in.mp4", tmp_path / "double", fps=60)
    shown = numbers(tmp_path / "double", "in.mp4")
    assert len(shown) == 120
    assert sorted(set(shown)) == list(range(60))
    run(tmp_path / "in.mp4", tmp_path / "same", fps=30.0)
    assert numbers(tmp_path / "same", "in.mp4") == list(range(60))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(48, 72, (48, 72)), (96, 144, (64, 96)), (144, 96, (96, 64)), (100, 178, (64, 114))],
)
def test_sizes(
    run: Run,
    manifest: Manifest,
    height: int,
    width: int,
    expected: tuple[int, int],
    make_video: MakeVideo,
    tmp_path: Path,
) -> None:
    make_video(tmp_path / "in.mp4", 3, height, width)
    run(tmp_path / "in.mp4", tmp_path / "out")
    (row,) = manifest(tmp_path / "out")
    assert (row["height"], row["width"]) == expected


def test_odd_sizes_lose_one_row_or_column(run: Run, manifest: Manifest, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 61, 47, "yuv444p"
        frame = np.full((47, 61, 3), 90, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    run(tmp_path / "in.mkv", tmp_path / "out")
    (row,) = manifest(tmp_path / "out")
    assert (row["height"], row["width"]) == (46, 60)


def test_the_stream_can_be_chosen(run: Run, real_data: Path, tmp_path: Path) -> None:
    source = real_data / "long" / "nasa_13013_13s.mp4"
    run(source, tmp_path / "best", chunk_seconds=15)
    run(source, tmp_path / "first", chunk_seconds=15, stream=0)
    assert ChunkStore(str(tmp_path / "best")).info(source.name).num_frames == 390
    assert ChunkStore(str(tmp_path / "first")).info(source.name).num_frames == 325


def test_bad_files_are_named_and_the_rest_proceeds(
    run: Run, numbers: Numbers, files: Files, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos = tmp_path / "in"
    videos.mkdir()
    good = make_video(videos / "good.mp4", 90, 64, 96, options={"g": "15"}).read_bytes()
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("no video at all\n" * 50)
    (videos / "cut.mp4").write_bytes(good[: len(good) // 2])
    damaged = bytearray(good)
    damaged[len(good) // 2 : len(good) // 2 + 400] = b"\x55" * 400
    (videos / "damaged.mp4").write_bytes(bytes(damaged))
    with av.open(str(videos / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    report = run(videos, tmp_path / "out", chunk_seconds=0.5)
    with open(tmp_path / "out" / "quarantine.csv", newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"empty.mp4", "text.mp4", "cut.mp4", "damaged.mp4", "sound.mp4"}
    assert all(row["reason"] for row in rows.values())
    assert 15 <= int(rows["damaged.mp4"]["frame"]) < 90
    assert [q.path for q in report.quarantined] == sorted(rows)
    assert ChunkStore(str(tmp_path / "out")).videos() == ["good.mp4"]
    assert numbers(tmp_path / "out", "good.mp4") == list(range(90))
    assert {name.split("/")[1] for name in files(tmp_path / "out") if "/" in name} == {"good.mp4"}


def test_a_repaired_file_is_taken_by_the_next_run(
    run: Run, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos = tmp_path / "in"
    videos.mkdir()
    make_video(videos / "a.mp4", 20, 64, 96)
    (videos / "b.mp4").touch()
    assert len(run(videos, tmp_path / "out").quarantined) == 1
    why = refusals(tmp_path / "out")
    reasons = {why(name) for name in ("b.mp4", "./b.mp4", str(videos / "b.mp4"), "b")}
    assert reasons == {"the file is empty"}
    assert why("a.mp4") == why("c.mp4") == ""
    make_video(videos / "b.mp4", 20, 64, 96)
    make_video(videos / "a.mp4", 40, 64, 96)  # replaced by another
    report = run(videos, tmp_path / "out")
    assert (report.videos, report.quarantined) == (2, ())
    assert ChunkStore(str(tmp_path / "out")).info("a.mp4").num_frames == 40


def change(source: Path, how: str, make_video: MakeVideo) -> None:
    """Make the file at `source` useless."""
    if how == "gone":
        source.unlink()
    elif how == "empty":
        source.write_bytes(b"")
    elif how == "no video":
        source.write_text("no video at all")
    else:  # another video, bad where its first chunks are finished already
        data = bytearray(make_video(source, 150, 64, 96, options={"g": "15"}).read_bytes())
        at = len(data) * 9 // 10
        data[at : at + 300] = b"\x55" * 300
        source.write_bytes(data)


@pytest.mark.parametrize("how", ["gone", "empty", "no video", "damaged"])
def test_what_is_in_the_store_stays_when_its_source_goes_bad(
    how: str,
    run: Run,
    numbers: Numbers,
    manifest: Manifest,
    files: Files,
    make_video: MakeVideo,
    tmp_path: Path,
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 40, 64, 96), tmp_path / "out"
    run([str(source)], out)
    rows, whole = manifest(out), files(out)
    change(source, how, make_video)
    for _ in range(2):
        report = run([str(source)], out)
        assert [q.path for q in report.quarantined] == [str(source)]
        assert report.videos == 1
        assert manifest(out) == rows
        assert files(out) == whole
        assert numbers(out, str(source)) == list(range(40))
    assert str(source) in (out / "quarantine.csv").read_text()
    for length in (50, 60):  # repaired, and changed again
        make_video(source, length, 64, 96)
        assert run([str(source)], out).quarantined == ()
        assert numbers(out, str(source)) == list(range(length))
        assert len(list(out.rglob("*.mp4"))) == -(-length // 15)


def test_rows_stay_where_neither_chunk_nor_source_is_left(
    run: Run, numbers: Numbers, manifest: Manifest, make_video: MakeVideo, tmp_path: Path
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 40, 64, 96), tmp_path / "out"
    run([str(source)], out)
    rows = manifest(out)
    (out / str(rows[1]["path"])).unlink()
    source.rename(tmp_path / "elsewhere.mp4")
    assert len(run([str(source)], out).quarantined) == 1
    assert manifest(out) == rows
    (tmp_path / "elsewhere.mp4").rename(source)
    run([str(source)], out)
    assert numbers(out, str(source)) == list(range(40))


def test_a_codec_that_nobody_knows(
    run: Run, make_video: MakeVideo, unknown_codec: Path, tmp_path: Path
) -> None:
    good = make_video(tmp_path / "a.mp4", 5, 64, 96)
    report = run([str(good), str(unknown_codec)], tmp_path / "out")
    assert report.videos == 1
    assert "unknown codec" in report.quarantined[0].reason


@pytest.mark.parametrize(
    "error",
    [
        av.ExternalError(-1, "Generic error in an external library"),
        av.ArgumentError(22, "Invalid argument"),
        ValueError("cannot convert"),
        AssertionError("is not one packet per tick"),
        MemoryError(),
    ],
)
def test_a_video_that_cannot_be_encoded_is_named(
    error: Exception,
    run: Run,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    make_video(tmp_path / "a.mp4", 5, 64, 96)
    monkeypatch.setattr("onereel.video.chunking.write_chunk", fail)
    report = run(tmp_path / "a.mp4", tmp_path / "out")
    assert "cannot be scaled or encoded" in report.quarantined[0].reason


def test_a_second_run_makes_nothing_again(
    run: Run, files: Files, make_video: MakeVideo, tmp_path: Path
) -> None:
    make_video(tmp_path / "a.mp4", 40, 64, 96)
    run(tmp_path / "a.mp4", tmp_path / "out")
    before = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")
    }
    assert run(tmp_path / "a.mp4", tmp_path / "out").encoded_seconds == 0
    after = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    del before["quarantine.csv"], after["quarantine.csv"]
    assert after == before
    chunk = tmp_path / "out" / "chunks" / "a.mp4" / "000001.mp4"
    chunk.unlink()
    run(tmp_path / "a.mp4", tmp_path / "out")
    assert chunk.exists()


def test_two_files_of_one_name_stay_apart(
    run: Run, manifest: Manifest, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos = tmp_path / "in"
    for name in ("a.mp4", "a.avi", "b/a.mp4", "b ü?/a.mp4", "b ü_/a.mp4"):
        (videos / name).parent.mkdir(exist_ok=True, parents=True)
        codec = "mpeg4" if name.endswith("avi") else "libx264"
        make_video(videos / name, 5, 64, 96, codec=codec)
    assert run(videos, tmp_path / "out").videos == 5
    assert len({str(row["path"]) for row in manifest(tmp_path / "out")}) == 5


def test_other_settings_are_refused(run: Run, make_video: MakeVideo, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", 5, 64, 96)
    run(tmp_path / "a.mp4", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"profile is 'small' here and 'fast' in the store"):
        run(tmp_path / "a.mp4", tmp_path / "out", profile="small")
    with pytest.raises(ConfigError, match=r"crf is 20\.0 here and 23\.0"):
        run(tmp_path / "a.mp4", tmp_path / "out", crf=20)


def test_what_cannot_be_a_store_or_a_setting_is_refused(
    run: Run, make_video: MakeVideo, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "a.mp4", 5, 64, 96)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(DataError, match="not empty and is no chunk store"):
        run(source, tmp_path / "other")
    assert os.listdir(tmp_path / "other") == ["thesis.tex"]
    with pytest.raises(ConfigError, match="Did you mean 'fast'"):
        run(source, tmp_path / "out", profile="fats")
    for name, value in (("chunk_seconds", 0), ("short_side", 8), ("crf", 99), ("num_workers", -1)):
        with pytest.raises(ConfigError, match=f"{name} is {value}"):
            run(source, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_a_list_names_videos_as_it_writes_them(
    run: Run, make_video: MakeVideo, tmp_path: Path
) -> None:
    make_video(tmp_path / "my video.mp4", 5, 64, 96)
    (tmp_path / "list.csv").write_text("path,label\n./my video.mp4,1\nabsent.mp4,2\n")
    report = run(tmp_path / "list.csv", tmp_path / "out")
    assert ChunkStore(str(tmp_path / "out")).videos() == ["./my video.mp4"]
    assert [(q.path, q.reason) for q in report.quarantined] == [
        ("absent.mp4", "there is no such file")
    ]
    shutil.rmtree(tmp_path / "out")
