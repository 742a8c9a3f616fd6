"""Mixup of features: the draws and labels of mixup of pixels, with features in place of clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onereel.config import AugmentConfig
from onereel.data.augment import BatchAugment
from onereel.data.feature_augment import FeatureAugment
from onereel.errors import ConfigError
from onereel.types import Batch, FrameFeatures, SampleKey, TubeletGrid

MIXUP = AugmentConfig(mixup_alpha=0.8, mix_prob=0.7, hflip_prob=0.0)
SIZE, TIMES, DIM = 6, 4, 5


def features_of(values: torch.Tensor) -> FrameFeatures:
    """`(B, gt, D)` as a batch of clips with all their frames."""
    batch, times, _ = values.shape
    coordinates = torch.zeros(batch * times, 3, dtype=torch.int64)
    coordinates[:, 0] = torch.arange(times).repeat(batch)
    return FrameFeatures(
        values=values.flatten(0, 1),
        lengths=(times,) * batch,
        cu_seqlens=(torch.arange(batch + 1) * times).int(),
        coordinates=coordinates,
        grid=TubeletGrid(times, 1, 1),
    )


def batch_of(clips: torch.Tensor | FrameFeatures, epoch: int = 2) -> Batch:
    keys = [SampleKey(epoch, index) for index in range(SIZE)]
    return Batch(clips, keys, labels=torch.arange(SIZE) % 3, num_clips=SIZE)


@pytest.mark.parametrize("epoch", range(4))
def test_labels_and_shares_are_those_of_pixel_mixup(epoch: int) -> None:
    """With features that are pixels, everything is."""
    clips = torch.randint(0, 256, (SIZE, TIMES, 3, 2, 2), dtype=torch.uint8)
    plain = replace(MIXUP, mixup_alpha=0.0)
    pixels = BatchAugment(plain, None, 7, training=False)(batch_of(clips), "cpu").clips
    assert isinstance(pixels, torch.Tensor)
    mixed = BatchAugment(MIXUP, 3, 7, training=True)(batch_of(clips, epoch), "cpu")
    found = FeatureAugment(MIXUP, 3, 7)(batch_of(features_of(pixels.flatten(2)), epoch), "cpu")
    assert isinstance(found.clips, FrameFeatures)
    assert isinstance(mixed.clips, torch.Tensor)
    assert torch.equal(found.soft_labels, mixed.soft_labels)
    assert torch.equal(found.clips.values, mixed.clips.flatten(2).flatten(0, 1))
    assert not torch.equal(found.clips.values, pixels.flatten(2).flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_without_mixup_features_only_become_float32(dtype: torch.dtype) -> None:
    given = features_of(torch.randn(SIZE, TIMES, DIM).to(dtype))
    batch = batch_of(given)
    found = FeatureAugment(AugmentConfig(), None, 7)(batch, "cpu")
    assert isinstance(found.clips, FrameFeatures)
    assert found.soft_labels is None
    assert found.clips.values.dtype == torch.float32
    assert torch.equal(found.clips.values, given.values.float())
    assert batch.clips is given


def test_a_clip_alone_is_not_mixed() -> None:
    values = torch.randn(1, TIMES, DIM)
    batch = Batch(features_of(values), [SampleKey(0, 1)], labels=torch.tensor([2]), num_clips=1)
    found = FeatureAugment(MIXUP, 3, 7)(batch, "cpu")
    assert isinstance(found.clips, FrameFeatures)
    assert torch.equal(found.clips.values, values[0])
    assert found.soft_labels is not None
    assert found.soft_labels.tolist() == [[0, 0, 1]]


def test_mixing_needs_classes() -> None:
    with pytest.raises(ConfigError, match=r"augment\.mixup_alpha mixes labels"):
        FeatureAugment(MIXUP, None, 7)
