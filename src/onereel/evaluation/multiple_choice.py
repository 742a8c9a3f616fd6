"""EgoMCQ: which of a few clips does a text describe? (EgoVLP, arXiv 2206.01670)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onereel.errors import DataError


@dataclass(frozen=True)
class MultipleChoice:
    """Share of right answers, in all and by kind of question."""

    num_questions: int
    accuracy: float
    accuracy_by_kind: dict[str, float]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {share:.2%}" for kind, share in self.accuracy_by_kind.items())
        return f"accuracy {self.accuracy:.2%} ({kinds}) of {self.num_questions} questions"

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON: accuracy, and accuracy_KIND."""
        kinds = {f"accuracy_{kind}": share for kind, share in self.accuracy_by_kind.items()}
        return {"accuracy": self.accuracy, **kinds}


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
