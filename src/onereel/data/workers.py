"""How reading processes start, and how they end: with the training process, and not before it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import get_worker_info

from onereel.errors import DataError
from onereel.processes import hidden_main

if TYPE_CHECKING:
    from onereel.video.library import VideoLibrary

Item = TypeVar("Item")

DEAD_WORKERS = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
"""How torch says which are gone."""
LIFE_CHECK_SECONDS = 1.0
"""How long a worker may outlive a training process that was killed, if its decoder answers."""


def worker_options(num_workers: int, prefetch: int, library: VideoLibrary) -> dict[str, Any]:
    """Arguments of a DataLoader whose workers come from a fork server (why: see `ClipLoader`)."""
    # Where the system has no fork server, a worker starts from scratch.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(
            ["onereel.data.fork_server", "onereel.data.loader", type(library).__module__]
        )
    return {
        "num_workers": num_workers,
        "prefetch_factor": prefetch,
        "persistent_workers": True,
        "multiprocessing_context": context,
        "worker_init_fn": _start_worker,
    }


def main_hidden_from(library: VideoLibrary) -> AbstractContextManager[None]:
    """`hidden_main`, unless the program's main module defines the library, which workers then must import."""
    return nullcontext() if type(library).__module__ == "__main__" else hidden_main()


class DeadWorkerError(DataError):
    """A reading process was killed, or crashed.

    Attributes:
        pids: of those that are gone.
    """

    def __init__(self, message: str, pids: Collection[int]) -> None:
        super().__init__(message)
        self.pids = pids


def received(stream: Iterator[Item], remedy: str) -> Item:
    """The next item that a DataLoader's workers made. Raises DeadWorkerError, with what to do, where one is gone."""
    try:
        return next(stream)
    except RuntimeError as error:
        named = DEAD_WORKERS.search(str(error))
        if named is None:
            raise
        raise DeadWorkerError(
            f"a data worker died ({error}). Usually the system ran out of memory, or of shared memory in a container "
            f"(docker run --shm-size 16g); {remedy}",
            [int(pid) for pid in named[1].split(",")],
        ) from error


class Watch:
    """Which record each worker is reading, in memory that outlives it: so a crash of the decoder has a name."""

    def __init__(self, num_workers: int) -> None:
        # By worker: its process, and the record; -1: none.
        self._state = torch.full((num_workers, 2), -1).share_memory_()

    @contextmanager
    def reading(self, record: int) -> Iterator[None]:
        """Say in a worker that it reads record `record` within the block; elsewhere, nothing."""
        worker = get_worker_info()
        if worker is None:
            yield
            return
        self._state[worker.id, 0], self._state[worker.id, 1] = os.getpid(), record
        try:
            yield
        finally:
            self._state[worker.id, 1] = -1

    def seen(self, pids: Collection[int]) -> set[int]:
        """The records that the processes `pids` were reading."""
        return {record for pid, record in self._state.tolist() if pid in pids and record >= 0}


def _start_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every process of the job. The training
    # process answers them, with the batches that it still needs, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # torch's own worker loop sets this too; decoding in many processes must not start a thread pool in each.
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_training_process, daemon=True).start()


def _end_with_the_training_process() -> None:
    """End this worker when the training process is gone, or sends it SIGTERM (as it does at its exit).

    torch's own watch looks at the parent's number, which under a fork server is the server's; and the server lives
    as long as a worker does.
    """
    training = multiprocessing.parent_process()
    while training is not None and training.is_alive():
        sent = signal.sigtimedwait({signal.SIGTERM}, LIFE_CHECK_SECONDS)
        if sent is not None and sent.si_pid == training.pid:
            break
    os._exit(1)
