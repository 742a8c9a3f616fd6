"""EPIC-KITCHENS-100: its action tables as records for actions and for retrieval, and its retrieval sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onereel.data.relevancy import Actions, SentencePool
from onereel.data.sources import csv_file
from onereel.errors import DataError

ACTION = re.compile(r"(\d+):(\d+)")
"""A label: verb class and noun class."""
KEYS = ("narration_id", "video_id", "start_timestamp", "stop_timestamp")


def is_epic(header: list[str]) -> bool:
    """Whether a CSV's header is that of an EPIC-KITCHENS-100 table."""
    return set(KEYS) <= set(header) and "path" not in header


def are_actions(labels: Sequence[str]) -> bool:
    """Whether every label is an action, `verb class:noun class`."""
    return bool(labels) and all(ACTION.fullmatch(label) for label in labels)


def read_epic(path: Path) -> pa.Table:
    """Columns path (video id), start, end (seconds) and narration_id; caption, and label, where the table has them.

    A label is an action: `verb class:noun class`, as in `0:2`. `verb_class` and `noun_class` (int64) and
    `all_noun_classes` (lists of int64) are kept. Raises DataError naming file and line.
    """
    cells = csv_file.read_cells(path, csv_file.read_header(path))
    columns = {
        "path": cells["video_id"],
        "start": csv_file.seconds(path, cells["start_timestamp"], "start_timestamp"),
        "end": csv_file.seconds(path, cells["stop_timestamp"], "stop_timestamp"),
        "narration_id": cells["narration_id"],
    }
    csv_file.require(path, pc.less(columns["start"], columns["end"]), "stop must be after start")
    if "narration" in cells.column_names:
        columns["caption"] = cells["narration"]
    if "noun_class" in cells.column_names:
        columns["label"] = pc.binary_join_element_wise(
            cells["verb_class"], cells["noun_class"], ":"
        )
        columns |= _classes(path, cells)
        columns["noun_class"] = _integers(path, cells, "noun_class")
    return pa.table(columns)


def sentences_beside(path: Path) -> Path | None:
    """The sentence table that is published beside a retrieval table: `NAME_sentence.csv` for `NAME.csv`."""
    found = path.with_name(f"{path.stem}_sentence.csv")
    return found if found.is_file() else None


def read_sentences(path: Path, videos: pa.Table) -> SentencePool:
    """The sentences of a retrieval list, in the order of their table.

    Args:
        path: sentence table; where it lacks classes (the published test table does) they are those of the narration
            in `videos` with the same narration_id.
        videos: what `read_epic` gave for the list that the sentences belong to.

    Raises DataError naming file and line.
    """
    cells = csv_file.read_cells(path, csv_file.read_header(path))
    missing = {"narration_id", "narration"} - set(cells.column_names)
    if missing or "verb_class" not in videos.column_names:
        raise DataError(
            f"{path}: a sentence table has the columns narration_id and narration, and lies beside a table with "
            f"verb_class and all_noun_classes; missing: {', '.join(sorted(missing)) or 'verb_class'}"
        )
    if "all_noun_classes" in cells.column_names:
        classes = _classes(path, cells)
    else:
        rows = pc.index_in(cells["narration_id"], videos["narration_id"].combine_chunks())
        csv_file.require(
            path,
            pc.is_valid(rows),
            "no such narration_id in the table of videos",
            cells["narration_id"],
        )
        classes = {name: videos[name].take(rows) for name in ("verb_class", "all_noun_classes")}
    texts = tuple(cells["narration"].to_pylist())
    return SentencePool(texts, actions(classes), actions(videos))


def actions(classes: pa.Table | dict[str, pa.ChunkedArray]) -> Actions:
    """The columns verb_class and all_noun_classes as arrays."""
    nouns = classes["all_noun_classes"].combine_chunks()
    values = nouns.flatten().to_numpy()
    rows = np.repeat(np.arange(len(nouns)), pc.list_value_length(nouns).to_numpy())
    named = np.zeros((len(nouns), int(values.max(initial=-1)) + 1), bool)
    named[rows, values] = True
    return Actions(classes["verb_class"].to_numpy(), named)


def _classes(path: Path, cells: pa.Table) -> dict[str, pa.ChunkedArray]:
    """verb_class as int64 and all_noun_classes as lists of int64."""
    lists = []
    for row, cell in enumerate(cells["all_noun_classes"].to_pylist()):
        try:
            lists.append(json.loads(cell))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {csv_file.line_of(path, row)}: {cell!r}: all_noun_classes must be a list such as [2, 36]"
            ) from error
    nouns = pa.chunked_array([pa.array(lists, pa.list_(pa.int64()))])
    return {"verb_class": _integers(path, cells, "verb_class"), "all_noun_classes": nouns}


def _integers(path: Path, cells: pa.Table, name: str) -> pa.ChunkedArray:
    good = pc.match_substring_regex(cells[name], r"^\d+$")
    csv_file.require(path, good, f"{name} must be a class number", cells[name])
    return pc.cast(cells[name], pa.int64())
