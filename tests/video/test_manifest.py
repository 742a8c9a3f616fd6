"""Where the chunks of a video lie: a folder for each name, none within another, all of names that file systems take."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pytest

from onereel.video.manifest import ROWS, RowsByVideo, video_folder
from onereel.video.prepare import PrepareReport, _report
from onereel.video.schedule import Outcome

MakeVideo = Callable[..., Path]
Run = Callable[..., PrepareReport]
Numbers = Callable[[Path, str], list[int]]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "train/a.mp4", "train/b"),
        ("train", "train/a.mp4/b.mp4", "train/a.mp4"),
        ("a.mp4", "a.mp4 /b.mp4", " a.mp4/b.mp4"),
        ("x" * 116 + ".mp4", "x" * 116 + ".mp4more/a.mp4"),
    ],
)
def test_no_folder_of_chunks_lies_within_another(names: tuple[str, ...]) -> None:
    folders = [PurePosixPath(video_folder(name)) for name in names]
    assert len(set(folders)) == len(names)
    assert not any(outer in inner.parents for outer, inner in permutations(folders, 2))


@pytest.mark.parametrize("name", [" ../ ../ ../a.mp4", ". / ./a.mp4", "a/ ..", "  /a.mp4", " "])
def test_no_folder_of_chunks_lies_outside_the_store(name: str) -> None:
    first, *others = video_folder(name).split("/")
    assert first == "chunks"
    assert others
    assert not {"", ".", ".."} & set(others)


@pytest.mark.parametrize(
    "name", ["a.mp4", "a/b.MKV", "Zug nach Köln, 2.webm", "x" * 116 + ".mp4", "v1.5/a.b.mp4"]
)
def test_an_ordinary_name_is_its_own_folder(name: str) -> None:
    assert video_folder(name) == f"chunks/{name}"


def test_long_names_fit_file_systems_that_count_bytes(
    run: Run, numbers: Numbers, make_video: MakeVideo, tmp_path: Path
) -> None:
    name = "映" * 76 + " [abcdefghijk].mp4"
    for length in (20, 40):  # what replaces another lies beside it
        make_video(tmp_path / name, length, 64, 96)
        assert run(tmp_path / name, tmp_path / "out").quarantined == ()
        assert numbers(tmp_path / "out", name) == list(range(length))
    folders = [video_folder("映" * number + ".mp4") for number in range(60, 140)]
    assert len(set(folders)) == 80
    assert all(len(folder.encode()) <= len("chunks/") + 255 - len("~") for folder in folders)


def test_a_list_that_names_a_folder_too_loses_no_chunk_below_it(
    run: Run, numbers: Numbers, make_video: MakeVideo, tmp_path: Path
) -> None:
    names, out = ["train/a.mp4", "train/b.mp4", "train"], tmp_path / "out"
    (tmp_path / "train").mkdir()
    for name in names[:2]:
        make_video(tmp_path / name, 20, 64, 96)
    (tmp_path / "list.csv").write_text("\n".join(["path", *names]))
    for _ in range(2):
        assert [q.path for q in run(tmp_path / "list.csv", out).quarantined] == ["train"]
        assert [numbers(out, name) for name in names[:2]] == [list(range(20))] * 2
    (tmp_path / "list.csv").write_text("path\ntrain\n")
    run(tmp_path / "list.csv", out)
    assert [numbers(out, name) for name in names[:2]] == [list(range(20))] * 2


def test_chunks_below_those_of_another_video_outlive_these(
    run: Run,
    numbers: Numbers,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, video = tmp_path / "out", tmp_path / "a"
    make_video(tmp_path / "first.mp4", 20, 64, 96).rename(video)
    with monkeypatch.context() as patch:  # stores that were made once have such folders
        patch.setattr("onereel.video.sources.video_folder", "chunks/{}".format)
        run(["a"], out, root=str(tmp_path))
    video.unlink()
    video.mkdir()
    make_video(video / "b.mp4", 20, 64, 96)
    run(["a/b.mp4"], out, root=str(tmp_path))
    (video / "b.mp4").unlink()
    video.rmdir()
    make_video(tmp_path / "second.mp4", 40, 64, 96).rename(video)
    run(["a"], out, root=str(tmp_path))
    assert numbers(out, "a/b.mp4") == list(range(20))
    assert numbers(out, "a") == list(range(40))
    assert not [path for path in out.glob("chunks/a/*") if path.is_file()]


def test_rows_of_many_videos_take_no_memory_of_their_own() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    counts = np.random.default_rng(0).integers(1, 4, 20_000)
    chunk = np.concatenate([np.arange(count) for count in counts])
    names = [f"{number:06d}.mp4" for number in range(len(counts))]
    columns = {field.name: pa.nulls(len(chunk), field.type) for field in ROWS}
    columns |= {
        "video": pa.array(np.repeat(names, counts)),
        "chunk": pa.array(chunk.astype(np.int32)),
    }
    before = resident_bytes()
    rows = RowsByVideo(pa.table(columns, schema=ROWS))
    assert list(rows) == names
    for name, table in rows.items():
        assert set(table["video"].to_pylist()) == {name}
        assert table["chunk"].to_pylist() == list(range(counts[int(name[:6])]))
    assert len(rows) == len(names)
    assert resident_bytes() - before < 100e6  # 20,000 slices would be more than 300 MB


def test_the_report_of_many_videos_copies_no_packets(tmp_path: Path) -> None:
    num_videos, num_packets = 2000, 450
    ranks = np.tile(np.arange(num_packets, dtype=np.int32), num_videos)
    starts = np.arange(num_videos + 1, dtype=np.int32) * num_packets
    columns = {field.name: pa.nulls(num_videos, field.type) for field in ROWS}
    columns |= {
        "chunk": pa.array(np.zeros(num_videos, np.int32)),
        "source_bytes": pa.array(np.full(num_videos, 7)),
        "rank": pa.ListArray.from_arrays(pa.array(starts), pa.array(ranks)),
    }
    rows = pa.table(columns, schema=ROWS)
    with pa.ipc.new_file(str(tmp_path / "packets.arrow"), ROWS) as writer:
        writer.write_table(rows)
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        report = _report(tmp_path, Outcome(), 1.0)
    finally:
        pa.set_memory_pool(usual)
    assert (report.videos, report.source_bytes) == (num_videos, 7 * num_videos)
    assert counted.max_memory() < ranks.nbytes / 4
