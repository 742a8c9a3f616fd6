"""Records with the count of those that a source had to leave out: nothing is dropped in silence."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import pyarrow as pa


class Found(NamedTuple):
    """A table with the columns of `data.annotations`, and how many entries were left out of it, by reason."""

    table: pa.Table
    left_out: dict[str, int]


class RecordCollector:
    """Gathers records one by one and counts those that cannot be used."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {n: [] for n in ("path", "caption", "start", "end")}
        self.left_out: Counter[str] = Counter()

    def add(
        self,
        path: str,
        caption: str | list[str],
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        """Take one record over, or count why not: no text, or seconds that are no span of time."""
        given = caption if isinstance(caption, list) else [caption]
        texts = [" ".join(text.split()) for text in given if text.strip()]
        if not texts:
            self.left_out["without text"] += 1
        elif not _is_span(start, end):
            self.left_out["that do not end after they start"] += 1
        else:
            self.columns["path"].append(path)
            self.columns["caption"].append(texts)
            self.columns["start"].append(start)
            self.columns["end"].append(end)

    def found(self) -> Found:
        """What was gathered. `caption` is text where every record has one caption, else lists of text."""
        captions = self.columns["caption"]
        several = any(len(texts) > 1 for texts in captions)
        caption: pa.Array = (
            pa.array(captions, pa.list_(pa.string()))
            if several
            else pa.array([texts[0] for texts in captions], pa.string())
        )
        table = {"path": pa.array(self.columns["path"], pa.string()), "caption": caption}
        for name in ("start", "end"):
            if any(value is not None for value in self.columns[name]):
                table[name] = pa.array(self.columns[name], pa.float64())
        return Found(pa.table(table), dict(self.left_out))


def _is_span(start: float | None, end: float | None) -> bool:
    numbers = [value for value in (start, end) if value is not None]
    return all(map(math.isfinite, numbers)) and (end is None or end > max(start or 0.0, 0.0))
