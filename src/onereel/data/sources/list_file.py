"""Headerless lists of Kinetics and VideoMAE: `path label` per line, or `path num_frames label`.

The label is the last field, so that paths may hold spaces. Where every line reads `NAME.SUFFIX INTEGER LABEL` (a file
suffix right before the integer), the integer is the number of frames and is kept as column `num_frames`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from onereel.errors import DataError

HEADER = r"(?i)^\s*[\"']?path\b[^.]*[\s;|](?!\d+\s*$)\S+\s*$"  # a video called `path` has a number for a label
TWO_FIELDS = r"^\s*(?P<path>\S|\S.*\S)\s+(?P<label>\S+)\s*$"
THREE_FIELDS = r"^\s*(?P<path>\S.*\.\w{2,5})\s+(?P<num_frames>\d+)\s+(?P<label>\S+)\s*$"


def read_list(path: Path) -> pa.Table:
    """Columns path and label (text), and num_frames (int64) where the lines have it. Raises DataError."""
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=["line"]),
            # A separator that no text holds: each line is one cell.
            parse_options=arrow_csv.ParseOptions(delimiter="\x1f", quote_char=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types={"line": pa.string()}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a list of videos in UTF-8 text ({error})") from error
    lines = table["line"].filter(pc.not_equal(pc.utf8_trim_whitespace(table["line"]), ""))
    if len(lines) and re.match(HEADER, lines[0].as_py()):
        raise DataError(
            f"{path}, line 1: {lines[0].as_py()!r} names columns; separate them, and the cells, by commas, tabs or "
            "semicolons (path,label), or leave this line out: without it, each line has a path, a space and a label"
        )
    fields = pc.extract_regex(lines, THREE_FIELDS)
    if fields.null_count:
        fields = pc.extract_regex(lines, TWO_FIELDS)
    if fields.null_count:
        row = pc.index(pc.is_null(fields), True).as_py()
        raise DataError(
            f"{path}, line {line_of(path, row)}: {lines[row].as_py()!r} has no label; "
            "a line is a path, a space and a label"
        )
    names = [field.name for field in fields.type]
    table = pa.table({name: pc.struct_field(fields, name) for name in names})
    if "num_frames" in names:
        counts = pc.cast(table["num_frames"], pa.int64())
        table = table.set_column(names.index("num_frames"), "num_frames", counts)
    return table


def line_of(path: Path, row: int) -> int:
    """Line, from 1, of data row `row`, from 0 (blank lines don't count as rows)."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        filled = (number for number, line in enumerate(file, 1) if line.strip())
        for _ in range(row):
            next(filled)
        return next(filled)
