"""What is left of augmentation where a batch holds features: mixup, of features."""

from __future__ import annotations

import dataclasses

import torch

from onereel.config import AugmentConfig
from onereel.data.augment import draw_mixes, mix_clips, mix_labels, partner_distance
from onereel.errors import ConfigError
from onereel.types import Batch, FrameFeatures, Packed


class FeatureAugment:
    """What happens to a batch of cached features between loader and model: float32 on the device, and mixup.

    Clips, partners and shares are those that mixup of pixels would draw, and so are the labels. But a mixture of two
    clips' features is not the features of their mixture: it is another regulariser.

    Args:
        num_classes: for mixed labels; None where there are no classes, and then nothing may be mixed.

    Raises ConfigError for mixing without classes.
    """

    def __init__(self, config: AugmentConfig, num_classes: int | None, seed: int) -> None:
        self.config, self.num_classes, self.seed = config, num_classes, seed
        if config.mixup_alpha > 0 and num_classes is None:
            raise ConfigError(
                "augment.mixup_alpha mixes labels, and this run has none; set it to 0"
            )

    def __call__(self, batch: Batch, device: torch.device | str) -> Batch:
        """The batch on `device`; the batch given stays as it is. Mixing adds `soft_labels`."""
        labels = (
            batch.labels if batch.labels is None else batch.labels.to(device, non_blocking=True)
        )
        batch = dataclasses.replace(batch, labels=labels)
        assert isinstance(batch.clips, FrameFeatures)  # what the loader of a cache gives
        features = batch.clips.to(device, non_blocking=True)
        batch.clips = dataclasses.replace(features, values=features.values.float())
        if self.config.mixup_alpha > 0:
            self._mix(batch, batch.clips)
        return batch

    def _mix(self, batch: Batch, features: Packed) -> None:
        """Mix each chosen clip with its partner, frame by frame; every clip has all its frames (see `build`)."""
        assert batch.labels is not None  # checked with the number of classes
        assert self.num_classes is not None
        mixes = draw_mixes(batch.keys, self.config, self.seed, 0, 0)
        distance = partner_distance(batch.keys)
        clips = features.values.unflatten(0, (features.batch_size, -1))
        mixed = mix_clips(clips, mixes, distance).flatten(0, 1)
        batch.clips = dataclasses.replace(features, values=mixed)
        batch.soft_labels = mix_labels(batch.labels, self.num_classes, mixes, distance)
