"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yields a name beside `path` to write to; what lies there at the end of the block becomes `path`.

    Readers see the old content or the new, never a half, and several may write at once: the last one stays.

    Args:
        path: the file.
        durable: flush it to the disk first, so that it is whole after a power cut; False for what can be made again.

    Raises OSError. Nothing is left of an attempt that fails; a process that is killed leaves `.NAME.….partial`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        move_whole(partial, path, durable)
    finally:
        partial.unlink(missing_ok=True)


def move_whole(file: Path, path: Path, durable: bool = True) -> None:
    """Rename `file`, whose content is written, to `path` on the same file system; `durable` as of `written_aside`."""
    if durable:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    os.replace(file, path)


def write_atomically(path: str | Path, content: str | bytes, durable: bool = True) -> None:
    """Write `content`, text as UTF-8, to `path`; see `written_aside`."""
    with written_aside(path, durable) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def create_once(path: str | Path, content: str) -> None:
    """Write `content` to `path` unless something is there: of several that try at once, one succeeds.

    Raises OSError.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # a rename would replace what another process has just made
        except (FileExistsError, FileNotFoundError):
            return  # not found: swept away by whoever was first
        except OSError:  # a file system without links
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
