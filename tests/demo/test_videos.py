"""The files of the demo: lists that fit the videos, and objects that move in the encoded pixels as labelled."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from onereel.demo.script import write_scripts
from onereel.demo.videos import COLUMNS, HEIGHT, WIDTH, write_demo_videos

MINUTES = 0.5


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, write_demo_videos(folder, minutes=MINUTES, seed=3, num_workers=0)


def read_list(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_are_those_named_and_nothing_else(demo: tuple[Path, list[Path]]) -> None:
    folder, files = demo
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(files)
    assert {"train.csv", "val.csv"} <= {path.name for path in files}


def test_bytes_don_t_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    alone, shared = (
        write_demo_videos(tmp_path / str(n), minutes=0.05, seed=3, num_workers=n) for n in (0, 2)
    )
    for one, other in zip(alone, shared, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_lists_are_split_by_video_and_hold_every_event(demo: tuple[Path, list[Path]]) -> None:
    train, val = (read_list(demo[0] / name) for name in ("train.csv", "val.csv"))
    assert tuple(train[0]) == COLUMNS
    assert not {row["path"] for row in train} & {row["path"] for row in val}
    scripts = write_scripts(MINUTES, seed=3)
    assert len(train) + len(val) == sum(len(script.events) for script in scripts)
    for row in train + val:
        with av.open(str(demo[0] / row["path"])) as container:
            seconds = float(container.duration / av.time_base)
        assert 0 <= float(row["start"]) < float(row["end"]) <= seconds + 1e-3


def test_videos_are_h264_of_the_stated_size_and_length(demo: tuple[Path, list[Path]]) -> None:
    for script in write_scripts(MINUTES, seed=3):
        with av.open(str(demo[0] / "videos" / f"{script.name}.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (WIDTH, HEIGHT)
            assert stream.frames == script.num_frames
            assert stream.average_rate == script.fps


def test_the_encoded_object_is_where_the_script_says(demo: tuple[Path, list[Path]]) -> None:
    checked = 0
    for script in write_scripts(MINUTES, seed=3):
        with av.open(str(demo[0] / "videos" / f"{script.name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for event in script.events:
            shot = script.shot_of(event)
            if shot.camera != "static" or event.first == shot.first:
                continue
            empty = frames[event.first - 1].astype(int)
            for frame in range(event.first, event.last, 7):
                changed = abs(frames[frame].astype(int) - empty).max(axis=-1) > 40
                rows, columns = np.nonzero(changed)
                x, y, radius = (value * HEIGHT for value in event.place(frame))
                assert columns.mean() == pytest.approx(x + (WIDTH - HEIGHT) / 2, abs=0.3 * radius)
                assert rows.mean() == pytest.approx(y, abs=0.3 * radius)
                checked += 1
    assert checked > 20
