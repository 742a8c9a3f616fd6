"""Runs that are killed, interrupted or out of space are finished by the same command, in one process or many."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import av
import pytest

from onereel.errors import DataError
from onereel.video import schedule
from onereel.video.chunking import Settings, Unit, UnitDone, make_unit, plan
from onereel.video.marker import open_store
from onereel.video.prepare import PrepareReport
from onereel.video.sources import Source
from onereel.video.store import ChunkStore

MakeVideo = Callable[..., Path]
Run = Callable[..., PrepareReport]
Numbers = Callable[[Path, str], list[int]]
Manifest = Callable[[Path], list[dict[str, Any]]]
Files = Callable[[Path], set[str]]


def interrupt(patch: pytest.MonkeyPatch, at: Callable[[Unit], bool]) -> None:
    """Let the work on a unit end as by Ctrl-C."""

    def interrupted(unit: Unit, out: str) -> UnitDone:
        if at(unit):
            raise KeyboardInterrupt
        return make_unit(unit, out)

    patch.setattr("onereel.video.schedule.make_unit", interrupted)


def run_without_merging(run: Run, source: Path, out: Path) -> None:
    """All chunks and parts, as of a run that was killed before it merged them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onereel.video.prepare._commit", lambda *_: None)
        with pytest.raises(DataError, match="finished chunks are kept"):
            run(source, out)


@pytest.mark.slow
def test_processes_make_the_same_store_as_one(
    run: Run, manifest: Manifest, files: Files, make_video: MakeVideo, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "in" / name, 100, 48, 72)
    (tmp_path / "in" / "bad.mp4").touch()
    reports = [
        run(tmp_path / "in", tmp_path / f"out{n}", num_workers=n, chunk_seconds=0.3) for n in (1, 2)
    ]
    assert manifest(tmp_path / "out1") == manifest(tmp_path / "out2")
    assert files(tmp_path / "out1") == files(tmp_path / "out2")
    assert reports[0].quarantined == reports[1].quarantined


_SCRIPT = """
import sys, time
from onereel.video import prepare
def wait_for_the_kill(*arguments):
    time.sleep(600)
if __name__ == "__main__":
    prepare.merge = wait_for_the_kill
    prepare.prepare(sys.argv[1], sys.argv[2], chunk_seconds=0.5, short_side=64, num_workers=2, progress=False)
"""


def test_a_killed_run_is_finished_by_the_next(
    run: Run, manifest: Manifest, files: Files, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos, out = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(videos / name, 240, 96, 144)
    (videos / "a bad one.mp4").touch()
    (tmp_path / "script.py").write_text(_SCRIPT)
    killed = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(videos), str(out)])
    deadline = time.monotonic() + 60
    while not list(out.glob("parts/**/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    workers = [Path("/proc") / folder.name for folder in (out / "partial").iterdir()]
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(
        worker.exists() for worker in workers
    )  # they end with the process that started them
    assert list(out.glob("parts/**/*.arrow"))
    assert not (out / "packets.arrow").exists()
    with pytest.raises(DataError, match="run the same"):
        ChunkStore(str(out))
    for chunk in out.glob("chunks/*/*.mp4"):  # what is visible is whole
        with av.open(str(chunk)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 15
    report = run(videos, out)
    assert report.encoded_seconds < report.video_seconds
    run(videos, tmp_path / "never_killed")
    assert manifest(out) == manifest(tmp_path / "never_killed")
    assert files(out) == files(tmp_path / "never_killed")


@pytest.mark.parametrize(
    "where", ["chunking.write_chunk", "prepare.merge", "marker.os.replace", "chunking.write_part"]
)
def test_a_full_disk_stops_the_run_with_a_remedy(
    run: Run, where: str, make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "a.mp4", 20, 64, 96)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"onereel.video.{where}", full)
        with pytest.raises(DataError, match=r"No space left on device.*run the same command again"):
            run(tmp_path / "a.mp4", tmp_path / "out")
    assert run(tmp_path / "a.mp4", tmp_path / "out").quarantined == ()
    assert ChunkStore(str(tmp_path / "out")).videos() == ["a.mp4"]


def test_an_interrupted_run_keeps_what_it_finished(
    run: Run, make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "in" / name, 40, 64, 96)

    with monkeypatch.context() as patch:
        interrupt(patch, lambda unit: unit.source.name == "b.mp4")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "in", tmp_path / "out")
    assert ChunkStore(str(tmp_path / "out")).videos() == ["a.mp4"]
    assert run(tmp_path / "in", tmp_path / "out").videos == 2


def test_an_interrupted_run_keeps_the_chunks_that_it_was_to_replace(
    run: Run,
    numbers: Numbers,
    files: Files,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 40, 64, 96), tmp_path / "out"
    run(source, out)
    make_video(source, 100, 64, 96)

    with monkeypatch.context() as patch:
        interrupt(patch, lambda unit: unit.first_chunk > 0)
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    assert numbers(out, "a.mp4") == list(range(40))
    report = run(source, out)
    assert report.encoded_seconds == pytest.approx(40 / 30)  # the first unit's 60 frames are there
    assert numbers(out, "a.mp4") == list(range(100))
    assert len([name for name in files(out) if name.endswith(".mp4")]) == 7


def test_parts_of_another_timeline_are_made_again(
    run: Run,
    numbers: Numbers,
    manifest: Manifest,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 100, 64, 96), tmp_path / "out"

    with monkeypatch.context() as patch:  # another version may give a video another rate
        interrupt(patch, lambda unit: unit.first_chunk > 0)
        patch.setattr("onereel.video.chunking.usual_rate", lambda index: 25.0)
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    assert list(out.glob("parts/**/*.arrow"))
    run(source, out)
    assert {row["fps_numerator"] for row in manifest(out)} == {30}
    assert numbers(out, "a.mp4") == list(range(100))


@pytest.mark.parametrize("change", ["", "source", "chunk", "part"])
def test_what_a_run_finished_before_it_was_killed_is_not_indexed_again(
    change: str,
    run: Run,
    numbers: Numbers,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 100, 64, 96), tmp_path / "out"
    run_without_merging(run, source, out)
    if change == "source":
        make_video(source, 70, 64, 96)
    elif change:
        sorted(out.glob("chunks/*/*" if change == "chunk" else "parts/**/*.arrow"))[-1].unlink()
    planned: list[str] = []

    def counted(source: Source, settings: Settings) -> list[Unit]:
        planned.append(source.name)
        return plan(source, settings)

    monkeypatch.setattr("onereel.video.schedule.plan", counted)
    report = run(source, out)
    assert planned == ["a.mp4"] * bool(change)
    assert (report.encoded_seconds > 0) == bool(change)
    assert numbers(out, "a.mp4") == list(range(70 if change == "source" else 100))


@pytest.mark.parametrize("damage", [b"", b"ARROW1 and zeros" + bytes(3000)])
def test_damaged_parts_are_made_again(
    damage: bytes,
    run: Run,
    numbers: Numbers,
    files: Files,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 100, 64, 96), tmp_path / "out"
    run_without_merging(run, source, out)
    sorted(out.glob("parts/**/*.arrow"))[1].write_bytes(damage)
    (out / ".packets.arrow.0123abcd.partial").write_bytes(b"half")
    (out / "movie.partial").write_bytes(b"of somebody else")
    assert run(source, out).encoded_seconds == pytest.approx(40 / 30)
    assert numbers(out, "a.mp4") == list(range(100))
    assert {name for name in files(out) if name.endswith(".partial")} == {"movie.partial"}


def test_a_damaged_index_is_told_with_its_remedy(
    run: Run, numbers: Numbers, make_video: MakeVideo, tmp_path: Path
) -> None:
    source, out = make_video(tmp_path / "a.mp4", 20, 64, 96), tmp_path / "out"
    run(source, out)
    (out / "packets.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"packets\.arrow is damaged .*delete it and run the same"):
        run(source, out)
    (out / "packets.arrow").unlink()
    run(source, out)
    assert numbers(out, "a.mp4") == list(range(20))


def test_a_process_that_dies_costs_no_video(
    run: Run, numbers: Numbers, make_video: MakeVideo, tmp_path: Path
) -> None:
    videos, out = tmp_path / "in", tmp_path / "out"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(videos / name, 120, 96, 144)

    def kill_one() -> None:
        deadline = time.monotonic() + 60
        while not (found := list(out.glob("partial/*"))) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(int(found[0].name), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = run(videos, out, num_workers=2)
    killer.join()
    assert report.quarantined == ()
    for name in ("a.mp4", "b.mp4"):
        assert numbers(out, name) == list(range(120))


@pytest.mark.parametrize("deadly", ["b.mp4", ""])
def test_a_video_that_kills_its_process_is_quarantined(
    deadly: str,
    run: Run,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        make_video(tmp_path / "in" / name, 20, 64, 96)
    broken: list[bool] = []

    def submit(self: object, fn: Callable[..., object], *arguments: Any) -> Future[object]:
        future: Future[object] = Future()
        unit, alone = arguments[0], isinstance(self, schedule._Alone)
        if fn is make_unit and (not alone or unit.source.name.startswith(deadly)):
            broken.append(alone)
            if len(broken) == 2 and not alone:  # a pool that is broken takes no work
                raise BrokenProcessPool
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(fn(*arguments))
        return future

    monkeypatch.setattr(schedule._Alone, "submit", submit)
    monkeypatch.setattr(schedule.ProcessPoolExecutor, "submit", submit)
    if not deadly:
        with pytest.raises(DataError, match=r"processes of prepare die.*a\.mp4, b\.mp4.*fewer"):
            run(tmp_path / "in", tmp_path / "out", num_workers=2)
        return
    report = run(tmp_path / "in", tmp_path / "out", num_workers=2)
    assert [bad.path for bad in report.quarantined] == ["b.mp4"]
    assert "process that works on it dies" in report.quarantined[0].reason
    assert ChunkStore(str(tmp_path / "out")).videos() == ["a.mp4", "c.mp4"]


def test_one_run_at_a_time(run: Run, make_video: MakeVideo, tmp_path: Path) -> None:
    import fcntl

    make_video(tmp_path / "a.mp4", 5, 64, 96)
    run(tmp_path / "a.mp4", tmp_path / "out")
    with open(tmp_path / "out" / "store.json", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run"):
            run(tmp_path / "a.mp4", tmp_path / "out")


def test_of_runs_that_start_together_one_makes_the_store(tmp_path: Path) -> None:
    settings, tries = Settings(1.0, 64, None, "fast", 23.0, None), 20
    starting, leaving = threading.Barrier(4), threading.Barrier(4)
    inside: list[int] = []
    told: list[str] = []

    def start() -> None:
        for number in range(tries):
            starting.wait(60)
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(open_store(tmp_path / str(number), settings, "/videos"))
                    inside.append(number)
                except (DataError, OSError) as error:
                    told.append(str(error))
                leaving.wait(60)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(inside) == list(range(tries))
    assert all("another run of prepare" in text for text in told)


def test_a_file_system_without_locks_is_told_and_written_to(
    run: Run,
    make_video: MakeVideo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("onereel.video.marker.fcntl.flock", refused)
    make_video(tmp_path / "a.mp4", 5, 64, 96)
    assert run(tmp_path / "a.mp4", tmp_path / "out").videos == 1
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "450000 100000\n"}, 4),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
    ],
)
def test_cores_are_those_that_a_container_grants(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(schedule, "_CGROUP", tmp_path, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert schedule.num_cores() == cores
