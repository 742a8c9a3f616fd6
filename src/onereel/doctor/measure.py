"""Short measurements: how fast a folder reads, how fast a core decodes."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING

from onereel.errors import DataError, DecodeError
from onereel.seeding import numpy_generator
from onereel.types import SampleKey

if TYPE_CHECKING:
    from onereel.data.dataset import ClipDataset

BLOCK = 4 << 20
MIN_BYTES = 2 << 20
"""Fewer are read before threads have started and files are open: their rate says nothing of the disk."""
MAX_FILES = 2000
NUM_READERS = 8


@dataclass(frozen=True)
class DiskRate:
    """How fast files of a folder were read, by NUM_READERS threads, each file from its start to its end.

    Attributes:
        bytes_per_second: None where there was nothing to read, or too little.
        how: what was measured, in words: past the page cache, or with the cache asked to forget.
    """

    folder: str
    bytes_per_second: float | None
    num_bytes: int
    how: str


def measure_disk(
    folder: str | Path, *, max_bytes: int = 256 << 20, max_seconds: float = 3.0
) -> DiskRate:
    """Read the largest files below `folder` past the page cache, up to `max_bytes` or `max_seconds`.

    Raises DataError where `folder` is no folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder where the videos or chunks lie")
    paths = _few_files(folder, max_bytes)
    start = time.perf_counter()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        parts = list(pool.map(lambda path: _read_uncached(path, start + max_seconds), paths))
    seconds = time.perf_counter() - start
    total = sum(size for size, _ in parts)
    if not total:
        return DiskRate(str(folder), None, 0, "no readable file in it")
    if total < MIN_BYTES:
        return DiskRate(str(folder), None, total, f"only {total / 1e6:.2g} MB in it")
    ways = sorted({way for size, way in parts if size})
    return DiskRate(str(folder), total / seconds, total, " and ".join(ways))


def _few_files(folder: Path, max_bytes: int) -> list[Path]:
    """The largest files below `folder`, of the first MAX_FILES that the walk meets, until they hold `max_bytes`."""
    found = sorted(islice(_walk(folder), MAX_FILES), reverse=True)
    before = accumulate((size for size, _ in found), initial=0)
    return [path for (size, path), held in zip(found, before) if size and held < max_bytes]


def _walk(folder: Path) -> Iterator[tuple[int, Path]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and os.access(path, os.R_OK):
                yield path.stat().st_size, path


def _read_uncached(path: Path, deadline: float) -> tuple[int, str]:
    """Read a file from its start until `deadline`; returns (bytes, how it was kept off the page cache)."""
    if hasattr(os, "O_DIRECT"):
        with suppress(OSError):  # some file systems have no direct reads
            return _read(path, deadline, os.O_DIRECT), "cold (O_DIRECT, past the page cache)"
    if hasattr(os, "posix_fadvise"):
        return _read(
            path, deadline
        ), "page cache asked to forget (fadvise), which it may not have done"
    return _read(path, deadline), "warm (from the page cache)"


def _read(path: Path, deadline: float, flags: int = 0) -> int:
    descriptor, total = os.open(path, os.O_RDONLY | flags), 0
    try:
        if not flags and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, BLOCK) as buffer:  # page-aligned, as direct reads demand
            while time.perf_counter() < deadline:
                size = os.preadv(descriptor, [buffer], total)
                total += size
                if size < BLOCK:
                    break
    finally:
        os.close(descriptor)
    return total


@dataclass(frozen=True)
class DecodeRate:
    """What reading clips costs, measured one after another in one process.

    Attributes:
        clips_per_second: per core: clips over process CPU seconds.
        bytes_per_clip: bytes that the process read for a clip, None where the system does not count them.
        num_clips, num_failed: clips that were read, and that could not be.
        num_records: that they were drawn from, each as often as chance had it.
    """

    clips_per_second: float
    bytes_per_clip: float | None
    num_clips: int
    num_failed: int
    num_records: int


def measure_decode(
    dataset: ClipDataset, *, repeats: int = 1, max_clips: int = 64, max_seconds: float = 5.0
) -> DecodeRate:
    """Read random clips of `dataset`, `repeats` views of each, as training would; indexing stays off the clock.

    Raises DataError where none of them can be read.
    """
    draws = numpy_generator(0, 0, 0, "doctor").integers(len(dataset), size=max_clips + 1)
    cpu_seconds, num_bytes, num_clips = 0.0, 0, 0
    failures: list[DecodeError] = []
    start = time.perf_counter()
    for number, index in enumerate(draws.tolist()):
        try:
            dataset.spec(SampleKey(0, index))
            bytes_before, cpu_before = _bytes_read(), time.process_time()
            clips = dataset.read_views(index, 0, range(repeats))
        except DecodeError as error:
            failures.append(error)
            continue
        if number:  # the first one opens codecs and files
            cpu_seconds += time.process_time() - cpu_before
            num_bytes += _bytes_read() - bytes_before
            num_clips += len(clips)
        if time.perf_counter() - start > max_seconds and num_clips:
            break
    if not num_clips:
        raise DataError(f"none of {len(failures)} clips could be read; the first: {failures[0]}")
    return DecodeRate(
        clips_per_second=num_clips / max(cpu_seconds, 1e-6),
        bytes_per_clip=num_bytes / num_clips if num_bytes else None,
        num_clips=num_clips,
        num_failed=len(failures),
        num_records=len(dataset),
    )


def _bytes_read() -> int:
    """Bytes that this process has read so far, from disk or page cache; 0 where the system does not count."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(text.split("rchar:")[1].split()[0])
