"""Pair losses against plain formulas over the whole matrix of similarities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from onereel.objectives.contrastive import MAX_LOGIT_SCALE, InfoNce, SigmoidLoss
from onereel.objectives.max_margin import MaxMargin

PUBLISHED = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.6, 0.3], [0.2, 0.55, 0.4]])
"""A worked example: max-margin 0.1, InfoNCE at scale 1/0.07 1.027539."""


def mean_loss(loss, similarities):
    """The loss of a whole matrix: all rows, nothing ignored."""
    own = torch.arange(len(similarities))
    nothing = torch.zeros_like(similarities, dtype=torch.bool)
    return loss(similarities, similarities.T, own, nothing).mean()


def test_published_figures_of_info_nce():
    loss = InfoNce()
    assert loss.logit_scale.item() == pytest.approx(2.659260, abs=1e-6)
    assert loss.logit_scale.exp().item() == pytest.approx(14.285714, abs=1e-5)
    assert pytest.approx(4.605170, abs=1e-6) == MAX_LOGIT_SCALE
    assert mean_loss(loss, PUBLISHED).item() == pytest.approx(1.027539, abs=1e-5)
    for num_pairs, expected in ((8, 2.079442), (2048, 7.624619)):
        same = torch.full((num_pairs, num_pairs), 0.3)
        assert mean_loss(loss, same).item() == pytest.approx(expected, abs=1e-4)


def test_published_figure_of_max_margin():
    assert mean_loss(MaxMargin(0.2), PUBLISHED).item() == pytest.approx(0.1, abs=1e-6)


def loop_max_margin(similarities, margin):
    total, n = 0.0, len(similarities)
    for i in range(n):
        for j in range(n):
            if i != j:
                total += max(0.0, margin - similarities[i][i] + similarities[i][j])
                total += max(0.0, margin - similarities[i][i] + similarities[j][i])
    return total / (2 * n * (n - 1))


def loop_sigmoid(similarities, scale, bias):
    total, n = 0.0, len(similarities)
    for i in range(n):
        for j in range(n):
            sign = 1 if i == j else -1
            logit = sign * (scale * similarities[i][j] + bias)
            total += math.log1p(math.exp(-logit)) if logit > -30 else -logit
    return total / n


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_losses_are_their_loops(num_pairs, seed):
    similarities = torch.rand(num_pairs, num_pairs, generator=torch.Generator().manual_seed(seed))
    similarities = 2 * similarities - 1
    rows = similarities.tolist()
    assert mean_loss(MaxMargin(0.3), similarities).item() == pytest.approx(
        loop_max_margin(rows, 0.3), abs=1e-5
    )
    assert mean_loss(SigmoidLoss(), similarities).item() == pytest.approx(
        loop_sigmoid(rows, 10.0, -10.0), rel=1e-4
    )
    logits, target = similarities / 0.07, torch.arange(num_pairs)
    symmetric = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(mean_loss(InfoNce(), similarities), symmetric)


@pytest.mark.parametrize("loss", [InfoNce(), SigmoidLoss(), MaxMargin()])
def test_ignored_pairs_are_as_if_they_were_not_there(loss):
    """Padding columns and ignored pairs change nothing, whatever stands in them."""
    similarities = torch.rand(5, 5)
    own = torch.arange(3)
    kept = similarities[:3, :3]
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    expected = loss(kept, kept.T, own, nothing)
    ignored = torch.zeros(3, 5, dtype=torch.bool)
    ignored[:, 3:] = True
    wide = similarities[:3].clone().requires_grad_()
    other = torch.cat([kept.T, torch.full((3, 2), 0.99)], dim=1)
    losses = loss(wide, other, own, ignored)
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert torch.all(wide.grad[:, 3:] == 0)
    assert torch.all(wide.grad.isfinite())


def test_the_scale_is_kept_within_its_published_bounds():
    loss = InfoNce()
    for value, kept in ((9.0, MAX_LOGIT_SCALE), (-2.0, 0.0), (1.5, 1.5)):
        loss.logit_scale.data.fill_(value)
        loss.clamp()
        assert loss.logit_scale.item() == pytest.approx(kept)
    assert not InfoNce(freeze_scale=True).logit_scale.requires_grad


@pytest.mark.parametrize("loss", [InfoNce(), SigmoidLoss(), MaxMargin()])
def test_wrong_shapes_are_refused(loss):
    rows, own = torch.rand(3, 5), torch.arange(3)
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    for wrong in (
        (rows, rows.T, own, nothing),
        (rows, rows, own[:2], nothing),
        (rows, rows, own, nothing[:, :1]),
        (rows[0], rows[0], own, nothing[0]),
        (rows, rows, own, nothing.float()),
        (rows, rows, own.int(), nothing),
    ):
        with pytest.raises(ValueError, match="allowed"):
            loss(*wrong)
