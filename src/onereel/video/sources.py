"""Which videos `prepare` was asked for: a folder, a list, a CSV, one file, or paths from Python."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from onereel.errors import DataError
from onereel.video.manifest import video_folder
from onereel.video.probe import VIDEO_SUFFIXES

T = TypeVar("T")

_LOOKS = 32
_LOOKS_WAITING = 4096
LIST_SUFFIXES = (".csv", ".tsv", ".txt")


class Source(NamedTuple):
    """One video: its name in the store, the file it is read from, and the folder of its chunks, below the store."""

    name: str
    path: str
    folder: str


def list_sources(
    source: str | os.PathLike[str] | Sequence[str], root: str = "", out: str = ""
) -> tuple[str, list[Source]]:
    """The root folder and the videos of `source`, each once, sorted by name.

    A folder gives its files with a video suffix, at any depth, hidden ones and `out` left out, named relative to
    it. A list gives the paths as written, relative ones from `root` (empty: the folder of the list; for paths from
    Python, the current one). Raises DataError where `source` does not exist or names no video.
    """
    if not isinstance(source, str | os.PathLike):
        folder = os.path.abspath(root or ".")
        names: Iterable[str] = map(str, source)
    elif os.path.isdir(source):
        folder = os.path.abspath(source)
        names = files_below(folder, os.path.abspath(out) if out else "")
    elif not os.path.isfile(source):
        raise DataError(
            f"{source} does not exist; give a folder of videos, a list or CSV, or one video file"
        )
    else:
        folder = os.path.abspath(root or os.path.dirname(source) or ".")
        is_video = Path(source).suffix.lower() in VIDEO_SUFFIXES
        path = os.path.abspath(source)
        names = [os.path.relpath(path, folder)] if is_video else _listed(Path(source))
    sources = [
        Source(name, os.path.join(folder, name), video_folder(name)) for name in sorted(set(names))
    ]
    if not sources:
        raise DataError(
            f"{source} names no video; files with these suffixes count: {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return folder, sources


def named_videos(
    given: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[str]:
    """The paths that `given`, one or several, stands for: a folder for the videos in it, a list for those it names.

    Anything else stands for itself, whether it is there or not. Raises DataError where a folder or list has no video.
    """
    several = [given] if isinstance(given, str | os.PathLike) else given
    videos: list[str] = []
    for each in several:
        one = os.fspath(each)
        if os.path.isdir(one):
            videos += [os.path.join(one, source.name) for source in list_sources(one)[1]]
        elif os.path.isfile(one) and Path(one).suffix.lower() in LIST_SUFFIXES:
            folder = os.path.dirname(one)
            videos += [os.path.join(folder, source.name) for source in list_sources(one)[1]]
        else:
            videos.append(one)
    return videos


def file_size(path: str) -> int:
    """Bytes of the file at `path`; -1: there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def looked_at(look: Callable[[Source], T], sources: Sequence[Source]) -> Iterator[T]:
    """`look` of each source, in order; many at a time, because a network file system answers late."""
    with ThreadPoolExecutor(_LOOKS) as threads:
        for start in range(0, len(sources), _LOOKS_WAITING):
            yield from threads.map(look, sources[start : start + _LOOKS_WAITING])


def files_below(folder: str, out: str = "") -> Iterator[str]:
    """Files below `folder` with a video suffix, relative to it; hidden ones and the folder `out` left out.

    Links to folders are followed, but not back to one that is being walked.
    """
    for parent, folders, files in os.walk(folder, followlinks=True):
        below = [(d, os.path.join(parent, d)) for d in folders if not d.startswith(".")]
        folders[:] = [d for d, path in below if path != out and not _leads_back(path)]
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(os.path.relpath(os.path.join(parent, file), folder)).as_posix()


def _leads_back(folder: str) -> bool:
    """Whether it is a link to one of the folders that it lies in, by the way that was walked."""
    if not os.path.islink(folder):
        return False
    return any(os.path.samefile(folder, parent) for parent in Path(os.path.abspath(folder)).parents)


def _listed(path: Path) -> Iterator[str]:
    """The paths of a CSV (commas, tabs or semicolons) with a `path` column, or of the first column of anything else."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is neither a video (by its suffix) nor a UTF-8 list") from error
    lines = [line for line in text.splitlines() if line.strip()]
    for delimiter in (",", "\t", ";"):
        header = [cell.strip() for cell in next(csv.reader(lines[:1], delimiter=delimiter), [])]
        names = header if "path" in header else [name.lower() for name in header]
        if "path" in names:
            column = names.index("path")
            rows = csv.reader(lines[1:], delimiter=delimiter)
            yield from (row[column] for row in rows if len(row) > column and row[column])
            return
    yield from map(_first_column, lines)


def _first_column(line: str) -> str:
    """The path of `path`, `path,label` or `path label`, in which the path itself may have spaces and commas."""
    line = candidate = line.strip()
    while candidate and Path(candidate).suffix.lower() not in VIDEO_SUFFIXES:
        cut = max(candidate.rfind(" "), candidate.rfind("\t"), candidate.rfind(","))
        candidate = candidate[: max(cut, 0)].strip()
    return candidate.strip('"') or line
