"""Pooling and classification per clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onereel.errors import ConfigError
from onereel.models.heads import ClassificationHead
from onereel.models.pooling import pool_tokens
from onereel.tokens.packing import cumulative_lengths
from onereel.types import Packed, TubeletGrid

LENGTHS = (3, 1, 5)


def features(width: int = 6) -> Packed:
    values = torch.randn(9, width)
    bounds = cumulative_lengths(LENGTHS, values.device)
    return Packed(values, LENGTHS, bounds, torch.zeros(9, 3).long(), TubeletGrid(4, 2, 2))


def test_mean_pools_over_a_clips_own_tokens() -> None:
    packed = features()
    expected = torch.stack([clip.mean(0) for clip in packed.values.split(LENGTHS)])
    assert torch.allclose(pool_tokens(packed, "mean"), expected, atol=1e-6)


def test_cls_takes_the_first_token() -> None:
    packed = features()
    assert torch.equal(pool_tokens(packed, "cls"), packed.values[[0, 3, 4]])


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_logits_are_linear_in_the_pooled_feature(pool: Any) -> None:
    head, packed = ClassificationHead(6, 4, pool), features()
    assert torch.equal(head(packed), head.fc(pool_tokens(packed, pool)))
    assert head.macs((2, 5, 1)) == 3 * 6 * 4


def test_the_pooled_feature_is_normalised_where_asked() -> None:
    head, packed = ClassificationHead(6, 4, norm=True), features()
    pooled = pool_tokens(packed, "mean")
    centred = pooled - pooled.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(head(packed), head.fc(normed), atol=1e-6)


def test_dropout_is_drawn_per_clip_and_off_in_evaluation() -> None:
    head, packed = ClassificationHead(4000, 2, dropout=0.25), features(4000)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    scale = head._dropout_scale(pool_tokens(packed, "mean"), seeds)
    assert torch.equal(scale.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert ((scale == 0).float().mean(1) - 0.25).abs().max() < 0.04
    assert not torch.equal(scale[0], scale[1])
    with pytest.raises(ValueError, match=r"one generator per clip \(3\)"):
        head(packed)
    head.eval()
    assert torch.equal(head(packed), head.fc(pool_tokens(packed, "mean")))


@pytest.mark.parametrize(("num_classes", "dropout"), [(0, 0.0), (4, 1.0), (4, -0.1)])
def test_settings_out_of_range_are_refused(num_classes: int, dropout: float) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ClassificationHead(6, num_classes, dropout=dropout)
