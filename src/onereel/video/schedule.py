"""Who makes which chunks when: units of work over processes, with a progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from onereel.errors import DataError, DecodeError
from onereel.processes import hidden_main
from onereel.types import Quarantined
from onereel.video.chunking import Settings, Unit, UnitDone, make_unit, plan, told_of_rate
from onereel.video.manifest import has_chunks, made_parts, part_path, read_part
from onereel.video.sources import Source


@dataclass
class Outcome:
    """What became of the videos; filled while the run goes on, and true at any moment of it.

    Attributes:
        finished: videos all of whose chunks are in place, with the numbers of the first chunks of their parts.
        quarantined: by name, why a video cannot be used.
        uneven: by name, what an uneven frame rate costs, where that is much.
        seconds: of video, encoded by this run.
    """

    finished: dict[str, list[int]] = field(default_factory=dict)
    quarantined: dict[str, Quarantined] = field(default_factory=dict)
    uneven: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def run_all(
    sources: list[Source],
    settings: Settings,
    store: Path,
    num_workers: int,
    show_progress: bool,
    outcome: Outcome,
) -> None:
    """Make the chunks of all `sources`, in `num_workers` processes (0: one per core), and note it in `outcome`.

    Raises:
        DataError: a process died.
        OSError: the store cannot be written.
    """
    workers = num_workers or num_cores()
    sizes = {s.name: os.path.getsize(s.path) if os.path.isfile(s.path) else 0 for s in sources}
    with _progress_bar(sum(sizes.values()), show_progress) as advance, _executor(workers) as pool:
        run = _Run(pool, settings, store, outcome, sizes, advance)
        try:
            run.all(sources, limit=2 * workers if workers > 1 else 1)
        except BrokenProcessPool as error:
            names = sorted({source.name for source, _ in run.futures.values()})
            raise DataError(
                f"a process of prepare died (out of memory?) while it worked on one of {', '.join(names)}; finished "
                "chunks are kept: run the same command again, with fewer workers or without that video"
            ) from error


class _Run:
    """The state of one run: which futures are out, which units wait, how many each video still needs."""

    def __init__(
        self,
        pool: Executor,
        settings: Settings,
        store: Path,
        outcome: Outcome,
        sizes: dict[str, int],
        advance: Callable[[float, float], None],
    ) -> None:
        self.pool, self.settings, self.store, self.outcome = pool, settings, store, outcome
        self.bytes_left: dict[str, float] = dict(sizes)
        self.sizes, self.advance = sizes, advance
        self.futures: dict[Future[Any], tuple[Source, Callable[[Source, Any], None]]] = {}
        self.ready: deque[Unit] = deque()
        self.units_left: dict[str, int] = {}
        self.parts: dict[str, list[int]] = {}

    def all(self, sources: Iterable[Source], limit: int) -> None:
        """Plan and make everything, at most `limit` tasks at a time: memory does not grow with the number of videos."""
        waiting = iter(sources)
        while self._fill(waiting, limit):
            done, _ = wait(self.futures, return_when=FIRST_COMPLETED)
            for future in done:
                source, handle = self.futures[future]
                try:
                    handle(source, future.result())
                except DecodeError as error:
                    self._failed(source, error)
                del self.futures[future]

    def _fill(self, waiting: Iterator[Source], limit: int) -> bool:
        while len(self.futures) < limit:
            if self.ready:
                unit = self.ready.popleft()
                if unit.source.name not in self.outcome.quarantined:
                    task = self.pool.submit(make_unit, unit, str(self.store))
                    self.futures[task] = unit.source, self._made
            elif (source := next(waiting, None)) is not None:
                parts = made_parts(self.store, source.name, source.path, source.folder)
                if parts is not None:
                    self.outcome.finished[source.name] = parts
                    self._progress(source, 1.0)
                    continue
                self.futures[self.pool.submit(plan, source, self.settings)] = source, self._planned
            else:
                break
        return bool(self.futures)

    def _planned(self, source: Source, units: list[Unit]) -> None:
        todo = [unit for unit in units if not _is_made(unit, self.store)]
        self.units_left[source.name] = len(todo)
        self.parts[source.name] = [unit.first_chunk for unit in units]
        self.ready.extend(todo)
        if told := told_of_rate(units):
            self.outcome.uneven[source.name] = told
        self._progress(source, 1 - sum(len(u.shown) for u in todo) / units[0].num_frames)
        self._finish_if_complete(source)

    def _made(self, source: Source, done: UnitDone) -> None:
        self.units_left[source.name] -= 1
        self.outcome.seconds += done.seconds
        self._progress(source, done.share, done.seconds)
        self._finish_if_complete(source)

    def _failed(self, source: Source, error: DecodeError) -> None:
        reason = Quarantined(source.name, error.reason, error.frame)
        self.outcome.quarantined.setdefault(source.name, reason)
        self._progress(source, 1.0)

    def _finish_if_complete(self, source: Source) -> None:
        if not self.units_left[source.name] and source.name not in self.outcome.quarantined:
            self.outcome.finished[source.name] = self.parts.pop(source.name)

    def _progress(self, source: Source, share: float, seconds: float = 0.0) -> None:
        num_bytes = min(self.sizes[source.name] * share, self.bytes_left[source.name])
        self.bytes_left[source.name] -= num_bytes
        self.advance(num_bytes, seconds)


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_made(unit: Unit, store: Path) -> bool:
    rows = read_part(part_path(store, unit.source.name, unit.first_chunk))
    if rows is None:
        return False
    facts = ("fps_numerator", "fps_denominator", "video_frames")
    timeline = (unit.fps.numerator, unit.fps.denominator, unit.num_frames)
    same = tuple(rows[name][0].as_py() for name in facts) == timeline
    return same and has_chunks(store, rows, unit.source_bytes)


class _Serial(Executor):
    """An executor that does the work in this process, at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except DecodeError as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def _executor(workers: int) -> Iterator[Executor]:
    if workers == 1:
        yield _Serial()
        return
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(lifeline,))
    try:
        with hidden_main():  # processes start as work is handed out
            yield pool
    except BaseException:
        held.close()  # at once: an interrupted run must not wait for minutes of encoding
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        held.close()
        lifeline.close()


def _start_worker(lifeline: Connection) -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends (kill -9 included)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _end_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it returns when the parent's end closes
    os._exit(1)


@contextlib.contextmanager
def _progress_bar(total: int, show: bool) -> Iterator[Callable[[float, float], None]]:
    """Yields `advance(source_bytes, seconds_of_video)`."""
    columns = (
        TextColumn("prepare"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
    )
    started, seconds = time.perf_counter(), 0.0
    with Progress(*columns, console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task("prepare", total=total, speed="")

        def advance(num_bytes: float, video_seconds: float) -> None:
            nonlocal seconds
            seconds += video_seconds
            speed = seconds / (time.perf_counter() - started)
            progress.update(task, advance=num_bytes, speed=f"{speed:.1f} s of video per second")

        yield advance
