"""What is said about each video: labels, captions, seconds. One table, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from onereel.data.relevancy import SentencePool
from onereel.data.sources import caption_json, csv_file, ego4d, epic, list_file, msrvtt
from onereel.data.sources.folder import read_folder
from onereel.data.sources.questions import Questions
from onereel.errors import DataError, did_you_mean
from onereel.video.probe import VIDEO_SUFFIXES

COLUMNS = ("path", "label", "caption", "start", "end")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of an annotation file.

    Attributes:
        index: position in the file, from 0.
        path: as written; relative paths start at `Annotations.root`.
        caption: what is said, or the first of several ways to say it.
        captions: all of them, where there are several; training draws one per clip.
        start, end: seconds of the video that the label or caption is about; None: from its beginning, to its end.
    """

    index: int
    path: str
    label: str | None = None
    caption: str | None = None
    start: float | None = None
    end: float | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where annotations come from, beside their table.

    Attributes:
        by_id: paths are ids of videos, which `Annotations.located` turns into the names of files.
        line_of: finds the line of a row in the source file, where it is one.
        left_out: entries of the source that are not in the table, by reason.
        sentences: of a retrieval list: all sentences and how relevant each is to each record.
        questions: of a multiple-choice list: what is asked about its records.
    """

    by_id: bool = False
    line_of: Callable[[Path, int], int] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    sentences: SentencePool | None = None
    questions: Questions | None = None


class Annotations:
    """Records in Arrow columns: 10^7 of them take about as much memory as their file.

    Args:
        table: string columns path, label, caption (or lists of captions) and float64 columns start, end (seconds),
            all but path optional; further columns are kept.
        source: file or folder that the table came from, for messages.
        root: folder that relative paths start from.
        origin: what else is known of the source.
    """

    def __init__(
        self,
        table: pa.Table,
        source: str,
        root: str = "",
        origin: Origin | None = None,
    ) -> None:
        if table.num_rows == 0:
            raise DataError(f"{source}: no records; a list needs at least one video")
        if "label" in table.column_names:
            position = table.column_names.index("label")
            table = table.set_column(position, "label", table["label"].dictionary_encode())
        self.table = table.combine_chunks()
        self.source, self.root, self.origin = source, root, origin or Origin()
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
        if isinstance(values.get("caption"), list):
            values["captions"] = tuple(values["caption"])
            values["caption"] = values["captions"][0]
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

    def captions(self) -> Iterator[str]:
        """Every text of the list: a retrieval list's sentences, or all captions of all records.

        Raises DataError where there are none.
        """
        if self.origin.sentences is not None:
            yield from self.origin.sentences.texts
            return
        if not self.has_captions:
            raise DataError(f"{self.source}: no captions; add a column 'caption'")
        for chunk in self._columns["caption"].chunks:
            texts = chunk.flatten() if pa.types.is_nested(chunk.type) else chunk
            yield from texts.drop_null().to_pylist()

    def where(self, index: int) -> str:
        """Where record `index` is written: `train.csv, line 7`."""
        if self.origin.line_of is None:
            return f"{self.source}, {self.record(index).path}"
        return f"{self.source}, line {self.origin.line_of(Path(self.source), index)}"

    def located(self, videos: Iterable[str]) -> Annotations:
        """The same records with names of `videos` for paths, where paths are ids; else these annotations.

        An id is the name of a file without its folder; the suffix may lack, or be another one. An id that no video
        has stays, and is reported as missing. Raises DataError where several videos have the same id.
        """
        if not self.origin.by_id:
            return self
        names: dict[str, list[str]] = {}
        for video in videos:
            for key in {Path(video).name, _stem(video)}:
                names.setdefault(key, []).append(video)
        ids = self.table["path"].combine_chunks().dictionary_encode()
        found = [
            names.get(name) or names.get(_stem(name)) or [name]
            for name in ids.dictionary.to_pylist()
        ]
        for several in found:
            if len(several) > 1:
                raise DataError(
                    f"{self.source}: {several[0]} and {several[1]} may both be video {_stem(several[0])!r}; "
                    "set data.root to the folder of one of them, or prepare a store of them alone"
                )
        paths = pa.array([name for (name,) in found], pa.string()).take(ids.indices)
        table = self.table.set_column(self.table.column_names.index("path"), "path", paths)
        return Annotations(table, self.source, self.root, replace(self.origin, by_id=False))

    def check_labels(self, label_names: Sequence[str]) -> None:
        """Raise DataError unless every record has one of `label_names`."""
        if not self.has_labels:
            raise DataError(f"{self.source}: no labels; add a column 'label' with one per video")
        known = set(label_names)
        unknown = [name for name in self.label_names() if name not in known]
        if unknown:
            index = pc.index(self._columns["label"].cast(pa.string()), unknown[0]).as_py()
            shown = ", ".join(list(label_names)[:20]) + (", ..." if len(label_names) > 20 else "")
            raise DataError(
                f"{self.where(index)}: label {unknown[0]!r} does not occur in training "
                f"({len(unknown)} such label{'s' * (len(unknown) > 1)}).{did_you_mean(unknown[0], label_names)} "
                f"Known: {shown}. Correct it, remove these lines, or add clips of the class to the training list"
            )


def read_annotations(source: str, root: str = "") -> Annotations:
    """Read a list of videos in any of the forms that `data.sources` knows.

    Args:
        source: a folder per class; a CSV (commas, tabs or semicolons) with a header; a headerless `path label` list;
            EPIC-KITCHENS-100's CSV; captions in JSON (MSR-VTT's with `#split` behind it, if not all); MSR-VTT's test
            sentences; EgoClip's table; LaViLa's `.pkl`. A file whose first line names a column `path` is a CSV, and so
            is a `.csv` whose first line has commas and does not end in an integer label; any other file is a list.
        root: folder that relative paths start from; empty: the folder of the file, or the folder itself.

    Raises DataError naming file and line, what is allowed, and the remedy.
    """
    path, split = Path(source), ""
    if path.is_dir():
        return Annotations(read_folder(path), source, root or str(path))
    if not path.is_file() and "#" in source:
        path, split = Path(source.rpartition("#")[0]), source.rpartition("#")[2]
    if not path.is_file():
        raise DataError(
            f"{source}: no such file or folder; give a CSV with path,label or path,caption[,start,end], "
            "a 'path label' list, a folder with one folder per class, or a caption file (JSON)"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{source}: the file is empty; a CSV starts with a line such as path,label")
    table, origin = _read_file(path, split)
    return Annotations(table, source, root or str(path.parent), origin)


def paragraphs(annotations: Annotations) -> Annotations:
    """One record per video: its captions in order of time, joined into one that is about the whole video.

    How DiDeMo and ActivityNet Captions are usually tested. A record's first caption counts where it has several. A list
    without captions, or of questions about its records, stays as it is.
    """
    if not annotations.has_captions or annotations.origin.questions is not None:
        return annotations
    said: dict[str, list[tuple[float, int, str]]] = {}
    for record in map(annotations.record, range(len(annotations))):
        if record.caption:
            said.setdefault(record.path, []).append(
                (record.start or 0.0, record.index, record.caption)
            )
    texts = [" ".join(text for *_, text in sorted(captions)) for captions in said.values()]
    table = pa.table(
        {"path": pa.array(list(said), pa.string()), "caption": pa.array(texts, pa.string())}
    )
    origin = replace(annotations.origin, line_of=None, sentences=None, questions=None)
    return Annotations(table, annotations.source, annotations.root, origin)


def _read_file(path: Path, split: str) -> tuple[pa.Table, Origin]:
    """The table of a file, by its suffix and its first line."""
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        (table, left_out), by_id, questions = caption_json.read_json(path, split)
        return table, Origin(by_id=by_id, left_out=left_out, questions=questions)
    if suffix == ".pkl":
        table, left_out = ego4d.read_spans(path)
        return table, Origin(by_id=True, left_out=left_out)
    if ego4d.is_egoclip(path):
        table, left_out = ego4d.read_egoclip(path)
        return table, Origin(by_id=True, left_out=left_out)
    header = csv_file.read_header(path)
    if msrvtt.are_sentences(header):
        table, left_out = msrvtt.read_sentences(path)
        return table, Origin(by_id=True, left_out=left_out)
    if epic.is_epic(header):
        table, beside = epic.read_epic(path), epic.sentences_beside(path)
        sentences = epic.read_sentences(beside, table) if beside else None
        return table, Origin(by_id=True, line_of=csv_file.line_of, sentences=sentences)
    if _is_csv(path):
        return csv_file.read_csv(path), Origin(line_of=csv_file.line_of)
    return list_file.read_list(path), Origin(line_of=list_file.line_of)


def _stem(video: str) -> str:
    """The name of a file without folder and suffix."""
    name = Path(video).name
    return Path(name).stem if Path(name).suffix.lower() in VIDEO_SUFFIXES else name


def _is_csv(path: Path) -> bool:
    header = csv_file.read_header(path)
    if "path" in header:
        return True
    ends_in_label = bool(header) and re.search(r"\s\d+$", header[-1])
    return path.suffix.lower() == ".csv" and len(header) > 1 and not ends_in_label


def _sorted_names(names: Sequence[str] | dict[str, int]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d+", name) for name in names) else names
