"""Batch augmentation on the device: uint8 in, normalised float out; one draw per clip, the same for its frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.config import AugmentConfig
from onereel.data.randaugment import MAX_MAGNITUDE, blend, gray, per_color, rand_augment
from onereel.data.yuv import to_rgb
from onereel.errors import ConfigError, DataError
from onereel.seeding import numpy_generator
from onereel.types import Batch, Packed, SampleKey, YuvClips

# Random erasing: share of the area, and height over width (arXiv 1708.04896, section 3; timm's limits).
ERASE_AREA = (0.02, 1 / 3)
ERASE_RATIO = (0.3, 1 / 0.3)
# Share of mixed clips that get cutmix where mixup is on as well (VideoMAE: mixup_switch_prob).
SWITCH_PROB = 0.5


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels [top, bottom) x [left, right) of every frame."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def of(self, clip: Tensor) -> Tensor:
        """The view of `(..., H, W)` inside the box."""
        return clip[..., self.top : self.bottom, self.left : self.right]

    def holds(self, row: Tensor, column: Tensor) -> Tensor:
        """Whether pixels lie inside, by row and column."""
        inside_rows = (row >= self.top) & (row < self.bottom)
        return inside_rows & (column >= self.left) & (column < self.right)


@dataclass(frozen=True, slots=True)
class Mix:
    """How one clip is mixed with its partner: blended, or pasted over in `box`.

    Attributes:
        weight: the partner's share of pixels and label.
    """

    weight: float = 0.0
    box: Box | None = None


class BatchAugment:
    """What happens to a batch between loader and model.

    In training, in this order: mirroring, RandAugment, colour jitter, normalisation, erasing, mixup or cutmix. Each
    is drawn by (seed, epoch, index, view, its name), so switching one on or off leaves the draws of the others, and a
    clip looks the same on whatever rank and in whatever company; only its mixing partner is a clip of
    its batch, as `partner_distance` says. In testing, normalisation alone: exactly (x / 255 - mean) / std.

    Clips that come as they were decoded are coloured and scaled before all that. Where the loader selects tokens it has
    mirrored the clips too, and what is left is done on their kept patches: normalisation and erasing, to the same
    values.

    Args:
        num_classes: for mixed labels; None where there are no classes, and then nothing may be mixed.
        patch_size: pixels per side of the patches, where the loader selects tokens; None: clips are whole.
        num_epochs: as of `ClipReader`; mixing is drawn anew in every epoch.

    Raises ConfigError for settings out of range, mixing without classes, or what patches alone don't allow.
    """

    def __init__(
        self,
        config: AugmentConfig,
        num_classes: int | None,
        seed: int,
        training: bool,
        patch_size: int | None = None,
        num_epochs: int = 0,
    ) -> None:
        self.config, self.num_classes, self.num_epochs = config, num_classes, num_epochs
        self.seed, self.training, self.patch_size = seed, training, patch_size
        if training and patch_size is not None:
            _check_works_on_patches(config)
        self.mixes = training and (config.mixup_alpha > 0 or config.cutmix_alpha > 0)
        if self.mixes and num_classes is None:
            raise ConfigError(
                "augment.mixup_alpha and cutmix_alpha mix labels, and this run has none; set both to 0"
            )
        if not 0 <= config.randaugment_magnitude <= MAX_MAGNITUDE:
            raise ConfigError(
                f"augment.randaugment_magnitude is {config.randaugment_magnitude}; allowed: 0 to 10"
            )
        if not 0 <= config.color_jitter <= 1:
            raise ConfigError(f"augment.color_jitter is {config.color_jitter}; allowed: 0 to 1")

    def __call__(self, batch: Batch, device: torch.device | str) -> Batch:
        """The batch on `device`, `clips` normalised float32; the batch given stays as it is.

        Mixing adds `soft_labels`. `scoring_clips` is set where a clip of the batch was erased: the same clips,
        mixed likewise (the model must see its partner's motion), but without the erased boxes.
        """
        labels = (
            batch.labels if batch.labels is None else batch.labels.to(device, non_blocking=True)
        )
        batch = dataclasses.replace(batch, labels=labels)
        keys = [key.drawn(self.num_epochs) for key in batch.keys]
        mean, std = (
            per_color(values, torch.device(device))
            for values in (self.config.mean, self.config.std)
        )
        clips = batch.clips.to(device, non_blocking=True)
        if isinstance(clips, Packed):
            batch.clips = self._patches(clips, keys, mean, std)
            return batch
        if isinstance(clips, YuvClips):
            clips = to_rgb(clips)
        clips = clips.float().div_(255)
        if self.training:
            mirror(clips, keys, self.config.hflip_prob, self.seed)
            self._rand_augment(clips, keys, mean)
            self._color_jitter(clips, keys)
        batch.clips = clips.sub_(mean).div_(std)
        if self.training:
            batch.scoring_clips = self._erase(clips, keys)
        if self.mixes:
            self._mix(batch, clips)
        return batch

    def _patches(self, patches: Packed, keys: list[SampleKey], mean: Tensor, std: Tensor) -> Packed:
        """Normalised float patches, erased where the boxes of the chosen clips lie."""
        values = patches.values.float().div_(255)
        values.unflatten(1, (3, -1, 1)).sub_(mean).div_(std)  # pixels in order (c, t, h, w)
        chosen = _chosen(keys, self.config.erase_prob, self.seed, "erase") if self.training else []
        if chosen:
            self._erase_patches(values, patches, keys, chosen)
        return dataclasses.replace(patches, values=values)

    def _erase_patches(
        self, values: Tensor, patches: Packed, keys: list[SampleKey], chosen: list[int]
    ) -> None:
        side = self.patch_size
        assert side is not None  # who packs in training says so
        pixel = torch.arange(side, device=values.device)
        for i in chosen:
            box = self._erase_box(patches.grid.gh * side, patches.grid.gw * side, keys[i])
            first = sum(patches.lengths[:i])
            clip = slice(first, first + patches.lengths[i])
            rows, columns = (
                patches.coordinates[clip, axis, None] * side + pixel for axis in (1, 2)
            )
            inside = box.holds(rows[:, :, None], columns[:, None, :])
            values[clip].unflatten(1, (-1, side, side)).masked_fill_(inside[:, None], 0)

    def _generator(self, key: SampleKey, purpose: str) -> np.random.Generator:
        return numpy_generator(self.seed, key.epoch, key.index, key.view, purpose)

    def _rand_augment(self, clips: Tensor, keys: list[SampleKey], mean: Tensor) -> None:
        num_ops, magnitude = self.config.randaugment_num_ops, self.config.randaugment_magnitude
        for i, key in enumerate(keys if num_ops else []):
            generator = self._generator(key, "randaugment")
            clips[i] = rand_augment(clips[i], generator, num_ops, magnitude, mean)

    def _color_jitter(self, clips: Tensor, keys: list[SampleKey]) -> None:
        """Brightness, contrast, saturation, in this order, each by a factor of 1 - jitter to 1 + jitter."""
        jitter = self.config.color_jitter
        for i, key in enumerate(keys if jitter else []):
            brightness, contrast, saturation = self._generator(key, "color_jitter").uniform(
                1 - jitter, 1 + jitter, 3
            )
            clip = clips[i].mul_(brightness).clamp_(0, 1)
            clip.copy_(blend(gray(clip).mean(), clip, contrast))
            clip.copy_(blend(gray(clip), clip, saturation))

    def _erase(self, clips: Tensor, keys: list[SampleKey]) -> Tensor | None:
        """Set one box of the chosen clips to 0, the mean colour after normalisation; gives the clips before, or None.

        The published mode fills with noise drawn per pixel and frame, which every difference-based selector takes
        for motion (RLT keeps .58 instead of .44 of the tokens).
        """
        chosen = _chosen(keys, self.config.erase_prob, self.seed, "erase")
        before = clips.clone() if chosen else None
        height, width = clips.shape[-2:]
        for i in chosen:
            self._erase_box(height, width, keys[i]).of(clips[i]).zero_()
        return before

    def _erase_box(self, height: int, width: int, key: SampleKey) -> Box:
        return erase_box(height, width, self._generator(key, "erase_box")) or Box(0, 0, 0, 0)

    def _mix(self, batch: Batch, clips: Tensor) -> None:
        """Mix each chosen clip with its partner, and the labels with it."""
        if batch.labels is None or self.num_classes is None:
            raise DataError("mixup and cutmix need a label for every clip; set their alphas to 0")
        height, width = clips.shape[-2:]
        mixes = draw_mixes(batch.keys, self.config, self.seed, height, width)
        distance = partner_distance(batch.keys)
        batch.clips = mix_clips(clips, mixes, distance)
        if batch.scoring_clips is not None:
            batch.scoring_clips = mix_clips(batch.scoring_clips, mixes, distance)
        batch.soft_labels = mix_labels(batch.labels, self.num_classes, mixes, distance)


def mirror(clips: Tensor, keys: Sequence[SampleKey], prob: float, seed: int) -> None:
    """Mirror, in place, those of `clips (B, ..., W)` that are drawn with probability `prob`."""
    for i in _chosen(keys, prob, seed, "hflip"):
        clips[i] = clips[i].flip(-1)


def _chosen(keys: Sequence[SampleKey], prob: float, seed: int, purpose: str) -> list[int]:
    """Positions of the clips that an operation with this probability falls on."""
    if prob <= 0:
        return []
    draws = (numpy_generator(seed, k.epoch, k.index, k.view, purpose).random() for k in keys)
    return [i for i, draw in enumerate(draws) if draw < prob]


def _check_works_on_patches(config: AugmentConfig) -> None:
    """Raise ConfigError for an augmentation that needs whole clips, or changes them before tokens are selected."""
    for name in ("randaugment_num_ops", "color_jitter", "mixup_alpha", "cutmix_alpha"):
        if getattr(config, name):
            raise ConfigError(
                f"augment.{name} is {getattr(config, name)}, and needs whole clips on the device; with tokens.where "
                f"'loader' only kept patches travel there. Set augment.{name} to 0, or tokens.where to 'device'"
            )


def partner_distance(keys: list[SampleKey]) -> int:
    """How many clips before it, the first after the last, each clip's mixing partner lies.

    The smallest distance at which the fewest clips meet a view of their own sample: 1, or the number of views that lie
    side by side (repeated augmentation).
    """
    indices = np.array([key.index for key in keys])

    def num_own(distance: int) -> int:
        return int((indices == np.roll(indices, distance)).sum())

    return min(range(1, len(keys)), key=num_own, default=1)


def draw_mixes(
    keys: list[SampleKey], config: AugmentConfig, seed: int, height: int, width: int
) -> list[Mix]:
    """How each clip of a batch is mixed; one that is alone is not."""
    mixes = [Mix()] * len(keys)
    if len(mixes) > 1:
        for i in _chosen(keys, config.mix_prob, seed, "mix"):
            key = keys[i]
            generator = numpy_generator(seed, key.epoch, key.index, key.view, "mix_how")
            mixes[i] = draw_mix(height, width, config, generator)
    return mixes


def mix_labels(labels: Tensor, num_classes: int, mixes: list[Mix], distance: int) -> Tensor:
    """Shares `(B, num_classes)` of the classes in clips that `mix_clips` mixed."""
    one_hot = F.one_hot(labels, num_classes).float()
    weights = torch.tensor([[mix.weight] for mix in mixes], pin_memory=one_hot.is_cuda)
    weights = weights.to(one_hot.device, non_blocking=True)
    return one_hot.lerp(one_hot.roll(distance, 0), weights)


def mix_clips(clips: Tensor, mixes: list[Mix], distance: int) -> Tensor:
    """New `(B, ...)` clips, each mixed as `mixes` says with the one `distance` before it."""
    mixed = clips.clone()
    for i, mix in enumerate(mixes):
        partner = clips[i - distance]
        if mix.box is not None:
            mix.box.of(mixed[i]).copy_(mix.box.of(partner))
        elif mix.weight:
            mixed[i].lerp_(partner, mix.weight)
    return mixed


def draw_mix(height: int, width: int, config: AugmentConfig, generator: np.random.Generator) -> Mix:
    """Mixup (arXiv 1710.09412) or cutmix (1905.04899), half each where both are on."""
    cutmix_prob = SWITCH_PROB if config.mixup_alpha > 0 else 1.0
    if config.cutmix_alpha > 0 and generator.random() < cutmix_prob:
        share = 1 - generator.beta(config.cutmix_alpha, config.cutmix_alpha)
        box = cutmix_box(height, width, share, generator)
        return Mix(box.area / (height * width), box)
    return Mix(1 - generator.beta(config.mixup_alpha, config.mixup_alpha))


def cutmix_box(height: int, width: int, share: float, generator: np.random.Generator) -> Box:
    """A box with `share` of the area around a uniform centre, cut at the frame's edge (1905.04899, equation 2)."""
    h, w = round(height * math.sqrt(share)), round(width * math.sqrt(share))
    top = int(generator.integers(height)) - h // 2
    left = int(generator.integers(width)) - w // 2
    return Box(max(top, 0), min(top + h, height), max(left, 0), min(left + w, width))


def erase_box(height: int, width: int, generator: np.random.Generator) -> Box | None:
    """The box that random erasing clears, or None if ten draws of area and shape don't fit into the frame."""
    for _ in range(10):
        area = height * width * generator.uniform(*ERASE_AREA)
        ratio = math.exp(generator.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top = int(generator.integers(height - h + 1))
            left = int(generator.integers(width - w + 1))
            return Box(top, top + h, left, left + w)
    return None
