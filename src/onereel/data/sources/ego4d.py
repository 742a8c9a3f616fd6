"""Ego4D's narrations: one moment each, made into spans of time; and the span lists of EgoVLP and LaViLa."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from onereel.data.sources.collector import Found, RecordCollector
from onereel.errors import DataError

SCALE_SECONDS = 4.9
"""alpha: mean distance between two narrations, over all videos of Ego4D (EgoVLP, arXiv 2206.01670, section 3.1)."""
PASSES = ("narration_pass_1", "narration_pass_2")
FEWEST_WORDS = 3
EGOCLIP_COLUMNS = ("video_uid", "clip_start", "clip_end", "clip_text")


def is_narrations(videos: Mapping[str, Any]) -> bool:
    """Whether a JSON object is Ego4D's narration file: `{uid: {"narration_pass_1": {"narrations": [...]}}}`."""
    return any(isinstance(v, dict) and set(PASSES) & set(v) for v in videos.values())


def is_egoclip(path: Path) -> bool:
    """Whether the first line of a file is EgoClip's."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return set(EGOCLIP_COLUMNS) <= set(file.readline().rstrip("\r\n").split("\t"))


def narration_spans(times: list[float], scale_seconds: float = SCALE_SECONDS) -> Iterator[Any]:
    """(start, end) seconds for each of the sorted moments `times` of one narrator.

    The span is centred on the moment, and beta / alpha seconds long, where beta is the mean distance between this
    narrator's moments: about a second, shorter where much is said (EgoVLP, section 3.1; LaViLa trains on the same).
    A start before the video is cut. One moment alone, or moments that are all the same, get one second.
    """
    beta = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else scale_seconds
    half = (beta or scale_seconds) / scale_seconds / 2
    return ((max(0.0, time - half), time + half) for time in times)


def read_narrations(videos: Mapping[str, Any]) -> Found:
    """One record per narration; path is the video's uid.

    Left out, and counted: narrations without text, of fewer than three words, that the narrator marked `#unsure`, or
    without a time. They still count as moments for the length of the others' spans.
    """
    records = RecordCollector()
    for uid, video in videos.items():
        for name in PASSES:
            said = (video.get(name) or {}).get("narrations", [])
            known = [n for n in said if _seconds(n) is not None]
            records.left_out["without a time"] += len(said) - len(known)
            known.sort(key=lambda n: n["timestamp_sec"])
            if not known:
                continue
            spans = narration_spans([float(n["timestamp_sec"]) for n in known])
            for narration, (start, end) in zip(known, spans):
                _add(records, uid, narration.get("narration_text") or "", start, end)
    records.left_out = +records.left_out
    return records.found()


def read_egoclip(path: Path) -> Found:
    """EgoVLP's EgoClip table: tab-separated, one span per line. Lines of another shape are left out and counted.

    Raises DataError where a start or end is no number.
    """
    skipped = 0

    def skip(row: Any) -> str:
        nonlocal skipped
        skipped += 1
        return "skip"

    parsing = arrow_csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=skip)
    converting = arrow_csv.ConvertOptions(
        include_columns=EGOCLIP_COLUMNS,
        column_types={
            **dict.fromkeys(("video_uid", "clip_text"), pa.string()),
            **dict.fromkeys(("clip_start", "clip_end"), pa.float64()),
        },
    )
    try:
        table = arrow_csv.read_csv(path, parse_options=parsing, convert_options=converting)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a table of EgoClip: {error}") from error
    table = table.rename_columns(["path", "start", "end", "caption"])
    start = pc.max_element_wise(table["start"], 0.0)
    table = table.set_column(1, "start", start)
    good = pc.and_(pc.less(start, table["end"]), pc.not_equal(table["caption"], ""))
    kept = table.filter(pc.fill_null(good, False))
    left_out = {
        "that are not lines of the table": skipped,
        "without text, or that do not end after they start": table.num_rows - kept.num_rows,
    }
    return Found(kept, {reason: count for reason, count in left_out.items() if count})


def read_spans(path: Path) -> Found:
    """LaViLa's pickled lists of (uid, start, end, narration or list of narrations, ...).

    Only plain Python values are read: a pickle that wants anything else could run any code, and raises DataError.
    """
    try:
        entries = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        records = RecordCollector()
        for uid, start, end, text, *_ in entries:
            start = max(0.0, float(start))
            records.add(str(uid), text, start, float(end))
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a pickled list of (video uid, start, end, narration): {error}"
        ) from error
    return records.found()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"it holds a {module}.{name}, and making one could run any code; allowed: lists, tuples, texts and numbers"
        )


def _seconds(narration: Mapping[str, Any]) -> float | None:
    time = narration.get("timestamp_sec")
    return time if isinstance(time, int | float) and math.isfinite(time) else None


def _add(records: RecordCollector, uid: str, text: str, start: float, end: float) -> None:
    if "#unsure" in text.lower():
        records.left_out["marked #unsure"] += 1
    elif text.strip() and len(text.split()) < FEWEST_WORDS:
        records.left_out[f"of fewer than {FEWEST_WORDS} words"] += 1
    else:
        records.add(uid, text, start, end)
