"""What is said about each video: labels, captions, seconds. One table, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from onereel.data.sources import csv_file, list_file
from onereel.data.sources.folder import read_folder
from onereel.errors import DataError, did_you_mean

COLUMNS = ("path", "label", "caption", "start", "end")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of an annotation file.

    Attributes:
        index: position in the file, from 0.
        path: as written; relative paths start at `Annotations.root`.
        start, end: seconds of the video that the label or caption is about; None: from its beginning, to its end.
    """

    index: int
    path: str
    label: str | None = None
    caption: str | None = None
    start: float | None = None
    end: float | None = None


class Annotations:
    """Records in Arrow columns: 10^7 of them take about as much memory as their file.

    Args:
        table: string columns path, label, caption and float64 columns start, end (seconds), all but path optional;
            further columns are kept.
        source: file or folder that the table came from, for messages.
        root: folder that relative paths start from.
        line_of: finds the line of a row in the source file, where it is one.
    """

    def __init__(
        self,
        table: pa.Table,
        source: str,
        root: str = "",
        line_of: Callable[[Path, int], int] | None = None,
    ) -> None:
        if table.num_rows == 0:
            raise DataError(f"{source}: no records; a list needs at least one video")
        if "label" in table.column_names:
            position = table.column_names.index("label")
            table = table.set_column(position, "label", table["label"].dictionary_encode())
        self.table = table.combine_chunks()
        self.source, self.root = source, root
        self._line_of = line_of
        self._columns = {name: self.table[name] for name in COLUMNS if name in table.column_names}

    @classmethod
    def of_videos(cls, paths: Sequence[str], root: str = "") -> Annotations:
        """Videos about which nothing is said."""
        return cls(pa.table({"path": pa.array(paths, pa.string())}), "list of videos", root)

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return (
            f"Annotations({self.source!r}, {len(self)} records, columns {self.table.column_names})"
        )

    def record(self, index: int) -> Record:
        """Record `index`, 0 <= index < len(self)."""
        values = {name: column[index].as_py() for name, column in self._columns.items()}
        return Record(index=index, **values)

    @property
    def has_labels(self) -> bool:
        return "label" in self._columns

    @property
    def has_captions(self) -> bool:
        return "caption" in self._columns

    def label_counts(self) -> dict[str, int]:
        """Records per label, in the order of `label_names`; empty without a label column."""
        if not self.has_labels:
            return {}
        counts = {
            entry["values"]: entry["counts"]
            for entry in pc.value_counts(self._columns["label"]).to_pylist()
        }
        return {name: counts[name] for name in _sorted_names(counts)}

    def label_names(self) -> tuple[str, ...]:
        """All labels, sorted; by value if all are integers. Their order numbers the classes."""
        return tuple(self.label_counts())

    def where(self, index: int) -> str:
        """Where record `index` is written: `train.csv, line 7`."""
        if self._line_of is None:
            return f"{self.source}, {self.record(index).path}"
        return f"{self.source}, line {self._line_of(Path(self.source), index)}"

    def check_labels(self, label_names: Sequence[str]) -> None:
        """Raise DataError unless every record has one of `label_names`."""
        if not self.has_labels:
            raise DataError(f"{self.source}: no labels; add a column 'label' with one per video")
        unknown = [name for name in self.label_names() if name not in set(label_names)]
        if unknown:
            index = pc.index(self._columns["label"].cast(pa.string()), unknown[0]).as_py()
            shown = ", ".join(list(label_names)[:20]) + (", ..." if len(label_names) > 20 else "")
            raise DataError(
                f"{self.where(index)}: label {unknown[0]!r} does not occur in training "
                f"({len(unknown)} such label{'s' * (len(unknown) > 1)}).{did_you_mean(unknown[0], label_names)} "
                f"Known: {shown}. Correct it, remove these lines, or add clips of the class to the training list"
            )


def read_annotations(source: str, root: str = "") -> Annotations:
    """Read a CSV with a header, a headerless `path label` list, or a folder per class.

    Args:
        source: the file or folder. A file whose first line names a column `path` is a CSV, and so is a `.csv` whose
            first line has commas and does not end in an integer label; any other file is a list.
        root: folder that relative paths start from; empty: the folder of the file, or the folder itself.

    Raises DataError naming file and line, what is allowed, and the remedy.
    """
    path = Path(source)
    if path.is_dir():
        return Annotations(read_folder(path), source, root or str(path))
    if not path.is_file():
        raise DataError(
            f"{source}: no such file or folder; give a CSV with path,label or path,caption[,start,end], "
            "a 'path label' list, or a folder with one folder per class"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{source}: the file is empty; a CSV starts with a line such as path,label")
    root = root or str(path.parent)
    if _is_csv(path):
        return Annotations(csv_file.read_csv(path), source, root, csv_file.line_of)
    return Annotations(list_file.read_list(path), source, root, list_file.line_of)


def _is_csv(path: Path) -> bool:
    header = csv_file.read_header(path)
    if "path" in header:
        return True
    ends_in_label = bool(header) and re.search(r"\s\d+$", header[-1])
    return path.suffix.lower() == ".csv" and len(header) > 1 and not ends_in_label


def _sorted_names(names: Sequence[str] | dict[str, int]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d+", name) for name in names) else names
