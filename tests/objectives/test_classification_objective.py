"""Cross-entropy over a model that is nothing but a table of logits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onereel.errors import DataError
from onereel.objectives import ClassificationObjective
from onereel.types import Batch, SampleKey


class Table(nn.Module):
    """Clip i has row i of a table for logits, i + 1 tokens of 10, and 100 multiply-adds per token."""

    def __init__(self, num_clips=4, num_classes=3):
        super().__init__()
        self.encoder = SimpleNamespace(depth=2, temporal_depth=0)
        self.table = nn.Parameter(
            torch.randn(num_clips, num_classes, generator=torch.Generator().manual_seed(0))
        )
        self.seen = None

    def forward(self, clips, scoring_clips=None, generators=None):
        self.seen = (scoring_clips, [torch.rand(2, generator=g) for g in generators])
        lengths = tuple(range(1, len(clips) + 1))
        return SimpleNamespace(
            logits=self.table[: len(clips)], lengths=lengths, num_dense_tokens=10, grid=None
        )

    def step_macs(self, lengths, backward, grid, *, from_frames):
        return (1 + backward) * 100 * sum(lengths)


def make_batch(size=4, labels=(0, 2, 1, 1), **fields):
    keys = [SampleKey(0, i) for i in range(size)]
    labels = None if labels is None else torch.tensor(labels[:size])
    clips = torch.zeros(size, 1, 1, 1, 1)
    return Batch(clips, keys, labels=labels, **{"num_clips": size, **fields})


def test_the_loss_is_the_mean_of_minus_log_p():
    model = Table()
    out = ClassificationObjective(model)(make_batch())
    log_p = model.table.log_softmax(1)
    expected = -(log_p[0, 0] + log_p[1, 2] + log_p[2, 1] + log_p[3, 1]) / 4
    torch.testing.assert_close(out["loss"], expected)
    hits = (model.table.argmax(1) == torch.tensor([0, 2, 1, 1])).float().mean()
    assert out["top1"].item() == hits.item()
    assert not out["top1"].requires_grad


def test_smoothing_spreads_a_share_over_all_classes():
    model = Table()
    out = ClassificationObjective(model, label_smoothing=0.3)(make_batch())
    target = torch.full((4, 3), 0.1)
    target[torch.arange(4), torch.tensor([0, 2, 1, 1])] += 0.7
    torch.testing.assert_close(out["loss"], -(target * model.table.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_labels_that_are_hard_give_the_loss_of_the_labels(smoothing):
    objective = ClassificationObjective(Table(), smoothing)
    soft = nn.functional.one_hot(torch.tensor([0, 2, 1, 1]), 3).float()
    hard = objective(make_batch())
    mixed = objective(make_batch(soft_labels=soft))
    torch.testing.assert_close(mixed["loss"], hard["loss"])
    assert mixed["top1"] == hard["top1"]


def test_a_mixed_clip_counts_for_the_label_with_the_larger_weight():
    model = Table(1)
    top = int(model.table.argmax())
    soft = torch.full((1, 3), 0.2)
    soft[0, top] = 0.6
    batch = make_batch(1, labels=((top + 1) % 3,), soft_labels=soft)
    assert ClassificationObjective(model)(batch)["top1"].item() == 1.0


def test_a_batch_without_clips_weighs_nothing_and_reaches_every_parameter():
    model = Table()
    out = ClassificationObjective(model)(make_batch(1, num_clips=0))
    assert out["loss"].item() == 0.0
    out["loss"].backward()
    assert torch.equal(model.table.grad, torch.zeros_like(model.table))
    assert out["stats"] == {"num_tokens": 0, "num_tokens_dense": 0, "flops": 0.0}
    with_clips = ClassificationObjective(model)(make_batch())
    assert out.keys() == with_clips.keys()


def test_statistics_are_host_numbers_and_flops_count_both_passes():
    out = ClassificationObjective(Table())(make_batch())
    assert out["stats"] == {"num_tokens": 10, "num_tokens_dense": 40, "flops": 2.0 * 1000 * 3}


def test_the_loss_is_in_float32_under_autocast():
    model = Table()
    model.table.data = model.table.data.bfloat16()
    assert ClassificationObjective(model)(make_batch())["loss"].dtype == torch.float32


def test_what_scores_and_draws_reaches_the_model():
    model = Table()
    objective = ClassificationObjective(model, seed=3)
    scoring = torch.ones(4, 1, 1, 1, 1)
    objective(make_batch(scoring_clips=scoring))
    seen, first = model.seen
    assert seen is scoring
    objective(make_batch())
    assert all(torch.equal(a, b) for a, b in zip(first, model.seen[1], strict=True))


def test_no_labels_is_an_error_with_the_remedy():
    with pytest.raises(DataError, match="label"):
        ClassificationObjective(Table())(make_batch(labels=None))
