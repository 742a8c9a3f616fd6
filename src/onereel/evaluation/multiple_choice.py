"""EgoMCQ: which of a few clips does a text describe? (EgoVLP, arXiv 2206.01670)"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from onereel.data.annotations import Annotations, Origin
from onereel.errors import DataError


@dataclass(frozen=True)
class Questions:
    """Q questions with K clips each.

    Attributes:
        clips: Q x K records, those of a question side by side.
        texts: the Q texts.
        answers: int64 `(Q,)`, the right clip of each.
        kinds: `intra` where all clips of a question are of one video, else `inter`.
    """

    clips: Annotations
    texts: tuple[str, ...]
    answers: Tensor
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class MultipleChoice:
    """Share of right answers, in all and by kind of question."""

    num_questions: int
    accuracy: float
    accuracy_by_kind: dict[str, float]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {share:.2%}" for kind, share in self.accuracy_by_kind.items())
        return f"accuracy {self.accuracy:.2%} ({kinds}) of {self.num_questions} questions"


def read_questions(path: Path, root: str = "") -> Questions:
    """EgoMCQ's `egomcq.json`: `{"0": {"answer", "query": {"clip_text"}, "choices": {"0": {"video_uid", …}}}, …}`.

    Args:
        root: folder that the videos lie in; empty: that of the file.

    Raises DataError where the file is something else.
    """
    try:
        entries = list(json.loads(path.read_text(encoding="utf-8")).values())
        choices = [list(entry["choices"].values()) for entry in entries]
        answers = torch.tensor([int(entry["answer"]) for entry in entries])
        texts = tuple(str(entry["query"]["clip_text"]) for entry in entries)
        table = _clips([choice for few in choices for choice in few])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: not a file of questions such as egomcq.json ({type(error).__name__}: {error})"
        ) from error
    if len({len(few) for few in choices}) != 1 or not (answers < len(choices[0])).all():
        raise DataError(f"{path}: every question must have as many clips, and one of them right")
    videos = [{choice["video_uid"] for choice in few} for few in choices]
    return Questions(
        clips=Annotations(table, str(path), root or str(path.parent), Origin(by_id=True)),
        texts=texts,
        answers=answers,
        kinds=tuple("intra" if len(few) == 1 else "inter" for few in videos),
    )


def multiple_choice(
    texts: Tensor, clips: Tensor, answers: Tensor, kinds: Sequence[str]
) -> MultipleChoice:
    """The clip with the largest dot product is the answer; of two that tie, the first.

    Args:
        texts: `(Q, D)` embeddings.
        clips: `(Q * K, D)` embeddings, those of a question side by side.
        answers: int64 `(Q,)`, 0 to K - 1.
        kinds: of each question.

    Raises DataError where the shapes don't fit or a value is not finite.
    """
    num_questions = len(texts)
    shapes = (tuple(texts.shape), tuple(clips.shape), tuple(answers.shape), len(kinds))
    if (
        not num_questions
        or len(clips) % num_questions
        or {*shapes[2], len(kinds)} != {num_questions}
    ):
        raise DataError(f"texts, clips, answers and kinds of {shapes} are not those of Q questions")
    if not (texts.isfinite().all() and clips.isfinite().all()):
        raise DataError("an embedding is not finite: the model's weights are broken")
    options = clips.double().view(num_questions, -1, clips.shape[1])
    scores = torch.einsum("qd,qkd->qk", texts.double(), options).float()
    right = (scores.argmax(dim=1).cpu() == answers.cpu()).double()
    places = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))}
    return MultipleChoice(
        num_questions=num_questions,
        accuracy=right.mean().item(),
        accuracy_by_kind={kind: right[chosen].mean().item() for kind, chosen in places.items()},
    )


def _clips(choices: list[dict[str, Any]]) -> pa.Table:
    start = [max(0.0, float(choice["clip_start"])) for choice in choices]
    columns = {
        "path": pa.array([choice["video_uid"] for choice in choices], pa.string()),
        "start": pa.array(start, pa.float64()),
        "end": pa.array([float(choice["clip_end"]) for choice in choices], pa.float64()),
    }
    return pa.table(columns)
