"""Classes that were never trained, from their names: a text per class and prompt is the classifier."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.errors import DataError
from onereel.evaluation.classification import accuracies
from onereel.evaluation.scores import VideoScores

TEMPLATES = (
    "a video of {}.",
    "a video of a person doing {}.",
    "a clip that shows {}.",
    "somebody is {}.",
    "an example of {}.",
)
"""Prompts for names of actions, where a test gives no others."""


@dataclass(frozen=True)
class ZeroShot:
    """Accuracy on classes that the model knows by name only; see `ClassificationResult`."""

    num_videos: int
    num_classes: int
    top1: float
    top5: float
    mean_class_accuracy: float

    def __str__(self) -> str:
        return (
            f"zero-shot top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, mean class {self.mean_class_accuracy:.2%} "
            f"on {self.num_videos} videos of {self.num_classes} classes"
        )

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def prompts(class_names: Sequence[str], templates: Sequence[str] = ()) -> list[str]:
    """Every name in every template (none: `TEMPLATES`), class after class, as it is spoken: `ApplyEyeMakeup` (UCF101)
    and `apply_eye_makeup` become words.

    Raises DataError where names are numbers, which say nothing to a model that knows classes by name.
    """
    if not any(char.isalpha() for name in class_names for char in name):
        raise DataError(
            f"the classes are {', '.join(class_names[:3])}{', ...' * (len(class_names) > 3)}, and a model that knows "
            "classes by their names cannot tell numbers; give a CSV with path,label whose labels are names, or with "
            "path,caption"
        )
    return [
        template.replace("{}", _spoken(name))
        for name in class_names
        for template in templates or TEMPLATES
    ]


def _spoken(name: str) -> str:
    words = " ".join(name.replace("_", " ").split())
    return words if " " in words else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", words)


def class_embeddings(prompt_embeddings: Tensor, num_classes: int) -> Tensor:
    """float32 `(K, D)` of unit length: the mean over a class's prompts of their normalised embeddings (CLIP).

    Args:
        prompt_embeddings: `(K * P, D)`, in the order of `prompts`.

    Raises DataError where the shape doesn't fit.
    """
    if not num_classes or len(prompt_embeddings) % num_classes or not len(prompt_embeddings):
        raise DataError(
            f"{len(prompt_embeddings)} prompt embeddings for {num_classes} classes; "
            "allowed: as many for each class"
        )
    units = F.normalize(prompt_embeddings.double(), dim=-1)
    return F.normalize(units.view(num_classes, -1, units.shape[1]).mean(dim=1), dim=-1).float()


def zero_shot_probabilities(videos: Tensor, classes: Tensor, scale: float = 100.0) -> Tensor:
    """float32 `(V, K)`: softmax of `scale` times the cosine similarity of `(V, D)` videos and `(K, D)` classes.

    Args:
        scale: the model's logit scale; it changes how sure the answers are, not which they are.
    """
    cosine = F.normalize(videos.double(), dim=-1) @ F.normalize(classes.double(), dim=-1).T
    return torch.softmax(scale * cosine, dim=-1).float()


def zero_shot(videos: Tensor, classes: Tensor, labels: Tensor) -> ZeroShot:
    """How often the class nearest to a video is its own; of two that tie, the first.

    Args:
        videos: `(V, D)` embeddings.
        classes: `(K, D)`, from `class_embeddings`.
        labels: int64 `(V,)`, 0 to K - 1.

    Raises DataError where a value is not finite.
    """
    if not (videos.isfinite().all() and classes.isfinite().all()):
        raise DataError("an embedding is not finite: the model's weights are broken")
    probabilities = zero_shot_probabilities(videos, classes).cpu()
    found = accuracies(VideoScores(torch.arange(len(labels)), labels.cpu(), probabilities))
    names = ("top1", "top5", "mean_class_accuracy")
    return ZeroShot(len(videos), len(classes), **{name: found[name] for name in names})
