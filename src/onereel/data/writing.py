"""Some records of a list as a list of their own, which `read_annotations` reads as it read the first."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from onereel.data.annotations import COLUMNS, Annotations
from onereel.errors import ConfigError
from onereel.files import write_atomically


def check_list_path(path: str | Path, annotations: Annotations) -> Path:
    """`path`, or ConfigError where records of `annotations` cannot be written there: to be asked before they are."""
    path, origin = Path(path), annotations.origin
    if origin.sentences is not None or origin.questions is not None:
        raise ConfigError(
            f"{annotations.source}: its {'sentences' if origin.sentences else 'questions'} are about the list as a "
            "whole, so a part of it is another test; bring the videos that it lacks, or edit it by hand"
        )
    suffix = ".jsonl" if _has_lists(annotations) else ".csv"
    if path.suffix.lower() != suffix:
        why = "records with several captions" if suffix == ".jsonl" else "these records"
        raise ConfigError(f"{path}: {why} are written as {suffix}, not {path.suffix!r}")
    return path


def write_records(
    annotations: Annotations, indices: Sequence[int], path: str | Path, *, in_store: bool
) -> None:
    """Write records `indices`: as `.jsonl` where captions are lists, else as `.csv` (see `check_list_path`).

    Args:
        in_store: paths are names in a store, and stay; else those of files are written in full, so that the list may
            lie anywhere.
    """
    path = check_list_path(path, annotations)
    names = [name for name in COLUMNS if name in annotations.table.column_names]
    columns = annotations.table.select(names).take(pa.array(indices, pa.int64())).to_pydict()
    if not in_store:
        root = os.path.abspath(annotations.root or ".")
        columns["path"] = [os.path.join(root, name) for name in columns["path"]]
    rows = zip(*columns.values(), strict=True)
    text = _jsonl(names, rows) if _has_lists(annotations) else _csv(names, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _has_lists(annotations: Annotations) -> bool:
    schema = annotations.table.schema
    return "caption" in schema.names and pa.types.is_nested(schema.field("caption").type)


def _csv(names: Sequence[str], rows: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _jsonl(names: Sequence[str], rows: Any) -> str:
    return "".join(json.dumps(dict(zip(names, row))) + "\n" for row in rows)


def _cell(value: str | float | None) -> str:
    """Seconds in full: a list has no exponents."""
    if value is None:
        return ""
    return value if isinstance(value, str) else np.format_float_positional(value, trim="-")
