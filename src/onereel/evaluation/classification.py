"""Top-1, top-5, per class and confusion, over views and ranks, each sample counted exactly once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from onereel.data.sources.epic import are_actions
from onereel.errors import DataError, OnereelError
from onereel.evaluation.actions import part_accuracies
from onereel.evaluation.inference import BatchTransform, evaluating, view_probabilities
from onereel.evaluation.ranks import gather
from onereel.evaluation.scores import VideoScores, ViewSums
from onereel.files import write_atomically
from onereel.types import Batch, Prediction, TubeletGrid

if TYPE_CHECKING:
    from onereel.data.loader import ClipLoader
    from onereel.models.video_model import Output, VideoModel


@dataclass(frozen=True)
class ClassificationResult:
    """What one evaluation found.

    Attributes:
        top1, top5: share of videos whose class is the most probable, or among the five most probable; where
            probabilities tie, the class that comes first in `class_names` wins.
        mean_class_accuracy: mean of `class_accuracy` over the classes that occur.
        class_accuracy: top-1 per class, None where the list has no video of it.
        class_counts: videos per true class.
        confusion: (true class, predicted class, videos), without the zeros.
        num_views: clips x crops per video.
        seconds: wall clock of the slowest rank, without the final reduction.
        clips_per_second: views per second and device.
        data_wait: share of that time spent waiting for the loader.
        kept_ratio: kept tokens over all tokens, mean over views.
        macs_per_view: exact multiply-adds of the forward pass, mean over views.
        scores: probabilities of every video, not saved.
        verb_top1, noun_top1: where classes are actions (`verb class:noun class`): the same for their verbs and nouns,
            whose probabilities are sums over actions (EPIC-KITCHENS-100); None elsewhere.
    """

    class_names: tuple[str, ...]
    num_videos: int
    num_views: int
    top1: float
    top5: float
    mean_class_accuracy: float
    class_accuracy: tuple[float | None, ...]
    class_counts: tuple[int, ...]
    confusion: tuple[tuple[int, int, int], ...]
    seconds: float
    clips_per_second: float
    data_wait: float
    kept_ratio: float
    macs_per_view: float
    scores: VideoScores = field(repr=False, compare=False)
    verb_top1: float | None = None
    noun_top1: float | None = None

    @property
    def gflops_per_view(self) -> float:
        """2 x MACs, in billions; the "GFLOPs" of many papers are MACs, half of this."""
        return 2 * self.macs_per_view / 1e9

    def __str__(self) -> str:
        parts = {"verb": self.verb_top1, "noun": self.noun_top1}
        of_parts = "".join(f"{n} {v:.2%}, " for n, v in parts.items() if v is not None)
        return (
            f"{of_parts}top-1 {self.top1:.2%}, top-5 {self.top5:.2%}, mean class {self.mean_class_accuracy:.2%} "
            f"on {self.num_videos} videos\n"
            f"{self.gflops_per_view:.4g} GFLOPs × {self.num_views} views per video (2 × MACs), "
            f"{self.kept_ratio:.1%} of the tokens kept\n"
            f"{self.clips_per_second:.4g} clips/s per device, {self.seconds:.1f} s, "
            f"{self.data_wait:.0%} of it waiting for data"
        )

    def figures(self) -> dict[str, float]:
        """The numbers of a log line."""
        names = ("top1", "top5", "verb_top1", "noun_top1", "mean_class_accuracy", "kept_ratio")
        values = {name: getattr(self, name) for name in (*names, "clips_per_second", "seconds")}
        return {name: value for name, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with `gflops_per_view` beside the fields."""
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "scores"
        }
        values["gflops_per_view"] = self.gflops_per_view
        return json.loads(json.dumps(values))

    def save(self, path: str | Path, settings: dict[str, Any] | None = None) -> None:
        """Write the JSON file whole or not at all, with the `settings` that it was made under; its folder is made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {**self.to_dict(), "settings": settings or {}}
        write_atomically(path, json.dumps(values) + "\n")


def top_predictions(
    name: str, probabilities: Tensor, class_names: Sequence[str], top_k: int
) -> Prediction:
    """The `top_k` most probable classes of one video from its `(K,)` probabilities."""
    order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
    return Prediction(
        video=name,
        labels=tuple(class_names[k] for k in order),
        probabilities=tuple(float(probabilities[k]) for k in order),
    )


@dataclass
class _Tally:
    """What one rank, or all of them, counted."""

    sums: ViewSums = field(default_factory=ViewSums)
    num_views: int = 0
    num_tokens: int = 0
    num_dense_tokens: int = 0
    macs: int = 0
    wait_seconds: float = 0.0
    seconds: float = 0.0

    def merge(self, other: _Tally) -> None:
        self.sums.merge(other.sums)
        self.num_views += other.num_views
        self.num_tokens += other.num_tokens
        self.num_dense_tokens += other.num_dense_tokens
        self.macs += other.macs
        self.wait_seconds += other.wait_seconds
        self.seconds = max(self.seconds, other.seconds)


def evaluate_classification(
    model: VideoModel,
    loader: ClipLoader,
    augment: BatchTransform,
    *,
    class_names: Sequence[str],
    device: torch.device | str,
    num_views: int = 1,
    precision: str = "auto",
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> ClassificationResult:
    """Accuracy of `model` on everything that `loader` gives: softmax per view, mean over the views of a video.

    Under torch.distributed every rank brings its share and every rank gets the whole result; a sample that cannot
    be read on one rank raises on all of them.

    Args:
        loader: strict, in order, nothing dropped; views of a video may lie in different batches or ranks.
        augment: normalisation only.
        num_views: views that every video must have, num_clips x num_crops.
        precision: float32, bf16, or auto (bf16 on CUDA).
        seed: for selectors that draw which tokens they keep.
        on_batch: called with (batches done, batches of this rank).

    Raises:
        DataError: a label is missing or unknown, or a video lacks a view or has one twice.
        DecodeError: a sample cannot be read.
    """
    device = torch.device(device)

    def score(batch: Batch) -> tuple[Tensor, Output]:
        return view_probabilities(model, augment(batch, device), precision=precision, seed=seed)

    tally, failure = _Tally(), None
    try:
        with evaluating(model):
            _score(tally, loader, score, model.macs, on_batch)
    except OnereelError as error:
        failure = error
    tally = _all_ranks(tally, failure)
    scores = tally.sums.mean(num_views)
    _check_labels(scores, len(class_names))
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return ClassificationResult(
        class_names=tuple(class_names),
        num_videos=len(scores.indices),
        num_views=num_views,
        **accuracies(scores),
        seconds=tally.seconds,
        clips_per_second=tally.num_views / max(tally.seconds, 1e-9) / world_size,
        data_wait=tally.wait_seconds / max(tally.seconds * world_size, 1e-9),
        kept_ratio=tally.num_tokens / tally.num_dense_tokens,
        macs_per_view=tally.macs / tally.num_views,
        scores=scores,
        **_of_parts(scores, class_names),
    )


def _score(
    tally: _Tally,
    loader: ClipLoader,
    score: Callable[[Batch], tuple[Tensor, Output]],
    macs: Callable[[Sequence[int], TubeletGrid], int],
    on_batch: Callable[[int, int], None] | None,
) -> None:
    """Add this rank's share of the views to `tally`."""
    start = waiting_since = time.perf_counter()
    for number, batch in enumerate(loader.batches(epoch=0), 1):
        tally.wait_seconds += time.perf_counter() - waiting_since
        if batch.num_clips:
            probabilities, output = score(batch)
            tally.sums.add(batch.keys, probabilities, batch.labels)
            tally.num_views += len(output.lengths)
            tally.num_tokens += sum(output.lengths)
            tally.num_dense_tokens += output.num_dense_tokens * len(output.lengths)
            tally.macs += macs(output.lengths, output.grid)
        if on_batch is not None:
            on_batch(number, loader.num_batches)
        waiting_since = time.perf_counter()
    tally.seconds = time.perf_counter() - start


def _all_ranks(tally: _Tally, failure: OnereelError | None) -> _Tally:
    """The sum of all ranks' tallies on every rank; raises the first rank's failure, if any, on all of them."""
    total = _Tally()
    for part in gather(tally, failure):
        total.merge(part)
    return total


def _check_labels(scores: VideoScores, num_classes: int) -> None:
    if scores.probabilities.shape[1] != num_classes:
        raise DataError(
            f"the model has {scores.probabilities.shape[1]} classes, the list has {num_classes}: "
            "evaluate with the class names of the training list"
        )
    wrong = (scores.labels < 0) | (scores.labels >= num_classes)
    if wrong.any():
        index = int(scores.indices[wrong][0])
        raise DataError(
            f"sample {index} has no class among the {num_classes} that the model knows: "
            "evaluation needs a label on every line, each of them in the training list"
        )


def _of_parts(scores: VideoScores, class_names: Sequence[str]) -> dict[str, Any]:
    """verb_top1 and noun_top1 where the classes are actions."""
    if not are_actions(class_names):
        return {}
    return part_accuracies(scores.probabilities, scores.labels, class_names)


def accuracies(scores: VideoScores) -> dict[str, Any]:
    """top1, top5, mean_class_accuracy, class_accuracy, class_counts and confusion (`ClassificationResult`)."""
    probabilities, labels = scores.probabilities, scores.labels
    num_classes = probabilities.shape[1]
    own = probabilities.gather(1, labels[:, None])
    earlier = torch.arange(num_classes) < labels[:, None]
    rank = ((probabilities > own) | ((probabilities == own) & earlier)).sum(1)
    predicted = probabilities.argmax(1)
    pairs = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = pairs.view(num_classes, num_classes)
    counts, correct = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    accuracy = tuple(c / n if n else None for c, n in zip(correct, counts))
    present = [a for a in accuracy if a is not None]
    return {
        "top1": (rank < 1).double().mean().item(),
        "top5": (rank < 5).double().mean().item(),
        "mean_class_accuracy": sum(present) / len(present),
        "class_accuracy": accuracy,
        "class_counts": tuple(counts),
        "confusion": tuple(
            (true, guess, int(confusion[true, guess]))
            for true, guess in confusion.nonzero().tolist()
        ),
    }
