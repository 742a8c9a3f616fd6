"""What `onereel predict` has answered so far, beside the file to write: an interrupted one goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from onereel.types import Prediction

PARTIAL = ".partial.jsonl"


def journal_beside(out: str | Path) -> Path:
    """`labels.partial.jsonl` for `labels.csv`."""
    out = Path(out)
    return out.with_name(out.stem + PARTIAL)


class AnswerJournal:
    """A line of JSON for each video that was answered, under a first line that tells model and settings from others.

    A process that is killed loses no answer. What could not be read is not kept, but tried again.

    Args:
        path: the file; its folder is made.
        key: of model and settings; a file of another key is begun anew.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self, videos: Sequence[str]) -> dict[str, Prediction]:
        """The answers to those of `videos` that are in the file, and have not changed since."""
        # Split by hand: a name may hold characters that splitlines takes for ends of lines.
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        if not lines or lines[0] != self._head():
            self.path.write_bytes(self._head() + b"\n")
            return {}
        # The line that a killed process left unfinished.
        os.truncate(self.path, sum(len(line) + 1 for line in lines))
        wanted, found = set(videos), {}
        for line in lines[1:]:
            with suppress(ValueError, KeyError):  # damaged: asked for again
                row = json.loads(line)
                if row["video"] in wanted and row.pop("stamp") == stamp(row["video"]):
                    found[row["video"]] = _prediction(row)
        return found

    def add(self, answer: Prediction) -> None:
        """Append one."""
        line = json.dumps({**asdict(answer), "stamp": stamp(answer.video)}) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def _head(self) -> bytes:
        return json.dumps({"key": self.key}).encode()


def stamp(path: str) -> list[int]:
    """Size and time of a file, which tell whether it has changed; empty where it is gone."""
    with suppress(OSError):
        facts = os.stat(path)
        return [facts.st_size, facts.st_mtime_ns]
    return []


def _prediction(row: dict[str, Any]) -> Prediction:
    """Of a whole video. JSON has lists where a Prediction has tuples."""
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Prediction)}
    for name in ("labels", "probabilities"):
        values[name] = tuple(values[name])
    return Prediction(**values)
