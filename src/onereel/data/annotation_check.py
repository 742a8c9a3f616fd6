"""What is wrong with a list of videos, and what will be made of it, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from onereel.data.annotations import Annotations, Record
from onereel.data.sampling import frame_span, is_past_end
from onereel.errors import DataError, DecodeError
from onereel.types import Quarantined, VideoInfo
from onereel.video.probe import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from onereel.video.library import VideoLibrary

SHOWN_ITEMS = 20


@dataclass(frozen=True)
class AnnotationReport:
    """What `check_annotations` found; `str()` is readable.

    Attributes:
        missing: videos that the library does not have.
        similar: of these, the video it has whose name differs in suffix, capitals or backslashes only.
        unreadable: videos that it has and cannot read, or that its store refused, with the reason.
        outside: records that start after the end of their video.
        cut: records that end after it; their clips end with the video.
        tiny: records shorter than a frame; their clips repeat the nearest one.
        short: other records with fewer frames than a clip spans; their clips repeat frames.
        num_crossing: records that lie in several chunks of a store; their clips are read from all of them.
        left_out: entries of the source that are no records, by reason.
        unknown_labels: records per label that is not among the allowed ones.
        class_counts: records per label.
        usable: records that are none of missing, unreadable, outside or of an unknown label.
    """

    source: str
    num_records: int
    num_videos: int
    span_frames: int
    missing: tuple[str, ...]
    similar: Mapping[str, str]
    unreadable: tuple[Quarantined, ...]
    outside: tuple[Record, ...]
    cut: tuple[Record, ...]
    tiny: tuple[Record, ...]
    short: tuple[Record, ...]
    num_crossing: int
    left_out: Mapping[str, int]
    unknown_labels: dict[str, int]
    class_counts: dict[str, int]
    usable: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """Whether every record can be used; short clips and rare classes are usable."""
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
        lines = [head, "usable as it is" if self.ok else "NOT usable as it is"]
        lines += [f"entries {reason}, left out: {count}" for reason, count in self.left_out.items()]
        if self.num_crossing:
            lines.append(f"records that lie in more than one chunk: {self.num_crossing}")
        for title, items in self._sections():
            lines += [f"{title}: {len(items)}"] if items else []
            lines += [f"  {item}" for item in items[:SHOWN_ITEMS]]
            lines += [f"  ... and {len(items) - SHOWN_ITEMS} more"] * (len(items) > SHOWN_ITEMS)
        return "\n".join(lines)

    def _sections(self) -> Iterator[tuple[str, list[str]]]:
        meant = {name: f"{name} (there is {found})" for name, found in self.similar.items()}
        yield "missing files", [meant.get(name, name) for name in self.missing]
        yield "unreadable files", [f"{q.path}: {q.reason}" for q in self.unreadable]
        records = {
            "records outside their video": self.outside,
            "records that end after their video (cut there)": self.cut,
            "records shorter than a frame (they repeat it)": self.tiny,
            f"clips shorter than {self.span_frames} frames (they repeat frames)": self.short,
        }
        for title, found in records.items():
            yield title, [_span_text(record) for record in found]
        unknown = self.unknown_labels.items()
        yield "unknown labels", [f"{name} ({count} records)" for name, count in unknown]
        yield "classes with one clip", list(self.single_clip_classes)
        per_class = self.class_counts.items()
        yield "clips per class", [f"{name}: {count}" for name, count in per_class]


def check_annotations(
    annotations: Annotations,
    library: VideoLibrary,
    num_frames: int,
    sampling_rate: int = 1,
    label_names: Sequence[str] | None = None,
    refused: Callable[[str], str] = lambda video: "",
) -> AnnotationReport:
    """Open every video once and compare it with its records.

    Args:
        num_frames, sampling_rate: a clip spans (num_frames - 1) * sampling_rate + 1 frames; rate 1 for segment
            sampling.
        label_names: allowed labels; None: all.
        refused: says why a video that is missing could not be prepared, or nothing.
    """
    span_frames = (num_frames - 1) * sampling_rate + 1
    counts = annotations.label_counts()
    known = counts if label_names is None else set(label_names)
    videos = _Videos(library, refused)
    outside, cut, tiny, short, usable, num_crossing = [], [], [], [], [], 0
    for record in map(annotations.record, range(len(annotations))):
        info = videos.info(record.path)
        if info is None:
            continue
        try:
            first, stop = frame_span(info, record.start, record.end)
        except DataError:
            outside.append(record)
            continue
        if is_past_end(info, record.end):
            cut.append(record)
        if _seconds(record, info) * info.fps < 1:
            tiny.append(record)
        elif stop - first < span_frames:
            short.append(record)
        chunk_frames = library.chunk_frames(record.path)
        num_crossing += chunk_frames > 0 and first // chunk_frames != (stop - 1) // chunk_frames
        if record.label is None or record.label in known:
            usable.append(record.index)
    return AnnotationReport(
        source=annotations.source,
        num_records=len(annotations),
        num_videos=len(videos.infos),
        span_frames=span_frames,
        missing=tuple(videos.missing),
        similar=_similar(videos.missing, library),
        unreadable=tuple(videos.unreadable),
        outside=tuple(outside),
        cut=tuple(cut),
        tiny=tuple(tiny),
        short=tuple(short),
        num_crossing=num_crossing,
        left_out=annotations.origin.left_out,
        unknown_labels={name: count for name, count in counts.items() if name not in known},
        class_counts=counts,
        usable=tuple(usable),
    )


class _Videos:
    """Opens each video when it is first asked for, and remembers which could not be."""

    def __init__(self, library: VideoLibrary, refused: Callable[[str], str]) -> None:
        self.library, self.refused = library, refused
        self.infos: dict[str, VideoInfo | None] = {}
        self.missing: list[str] = []
        self.unreadable: list[Quarantined] = []

    def info(self, path: str) -> VideoInfo | None:
        if path not in self.infos:
            self.infos[path] = None
            if path not in self.library:
                if reason := self.refused(path):
                    self.unreadable.append(Quarantined(path, f"not in the store: {reason}"))
                else:
                    self.missing.append(path)
            else:
                try:
                    self.infos[path] = self.library.info(path)
                except DecodeError as error:
                    self.unreadable.append(Quarantined(path, error.reason, error.frame))
        return self.infos[path]


def _similar(missing: Sequence[str], library: VideoLibrary) -> dict[str, str]:
    """What a spreadsheet, or another system, made of the name of a video that is there."""
    there = {_plain(video): video for video in library.videos()} if missing else {}
    return {name: there[_plain(name)] for name in missing if _plain(name) in there}


def _plain(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/").lower())
    return str(path.with_suffix("") if path.suffix in VIDEO_SUFFIXES else path)


def _seconds(record: Record, info: VideoInfo) -> float:
    """How long the record says it is."""
    end = info.duration_seconds if record.end is None else record.end
    return end - (record.start or 0.0)


def _span_text(record: Record) -> str:
    if record.start is None and record.end is None:
        return record.path
    end = "end" if record.end is None else f"{record.end:g} s"
    return f"{record.path}, {record.start or 0:g} s to {end}"
