"""What is said about each video: labels, captions, seconds. One table, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from onereel.data.sampling import frame_span
from onereel.data.sources import csv_file, list_file
from onereel.data.sources.folder import read_folder
from onereel.errors import DataError, DecodeError, did_you_mean
from onereel.types import Quarantined, VideoInfo

if TYPE_CHECKING:
    from onereel.video.library import VideoLibrary

COLUMNS = ("path", "label", "caption", "start", "end")
SHOWN_ITEMS = 20


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


@dataclass(frozen=True)
class AnnotationReport:
    """What `check_annotations` found; `str()` is readable.

    Attributes:
        missing: videos that the library does not have.
        unreadable: videos that it has and cannot read, with the reason.
        outside: records that start after the end of their video.
        short: records with fewer frames than a clip spans; their clips repeat frames.
        unknown_labels: records per label that is not among the allowed ones.
        class_counts: records per label.
    """

    source: str
    num_records: int
    num_videos: int
    span_frames: int
    missing: tuple[str, ...]
    unreadable: tuple[Quarantined, ...]
    outside: tuple[Record, ...]
    short: tuple[Record, ...]
    unknown_labels: dict[str, int]
    class_counts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether every record can be used as it is; short clips and rare classes are usable."""
        return not (self.missing or self.unreadable or self.outside or self.unknown_labels)

    @property
    def single_clip_classes(self) -> tuple[str, ...]:
        return tuple(name for name, count in self.class_counts.items() if count == 1)

    def __str__(self) -> str:
        counts = self.class_counts
        fewest, most = min(counts.values(), default=0), max(counts.values(), default=0)
        head = f"{self.source}: {self.num_records} records, {self.num_videos} videos"
        if counts:
            head += f", {len(counts)} classes of {fewest} to {most} clips"
        sections = (
            ("missing files", list(self.missing)),
            ("unreadable files", [f"{q.path}: {q.reason}" for q in self.unreadable]),
            ("records outside their video", [_span_text(record) for record in self.outside]),
            ("unknown labels", [f"{n} ({c} records)" for n, c in self.unknown_labels.items()]),
            (
                f"clips shorter than {self.span_frames} frames (they repeat frames)",
                [_span_text(record) for record in self.short],
            ),
            ("classes with one clip", list(self.single_clip_classes)),
            ("clips per class", [f"{name}: {count}" for name, count in counts.items()]),
        )
        lines = [head, "usable as it is" if self.ok else "NOT usable as it is"]
        for title, items in sections:
            lines += [f"{title}: {len(items)}"] if items else []
            lines += [f"  {item}" for item in items[:SHOWN_ITEMS]]
            lines += [f"  ... and {len(items) - SHOWN_ITEMS} more"] * (len(items) > SHOWN_ITEMS)
        return "\n".join(lines)


def check_annotations(
    annotations: Annotations,
    library: VideoLibrary,
    num_frames: int,
    sampling_rate: int = 1,
    label_names: Sequence[str] | None = None,
) -> AnnotationReport:
    """Open every video once and compare it with its records.

    Args:
        num_frames, sampling_rate: a clip spans (num_frames - 1) * sampling_rate + 1 frames; rate 1 for segment
            sampling.
        label_names: allowed labels; None: all.
    """
    span_frames = (num_frames - 1) * sampling_rate + 1
    infos: dict[str, VideoInfo | None] = {}
    missing, unreadable, outside, short = [], [], [], []
    for record in map(annotations.record, range(len(annotations))):
        if record.path not in infos:
            infos[record.path] = None
            if record.path not in library:
                missing.append(record.path)
            else:
                try:
                    infos[record.path] = library.info(record.path)
                except DecodeError as error:
                    unreadable.append(Quarantined(record.path, error.reason, error.frame))
        info = infos[record.path]
        if info is None:
            continue
        try:
            first, stop = frame_span(info, record.start, record.end)
        except DataError:
            outside.append(record)
            continue
        if stop - first < span_frames:
            short.append(record)
    counts = annotations.label_counts()
    known = counts if label_names is None else set(label_names)
    return AnnotationReport(
        source=annotations.source,
        num_records=len(annotations),
        num_videos=len(infos),
        span_frames=span_frames,
        missing=tuple(missing),
        unreadable=tuple(unreadable),
        outside=tuple(outside),
        short=tuple(short),
        unknown_labels={name: count for name, count in counts.items() if name not in known},
        class_counts=counts,
    )


def _span_text(record: Record) -> str:
    if record.start is None and record.end is None:
        return record.path
    end = "end" if record.end is None else f"{record.end:g} s"
    return f"{record.path}, {record.start or 0:g} s to {end}"


def _is_csv(path: Path) -> bool:
    header = csv_file.read_header(path)
    if "path" in header:
        return True
    ends_in_label = bool(header) and re.search(r"\s\d+$", header[-1])
    return path.suffix.lower() == ".csv" and len(header) > 1 and not ends_in_label


def _sorted_names(names: Sequence[str] | dict[str, int]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d+", name) for name in names) else names
