"""Who makes which chunks when: units of work over processes, with a progress bar."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from onereel.errors import DataError, DecodeError
from onereel.processes import hidden_main
from onereel.types import Quarantined
from onereel.video.chunking import Settings, Unit, UnitDone, make_unit, plan, told_of_rate
from onereel.video.manifest import has_chunks, made_parts, part_path, read_part
from onereel.video.sources import Source, file_size, looked_at

logger = logging.getLogger(__name__)

_CGROUP = Path("/sys/fs/cgroup")
_DEADLY = (
    "the process that works on it dies (a fault of FFmpeg, or too little memory); re-encode it"
)


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

    Where a process dies, what was out is made again, each unit in a process of its own: one bad file must not keep
    all that come after it from being made.

    Raises:
        DataError: processes die whatever they work on.
        OSError: the store cannot be written.
    """
    workers = num_workers or num_cores()
    found = looked_at(lambda source: max(0, file_size(source.path)), sources)
    sizes = {source.name: size for source, size in zip(sources, found)}
    with _progress_bar(sum(sizes.values()), show_progress) as advance:
        run = _Run(settings, store, outcome, sizes, advance)
        next_task = partial(run.next_task, iter(sources))
        while True:
            try:
                with _executor(workers) as pool:
                    run.work(pool, next_task, limit=2 * workers if workers > 1 else 1)
                return
            except BrokenProcessPool:
                run.work_again(limit=max(1, workers // 4))  # less memory than was short


class _Task(NamedTuple):
    """Work to hand out, and what takes its result."""

    source: Source
    handle: Callable[[Source, Any], None]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class _Run:
    """The state of one run: which futures are out, which units wait, how many each video still needs."""

    def __init__(
        self,
        settings: Settings,
        store: Path,
        outcome: Outcome,
        sizes: dict[str, int],
        advance: Callable[[float, float], None],
    ) -> None:
        self.settings, self.store, self.outcome = settings, store, outcome
        self.bytes_left: dict[str, float] = dict(sizes)
        self.sizes, self.advance = sizes, advance
        self.futures: dict[Future[Any], _Task] = {}
        self.ready: deque[Unit] = deque()
        self.units_left: dict[str, int] = {}
        self.parts: dict[str, list[int]] = {}

    def work(
        self, pool: Executor, next_task: Callable[[], _Task | None], limit: int, alone: bool = False
    ) -> int:
        """Do all tasks, at most `limit` at a time: memory does not grow with the number of videos.

        Returns how many died of those that were `alone` in their process; raises BrokenProcessPool for others.
        """
        num_dead = 0
        while self._fill(pool, next_task, limit):
            done, _ = wait(self.futures, return_when=FIRST_COMPLETED)
            for future in done:
                source, handle, *_ = self.futures[future]
                try:
                    handle(source, future.result())
                except DecodeError as error:
                    self._failed(source, error)
                except BrokenProcessPool:
                    if not alone:
                        raise
                    num_dead += 1
                    self._failed(source, DecodeError(source.path, _DEADLY))
                del self.futures[future]
        return num_dead

    def work_again(self, limit: int) -> None:
        """Do again what was out when a process died. Raises DataError where all of it, and not one alone, is deadly."""
        tasks = list(self.futures.values())
        names = sorted({task.source.name for task in tasks})
        logger.warning(
            "a process of prepare died (out of memory?) while it worked on one of %s; each is tried again alone",
            ", ".join(names),
        )
        self.futures.clear()
        waiting = (task for task in tasks if task.source.name not in self.outcome.quarantined)
        with _executor(limit, alone=True) as pool:
            num_dead = self.work(pool, lambda: next(waiting, None), limit, alone=True)
        if num_dead == len(tasks) > 1:
            raise DataError(
                f"the processes of prepare die (out of memory?), whichever of {', '.join(names)} they work on; "
                "finished chunks are kept: run the same command again, with fewer workers"
            )

    def next_task(self, sources: Iterator[Source]) -> _Task | None:
        """The next unit of a video that is planned, else the next video to plan; None: there is none now."""
        while self.ready:
            unit = self.ready.popleft()
            if unit.source.name not in self.outcome.quarantined:
                return _Task(unit.source, self._made, make_unit, (unit, str(self.store)))
        for source in sources:
            parts = made_parts(self.store, source.name, source.path, source.folder)
            if parts is None:
                return _Task(source, self._planned, plan, (source, self.settings))
            self.outcome.finished[source.name] = parts
            self._progress(source, 1.0)
        return None

    def _fill(self, pool: Executor, next_task: Callable[[], _Task | None], limit: int) -> bool:
        while len(self.futures) < limit and (task := next_task()) is not None:
            self.futures[_submitted(pool, task)] = task
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


def _submitted(pool: Executor, task: _Task) -> Future[Any]:
    """The task's future, also where the pool has just broken: a task that was taken must not be lost."""
    try:
        return pool.submit(task.function, *task.arguments)
    except BrokenProcessPool as error:
        future: Future[Any] = Future()
        future.set_exception(error)
        return future


def num_cores() -> int:
    """Cores that this process may use: by its affinity, and by the time that its container grants."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, _granted_cores(cores)))


def _granted_cores(otherwise: int) -> int:
    """Whole cores of time that the container may take (`docker --cpus`, a pod's limit); `otherwise` without a limit.

    More processes than that take memory, are halted most of the time, and do no more.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # cgroup 2, 1
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
            if int(quota) > 0:
                return int(quota) // int(period)
    return otherwise


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


class _Alone(Executor):
    """An executor that gives each task a process of its own: whichever dies, it takes no other along."""

    def __init__(self, make_pool: Callable[[int], Executor]) -> None:
        self.make_pool = make_pool

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        pool = self.make_pool(1)
        future = pool.submit(fn, *args, **kwargs)
        pool.shutdown(wait=False)
        return future


@contextlib.contextmanager
def _executor(workers: int, alone: bool = False) -> Iterator[Executor]:
    if workers == 1 and not alone:
        yield _Serial()
        return
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    make_pool = partial(
        ProcessPoolExecutor, mp_context=context, initializer=_start_worker, initargs=(lifeline,)
    )
    pool = _Alone(make_pool) if alone else make_pool(workers)
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
