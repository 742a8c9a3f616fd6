"""CSV with a header: `path,label` or `path,caption[,start,end]`, in any order; further columns are kept.

Cells may be separated by tabs or semicolons instead, where those of the header are (spreadsheets export semicolons
where 1.5 is written 1,5), and the names of these columns may have capitals. Rows without any text, and columns without
any, which spreadsheets leave at the ends, are left out.
Where nothing is said about the videos (masked pre-training) there may be `path[,start,end]` and no further column.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from onereel.errors import DataError, may_be

logger = logging.getLogger(__name__)

REQUIRED_CELLS = ("path", "label", "caption")
COLUMNS = (*REQUIRED_CELLS, "start", "end")
SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
"""How such a file begins; a spreadsheet's "Unicode text" is one."""
SPANS = {"start": {"start", "begin", "from"}, "end": {"end", "stop", "to"}}
"""Words of names that other lists give to these columns."""
UNNAMED = "column_{}"
"""A column that has no name in the header, by its number from 1."""
# Seconds ("12.5"), mm:ss or hh:mm:ss, as EPIC-KITCHENS writes them ("00:00:01.89").
TIME = r"^(?:(?:(?P<hours>\d+):)?(?P<minutes>\d+):)?(?P<seconds>\d+(?:\.\d*)?)$"


def read_header(path: Path) -> list[str]:
    """The cells of the first line, stripped, known names in lower case; column_3, say, where the third is empty. Empty
    for an empty file."""
    with path.open("rb") as file:
        if file.read(2) in UTF16:
            raise DataError(f"{path}: UTF-16 text; save it as UTF-8")
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return _names(next(csv.reader(file, delimiter=delimiter_of(path)), []))


def delimiter_of(path: Path) -> str:
    """What separates the cells: a tab or a semicolon where the first line, so cut, has a cell `path`; else a comma."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
    for delimiter in ("\t", ";"):
        names = _names(next(csv.reader([line], delimiter=delimiter), []))
        if len(names) > 1 and "path" in names:
            return delimiter
    return ","


def _names(cells: Sequence[str]) -> list[str]:
    names = [cell.strip() or UNNAMED.format(number) for number, cell in enumerate(cells, 1)]
    lower = [name.lower() for name in names]
    return [low if low in COLUMNS and low not in names else name for name, low in zip(names, lower)]


def read_csv(path: Path) -> pa.Table:
    """All rows of the file: known columns trimmed and checked, start and end as float64 seconds (null where empty).

    Raises DataError naming file, line, what is allowed and the remedy.
    """
    table = read_cells(path, _checked_header(path))
    header = table.column_names
    _check_text(path, header)
    _warn_of_spans(path, header)
    for name in COLUMNS:
        if name in header:
            trimmed = pc.utf8_trim_whitespace(table[name])
            table = table.set_column(header.index(name), name, trimmed)
    for name in REQUIRED_CELLS:
        if name in header:
            require(
                path,
                pc.not_equal(table[name], ""),
                f"the {name} is empty; fill it in, or remove the line",
            )
    for name in ("start", "end"):
        if name in header:
            table = table.set_column(header.index(name), name, seconds(path, table[name], name))
    if "start" in header and "end" in header:
        ordered = pc.fill_null(pc.less(table["start"], table["end"]), True)
        require(path, ordered, "end must be after start")
    return table


def _warn_of_spans(path: Path, header: list[str]) -> None:
    """Say which columns look like seconds of the records and are not read as such."""
    found = [
        name
        for column, words in SPANS.items()
        if column not in header
        for name in header
        if name not in COLUMNS and words & set(re.split(r"[^a-z]+", name.lower()))
    ]
    if found:
        logger.warning(
            "%s: %s not read as seconds: if a record is about a part of its video, name the columns start and end",
            path,
            f"column {found[0]} is" if len(found) == 1 else f"columns {', '.join(found)} are",
        )


def read_cells(path: Path, header: list[str]) -> pa.Table:
    """The rows below the header as text, as written, without those that are empty, and unnamed columns that are.

    Raises DataError naming the first line that does not fit.
    """
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=header, skip_rows=1),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter_of(path), newlines_in_values=True
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(_row_problem(path, header, str(error))) from error
    table = _without_empty_rows(table)
    spare = [
        name
        for number, name in enumerate(table.column_names, 1)
        if name == UNNAMED.format(number) and not pc.any(_filled(table[name])).as_py()
    ]
    return table.drop_columns(spare)


def _without_empty_rows(table: pa.Table) -> pa.Table:
    first, *others = table.column_names
    filled = _filled(table[first])
    for name in others:
        if pc.all(filled).as_py():
            return table
        filled = pc.or_(filled, _filled(table[name]))
    return table.filter(filled)


def _filled(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which cells have more than spaces in them."""
    return pc.not_equal(pc.utf8_trim_whitespace(cells), "")


def line_of(path: Path, row: int) -> int:
    """Line, from 1, on which data row `row`, from 0, ends (quoted cells may hold line breaks)."""
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file, delimiter=delimiter_of(path))
        next(reader)
        filled = (reader.line_num for cells in reader if any(map(str.strip, cells)))
        for _ in range(row):
            next(filled)
        return next(filled)


def _checked_header(path: Path) -> list[str]:
    header = read_header(path)
    if "path" not in header:
        raise DataError(
            f"{path}, line 1: no column 'path' among {', '.join(header)}.{may_be('path', header)} "
            "The first line of a CSV names its columns: path,label or path,caption[,start,end]"
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line 1: column {repeated[0]!r} occurs twice; rename one of them")
    return header


def _check_text(path: Path, header: list[str]) -> None:
    """Raise DataError where columns are there beside the paths, and none is said to be the label or the caption."""
    strange = [name for name in header if name not in COLUMNS]
    if strange and "label" not in header and "caption" not in header:
        raise DataError(
            f"{path}, line 1: neither a column 'label' nor 'caption' among {', '.join(header)}."
            f"{may_be('label', strange)} Name the class column label, or the text column caption"
        )


def _row_problem(path: Path, header: list[str], arrow_message: str) -> str:
    """What is wrong with a file that Arrow refused, found again row by row."""
    delimiter = delimiter_of(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for cells in reader:
                if cells and len(cells) != len(header):
                    separator = SEPARATORS[delimiter]
                    return (
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the header names {len(header)}; "
                        f'put quotes around a cell that holds a {separator}: "a{delimiter} b"'
                    )
    except UnicodeDecodeError as error:
        return f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
    return f"{path}: {arrow_message}"


def seconds(path: Path, cells: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """float64 seconds of cells such as 12.5, 01:02.5 or 00:01:02.5; null where the cell is empty."""
    empty = pc.equal(cells, "")
    parts = pc.extract_regex(cells, TIME)
    valid = pc.or_(empty, pc.is_valid(parts))
    require(
        path, valid, f"{name} must be seconds (12.5) or hh:mm:ss.xx (00:00:12.5), or empty", cells
    )

    def number(part: str) -> pa.ChunkedArray:
        text = pc.struct_field(parts, part)
        return pc.cast(pc.if_else(pc.equal(text, ""), "0", text), pa.float64())

    minutes = pc.add(pc.multiply(number("hours"), 60.0), number("minutes"))
    return pc.add(pc.multiply(minutes, 60.0), number("seconds"))


def require(
    path: Path, good: pa.ChunkedArray, message: str, cells: pa.ChunkedArray | None = None
) -> None:
    """Raise DataError for the first row where `good` is false."""
    row = pc.index(good, False).as_py()
    if row >= 0:
        given = "" if cells is None else f"{cells[row].as_py()!r}: "
        raise DataError(f"{path}, line {line_of(path, row)}: {given}{message}")
