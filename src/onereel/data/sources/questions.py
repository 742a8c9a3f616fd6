"""EgoMCQ: which of a few clips does a text describe? (EgoVLP, arXiv 2206.01670)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Questions:
    """Q questions about the Q x K records of a list, in which the K clips of a question lie side by side.

    Attributes:
        texts: the Q texts.
        answers: the right clip of each, 0 to K - 1.
        kinds: `intra` where all clips of a question are of one video, else `inter`.
    """

    texts: tuple[str, ...]
    answers: tuple[int, ...]
    kinds: tuple[str, ...]


def are_questions(values: Mapping[str, Any]) -> bool:
    """Whether a JSON object is `egomcq.json`: `{"0": {"answer": 3, "query": {...}, "choices": {"0": {...}}}}`."""
    first = next(iter(values.values()), None)
    return isinstance(first, dict) and {"answer", "query", "choices"} <= set(first)


def read_questions(values: Mapping[str, Any]) -> tuple[pa.Table, Questions]:
    """The clips as records, path being the video's uid and caption its own narration; and what is asked of them.

    Raises ValueError where questions differ in their number of clips, KeyError and the like where a part is missing.
    """
    choices = [list(entry["choices"].values()) for entry in values.values()]
    answers = tuple(int(entry["answer"]) for entry in values.values())
    if len({len(few) for few in choices}) != 1 or not all(
        0 <= a < len(choices[0]) for a in answers
    ):
        raise ValueError("every question must have as many clips, and one of them must be right")
    clips = [choice for few in choices for choice in few]
    table = {
        "path": pa.array([clip["video_uid"] for clip in clips], pa.string()),
        "caption": pa.array([clip["clip_text"] for clip in clips], pa.string()),
        "start": pa.array([max(0.0, float(clip["clip_start"])) for clip in clips], pa.float64()),
        "end": pa.array([float(clip["clip_end"]) for clip in clips], pa.float64()),
    }
    videos = [{choice["video_uid"] for choice in few} for few in choices]
    kinds = tuple("intra" if len(of_question) == 1 else "inter" for of_question in videos)
    texts = tuple(str(entry["query"]["clip_text"]) for entry in values.values())
    return pa.table(table), Questions(texts, answers, kinds)
