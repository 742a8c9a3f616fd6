"""`store.json`: the file that makes a folder a chunk store, and what every chunk in it has in common."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

import onereel
from onereel.errors import ConfigError, DataError
from onereel.files import create_once
from onereel.video.chunking import Settings

logger = logging.getLogger(__name__)

MARKER = "store.json"
FORMAT = 1
"""Raised when older stores can no longer be read."""
PARTIAL = re.compile(
    r"\.?(store\.json|packets\.arrow|manifest\.parquet|quarantine\.csv)(\.\w+)?\.partial"
)


def read_marker(store: Path) -> dict[str, Any]:
    """The contents of `store.json`; raises DataError where `store` is not a chunk store of this format."""
    try:
        content = json.loads((store / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        problem = f"{store} is not a chunk store (no {MARKER})"
        if not store.is_dir():
            problem = (
                f"there is no folder {store}; if the store was moved, say where it is (data.store)"
            )
        raise DataError(f"{problem}; make one with `onereel prepare SRC --out {store}`") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{store / MARKER} cannot be read ({error}); prepare into a new folder"
        ) from error
    if content.get("format") != FORMAT:
        raise DataError(
            f"{store} has store format {content.get('format')!r}, this version reads {FORMAT}; prepare it again"
        )
    return content


@contextlib.contextmanager
def open_store(store: Path, settings: Settings, root: str) -> Iterator[None]:
    """Make the store or check that it is the same, and keep other runs out of it meanwhile.

    Raises:
        ConfigError: a setting differs from that of the existing store; both values are named.
        DataError: the folder holds something else, or another run is writing to it.
    """
    marker = store / MARKER
    wanted = {**dataclasses.asdict(settings), "root": root}
    if not marker.exists():
        _create(store, wanted)
    with open(marker, "rb+") as lock:  # network file systems lock only what is open for writing
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another run of prepare is writing to {store}; wait for it") from error
        except OSError as error:  # a file system without locks: some parallel ones, some mounts
            logger.warning(
                "%s cannot be locked (%s): see to it that no other run of prepare writes to it",
                *(store, error.strerror),
            )
        _check(store, read_marker(store)["settings"], wanted)
        shutil.rmtree(store / "partial", ignore_errors=True)
        for name in _left_behind(store):
            (store / name).unlink(missing_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(store / "partial", ignore_errors=True)


def _create(store: Path, settings: dict[str, Any]) -> None:
    taken = store.exists() and (not store.is_dir() or set(os.listdir(store)) - _left_behind(store))
    if taken and not (store / MARKER).exists():  # another run may have made it meanwhile
        raise DataError(
            f"{store} is not empty and is no chunk store (no {MARKER}); choose a new or an empty folder"
        )
    store.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "settings": settings,
        "versions": {"onereel": onereel.__version__, "av": av.__version__},
    }
    create_once(store / MARKER, json.dumps(content, indent=2) + "\n")


def _left_behind(store: Path) -> set[str]:
    """The names of files that runs which were killed had begun to write."""
    return {path.name for path in store.glob("*.partial") if PARTIAL.fullmatch(path.name)}


def _check(store: Path, existing: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [
        f"{name} is {wanted[name]!r} here and {existing.get(name)!r} in the store"
        for name in wanted
        if wanted[name] != existing.get(name)
    ]
    if different:
        raise ConfigError(
            f"{store} was made with other settings: {'; '.join(different)}. "
            "Give the same ones, or prepare into a new folder."
        )
