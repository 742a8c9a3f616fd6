"""Evaluation against brute force, scikit-learn and torchmetrics, over views and batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from onereel.errors import DataError, DecodeError, OnereelError
from onereel.evaluation.actions import part_accuracies
from onereel.evaluation.classification import ClassificationResult, evaluate_classification
from onereel.types import Batch, SampleKey


class FakeModel(nn.Module):
    """Reads the logits off the clip's first row; keeps as many tokens as the clip's last pixel says, of 8."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(
        self, clips: Tensor, scoring_clips: object = None, generators: object = None
    ) -> object:
        assert not self.training
        assert not torch.is_grad_enabled()
        lengths = tuple(int(n) for n in clips[:, 0, 0, -1, -1].tolist())
        logits = clips[:, 0, 0, 0, : self.num_classes]
        return SimpleNamespace(logits=logits, lengths=lengths, num_dense_tokens=8, grid=None)

    def macs(self, lengths: tuple[int, ...], grid: None) -> int:
        return sum(100 * n for n in lengths)


class FakeLoader:
    """The views of `logits` `(V, views, K)` in order."""

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        batch_size: int,
        broken: int | None = None,
    ) -> None:
        self.logits, self.labels, self.broken = logits, labels, broken
        keys = [SampleKey(0, i, v) for i in range(len(logits)) for v in range(logits.shape[1])]
        self.parts = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
        self.num_batches = len(self.parts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for keys in self.parts[start:]:
            if any(key.index == self.broken for key in keys):
                raise DecodeError("bad.mp4", "truncated", 3)
            clips = torch.zeros(len(keys), 1, 3, 2, max(8, self.logits.shape[2]))
            for clip, key in zip(clips, keys):
                clip[0, 0, 0, : self.logits.shape[2]] = self.logits[key.index, key.view]
                clip[0, 0, -1, -1] = 1 + key.index % 8
            labels = None
            if self.labels is not None:
                labels = self.labels[[key.index for key in keys]]
            yield Batch(clips, list(keys), labels=labels, num_clips=len(keys))


def identity(batch: Batch, device: torch.device) -> Batch:
    return batch


def evaluate(
    loader: FakeLoader, num_classes: int, num_views: int = 1, **options: object
) -> ClassificationResult:
    return evaluate_classification(
        FakeModel(num_classes),
        loader,
        identity,
        class_names=[f"class {k}" for k in range(num_classes)],
        device="cpu",
        num_views=num_views,
        **options,
    )


def case(num_videos: int, num_views: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_videos, num_views, num_classes, generator=generator) * 2
    return logits, torch.randint(num_classes, (num_videos,), generator=generator)


def matrix_of(result: ClassificationResult) -> np.ndarray:
    """Rows are true classes, columns predicted ones."""
    matrix = np.zeros((len(result.class_names),) * 2, int)
    for true, predicted, count in result.confusion:
        matrix[true, predicted] = count
    return matrix


@settings(deadline=None, max_examples=40)
@given(
    num_videos=st.integers(1, 30),
    num_views=st.integers(1, 4),
    num_classes=st.integers(1, 9),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
def test_equals_brute_force(
    num_videos: int, num_views: int, num_classes: int, batch_size: int, seed: int
) -> None:
    logits, labels = case(num_videos, num_views, num_classes, seed)
    result = evaluate(FakeLoader(logits, labels, batch_size), num_classes, num_views)
    top1 = top5 = 0
    confusion = np.zeros((num_classes, num_classes), int)
    for video, label in zip(logits, labels.tolist()):
        mean = sum(row.softmax(-1).double() for row in video) / num_views
        ranking = sorted(range(num_classes), key=lambda k: -mean[k].item())
        top1 += ranking[0] == label
        top5 += label in ranking[:5]
        confusion[label, ranking[0]] += 1
    assert result.top1 == pytest.approx(top1 / num_videos)
    assert result.top5 == pytest.approx(top5 / num_videos)
    assert (matrix_of(result) == confusion).all()
    assert result.num_videos == num_videos
    assert result.class_counts == tuple(confusion.sum(1))
    kept = [1 + i % 8 for i in range(num_videos)]
    assert result.kept_ratio == pytest.approx(sum(kept) / (8 * num_videos))
    assert result.macs_per_view == pytest.approx(100 * sum(kept) / num_videos)
    assert result.gflops_per_view == pytest.approx(2e-9 * result.macs_per_view)


def test_equals_scikit_learn_and_torchmetrics() -> None:
    logits, labels = case(num_videos=200, num_views=1, num_classes=7)
    result = evaluate(FakeLoader(logits, labels, 16), 7)
    scores, guesses = logits[:, 0].softmax(-1).numpy(), logits[:, 0].argmax(-1).numpy()
    assert result.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert result.mean_class_accuracy == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert result.class_accuracy == pytest.approx(recall_score(labels, guesses, average=None))
    assert (matrix_of(result) == confusion_matrix(labels, guesses)).all()
    for top_k, mine in ((1, result.top1), (5, result.top5)):
        theirs = multiclass_accuracy(
            torch.from_numpy(scores), labels, num_classes=7, average="micro", top_k=top_k
        )
        assert mine == pytest.approx(theirs.item())


def test_ties_go_to_the_class_that_comes_first() -> None:
    result = evaluate(FakeLoader(torch.zeros(8, 1, 8), torch.arange(8), 3), 8)
    assert (result.top1, result.top5) == (1 / 8, 5 / 8)
    assert {guess for _, guess, _ in result.confusion} == {0}


def test_a_class_without_videos_has_no_accuracy_and_does_not_count() -> None:
    logits = torch.eye(3)[:, None] * 9
    result = evaluate(FakeLoader(logits, torch.tensor([0, 1, 0]), 2), 3)
    assert result.class_accuracy == (0.5, 1.0, None)
    assert result.mean_class_accuracy == pytest.approx(0.75)


def test_a_file_holds_every_figure(tmp_path: Path) -> None:
    logits, labels = case(num_videos=9, num_views=2, num_classes=4)
    result = evaluate(FakeLoader(logits, labels, 4), 4, 2)
    path = tmp_path / "eval" / "val.json"
    result.save(path, {"weights": "run"})
    values = json.loads(path.read_text())
    assert values == {**result.to_dict(), "settings": {"weights": "run"}}
    assert values["gflops_per_view"] == result.gflops_per_view
    assert values["confusion"] == [list(entry) for entry in result.confusion]
    assert list(path.parent.iterdir()) == [path]


def test_text_names_views_and_flops() -> None:
    logits, labels = case(num_videos=9, num_views=2, num_classes=4)
    text = str(evaluate(FakeLoader(logits, labels, 4), 4, 2))
    assert "9 videos" in text
    assert "× 2 views" in text


def test_errors_name_the_sample() -> None:
    logits, labels = case(num_videos=4, num_views=1, num_classes=3)
    with pytest.raises(DataError, match="sample 0 has no class"):
        evaluate(FakeLoader(logits, None, 2), 3)
    with pytest.raises(DataError, match="sample 1 has no class"):
        evaluate(FakeLoader(logits, torch.tensor([0, 3, 1, 1]), 2), 3)
    with pytest.raises(DataError, match="views"):
        evaluate(FakeLoader(logits, labels, 2), 3, num_views=2)
    with pytest.raises(DecodeError, match=r"bad\.mp4, frame 3"):
        evaluate(FakeLoader(logits, labels, 2, broken=2), 3)
    logits[3, 0, 1] = float("nan")
    with pytest.raises(OnereelError, match="sample 3, view 0 is not finite"):
        evaluate(FakeLoader(logits, labels, 2), 3)


def test_the_model_gets_its_mode_back_and_progress_is_told() -> None:
    logits, labels = case(num_videos=5, num_views=1, num_classes=3)
    told: list[tuple[int, int]] = []
    model = FakeModel(3).train()
    evaluate_classification(
        model,
        FakeLoader(logits, labels, 2),
        identity,
        class_names="abc",
        device="cpu",
        on_batch=lambda done, total: told.append((done, total)),
    )
    assert model.training
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_actions_are_also_scored_by_verb_and_noun() -> None:
    logits, labels = case(num_videos=30, num_views=2, num_classes=4)
    names = ("0:0", "0:1", "10:1", "2:0")
    result = evaluate_classification(
        FakeModel(4),
        FakeLoader(logits, labels, 4),
        identity,
        class_names=names,
        device="cpu",
        num_views=2,
    )
    expected = part_accuracies(result.scores.probabilities, labels, names)
    assert {"verb_top1": result.verb_top1, "noun_top1": result.noun_top1} == expected
    assert result.figures().items() >= expected.items()
    assert str(result).startswith(
        f"verb {result.verb_top1:.2%}, noun {result.noun_top1:.2%}, top-1"
    )
    plain = evaluate(FakeLoader(logits, labels, 4), 4, 2)
    assert "verb" not in str(plain)
    assert set(plain.figures()) == set(result.figures()) - {"verb_top1", "noun_top1"}
