"""MSR-VTT: one JSON file for all splits, and the lists beside it that retrieval is tested by (1k-A)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onereel.data.sources import csv_file
from onereel.data.sources.collector import Found, RecordCollector
from onereel.errors import DataError, did_you_mean

ID, SENTENCE = "video_id", "sentence"


def read_videos(path: Path, values: Mapping[str, Any], split: str) -> Found:
    """One record per video with all its captions; the files are cut already, so their seconds don't count.

    Args:
        split: one that the file names, or a CSV beside it with a column `video_id` (`MSRVTT_train.9k.csv`); empty: all.

    Raises DataError where there is no such split, or the CSV names a video that the file lacks.
    """
    is_wanted = _wanted(path, values, split)
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for sentence in values["sentences"]:
        captions[sentence["video_id"]].append(sentence["caption"])
    records = RecordCollector()
    for video in values["videos"]:
        if is_wanted(video):
            records.add(video["video_id"], captions[video["video_id"]])
    return records.found()


def are_sentences(header: list[str]) -> bool:
    """Whether a CSV's header is that of a table of test sentences (`MSRVTT_JSFUSION_test.csv`)."""
    return {ID, SENTENCE} <= set(header) and "path" not in header


def read_sentences(path: Path) -> Found:
    """One record per line: a video, and the one sentence that retrieves it. Raises DataError naming file and line."""
    cells = csv_file.read_cells(path, csv_file.read_header(path))
    records = RecordCollector()
    for video, sentence in zip(cells[ID].to_pylist(), cells[SENTENCE].to_pylist()):
        records.add(video.strip(), sentence)
    return records.found()


def _wanted(
    path: Path, values: Mapping[str, Any], split: str
) -> Callable[[Mapping[str, Any]], bool]:
    splits = sorted({video.get("split", "") for video in values["videos"]})
    if not split or split in splits:
        return lambda video: not split or video.get("split", "") == split
    listed = path.with_name(split)
    if not listed.is_file():
        raise DataError(
            f"{path}: no split {split!r}.{did_you_mean(split, splits)} Known: {', '.join(splits)}; "
            f"or give the name of a CSV in the same folder that has a column {ID}"
        )
    header = csv_file.read_header(listed)
    if ID not in header or SENTENCE in header:
        remedy = (
            "give that file alone" if SENTENCE in header else f"a split is a CSV with a column {ID}"
        )
        raise DataError(f"{listed} has the columns {', '.join(header)}; {remedy}")
    ids = [cell.strip() for cell in csv_file.read_cells(listed, header)[ID].to_pylist()]
    unknown = sorted(set(ids) - {video["video_id"] for video in values["videos"]})
    if unknown:
        raise DataError(
            f"{listed}: {len(unknown)} videos are not in {path}: {', '.join(unknown[:5])}"
        )
    wanted = set(ids)
    return lambda video: video["video_id"] in wanted
