"""Captions in JSON: MSR-VTT, DiDeMo, ActivityNet Captions, Ego4D's narrations, EgoMCQ, and plain records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from onereel.data.sources import ego4d, msrvtt, questions
from onereel.data.sources.collector import Found, RecordCollector
from onereel.data.sources.questions import Questions
from onereel.errors import DataError

SEGMENT_SECONDS = 5
"""DiDeMo counts time in segments of this length (Hendricks et al., arXiv 1708.01641)."""
ALLOWED = (
    'a list of {"path", "caption" (text or list of texts)[, "start", "end"]}; MSR-VTT ("videos" and "sentences"); '
    'DiDeMo (a list with "video", "description", "times"); ActivityNet Captions (by video: "timestamps" and '
    '"sentences"); Ego4D narrations (by video: "narration_pass_1"); or EgoMCQ (by question: "answer", "query", '
    '"choices")'
)


class JsonRecords(NamedTuple):
    """What a JSON file says, whether its paths are ids of videos rather than files, and what it asks."""

    found: Found
    by_id: bool
    questions: Questions | None = None


def read_json(path: Path, split: str = "") -> JsonRecords:
    """The records of a `.json` file in any of the forms above, or of a `.jsonl` file of plain records.

    Args:
        split: of MSR-VTT, whose file holds several (`msrvtt.read_videos`); empty: all videos.

    Raises DataError where the file is none of them, or has no such split.
    """
    values = _load(path)
    asked = None
    try:
        if isinstance(values, list) and values and isinstance(values[0], dict):
            is_didemo = {"video", "description", "times"} <= set(values[0])
            found, by_id = (_didemo(values), True) if is_didemo else (_plain(values), False)
        elif isinstance(values, dict) and {"videos", "sentences"} <= set(values):
            return JsonRecords(msrvtt.read_videos(path, values, split), by_id=True)
        elif isinstance(values, dict) and questions.are_questions(values):
            table, asked = questions.read_questions(values)
            found, by_id = Found(table, {}), True
        elif isinstance(values, dict) and ego4d.is_narrations(values):
            found, by_id = ego4d.read_narrations(values), True
        elif isinstance(values, dict) and values and _is_activitynet(values):
            found, by_id = _activitynet(values), True
        else:
            raise DataError(f"{path}: not a caption file that is known; allowed: {ALLOWED}")
    except DataError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: an entry is not as the others ({type(error).__name__}: {error}); allowed: {ALLOWED}"
        ) from error
    if split:
        raise DataError(f"{path}#{split}: only MSR-VTT's files name splits; this one does not")
    return JsonRecords(found, by_id, asked)


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON in UTF-8 ({error})") from error


def _plain(entries: list[dict[str, Any]]) -> Found:
    records = RecordCollector()
    for entry in entries:
        records.add(entry["path"], entry["caption"], entry.get("start"), entry.get("end"))
    return records.found()


def _didemo(entries: list[dict[str, Any]]) -> Found:
    """One record per description, at the time that most annotators gave (the first of these, where several lead)."""
    records = RecordCollector()
    for entry in entries:
        (first, last), _ = Counter(map(tuple, entry["times"])).most_common(1)[0]
        start, end = SEGMENT_SECONDS * first, SEGMENT_SECONDS * (last + 1)
        records.add(entry["video"], entry["description"], float(start), float(end))
    return records.found()


def _is_activitynet(values: Mapping[str, Any]) -> bool:
    first = next(iter(values.values()))
    return isinstance(first, dict) and {"timestamps", "sentences"} <= set(first)


def _activitynet(values: Mapping[str, Any]) -> Found:
    """One record per sentence, cut at the video's duration where the file says it."""
    records = RecordCollector()
    for video, said in values.items():
        for (start, end), text in zip(said["timestamps"], said["sentences"], strict=True):
            end = min(float(end), float(said.get("duration", end)))
            records.add(video, text, max(0.0, float(start)), end)
    return records.found()
