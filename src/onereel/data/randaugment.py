"""RandAugment (Cubuk et al., arXiv 1909.13719) for clips: one operation and strength for all frames.

The paper's 14 operations, chosen uniformly, each at the same magnitude of 0 to 10, those with a direction in a random
one. Statistics (mean, extremes, histogram) are the clip's, not each frame's: otherwise a still background would
flicker and no token of it would look redundant. Regions without source pixels get `fill`.

VideoMAE uses timm's variant instead (each operation skipped half of the time, noisy magnitude).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MAX_MAGNITUDE = 10.0
# Ranges at full magnitude: AutoAugment (arXiv 1805.09501), table 6; translation relative to its 331-pixel images.
MAX_DEGREES = 30.0
MAX_SHEAR = 0.3
MAX_TRANSLATION = 150 / 331
MAX_ENHANCEMENT = 0.9
MAX_POSTERIZE_BITS = 4
# ITU-R 601 luma, as in PIL.
LUMA = (0.299, 0.587, 0.114)


def rand_augment(
    clip: Tensor, generator: np.random.Generator, num_ops: int, magnitude: float, fill: Tensor
) -> Tensor:
    """Apply `num_ops` random operations in turn.

    Args:
        clip: float `(T, 3, H, W)` in 0..1; not changed.
        magnitude: 0 to 10.
        fill: `(3, 1, 1)` colour in 0..1 of regions that come from outside the frame.

    Returns float `(T, 3, H, W)` in 0..1.
    """
    names = tuple(OPERATIONS)
    for name in generator.integers(len(names), size=num_ops):
        sign = 1 if generator.random() < 0.5 else -1
        clip = OPERATIONS[names[name]](clip, magnitude / MAX_MAGNITUDE, sign, fill)
    return clip


@lru_cache(maxsize=16)
def per_color(
    values: tuple[float, float, float], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`(3, 1, 1)`, kept on the device: to send it with each clip would wait for all that the device has to do."""
    return torch.tensor(values, device=device, dtype=dtype).view(3, 1, 1)


def gray(clips: Tensor) -> Tensor:
    """Luma of `(..., 3, H, W)` as `(..., 1, H, W)`."""
    return (clips * per_color(LUMA, clips.device, clips.dtype)).sum(-3, keepdim=True)


def blend(other: Tensor, clip: Tensor, factor: float | Tensor) -> Tensor:
    """`other` at factor 0, `clip` at 1, beyond `clip` above 1; limited to 0..1."""
    return (clip - other).mul_(factor).add_(other).clamp_(0, 1)


def affine(clip: Tensor, matrix: tuple[tuple[float, float, float], ...], fill: Tensor) -> Tensor:
    """Take each pixel from `matrix` times (x, y, 1), in pixels from the frame's centre; bilinear."""
    height, width = clip.shape[-2:]
    (a, b, x), (c, d, y) = matrix
    theta = [[a, b * height / width, 2 * x / width], [c * width / height, d, 2 * y / height]]
    sent = torch.tensor([theta], dtype=clip.dtype, pin_memory=clip.is_cuda)
    sent = sent.to(clip.device, non_blocking=True)
    grid = F.affine_grid(sent, [1, 1, height, width], align_corners=False)
    # Zeros come in from outside, so the fill colour is made zero.
    planes = (clip - fill).flatten(0, 1)[None]
    moved = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.view_as(clip).add_(fill)


def rotate(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    angle = math.radians(sign * strength * MAX_DEGREES)
    cos, sin = math.cos(angle), math.sin(angle)
    return affine(clip, ((cos, -sin, 0), (sin, cos, 0)), fill)


def shear_x(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    return affine(clip, ((1, sign * strength * MAX_SHEAR, 0), (0, 1, 0)), fill)


def shear_y(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    return affine(clip, ((1, 0, 0), (sign * strength * MAX_SHEAR, 1, 0)), fill)


def translate_x(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    shift = sign * strength * MAX_TRANSLATION * clip.shape[-1]
    return affine(clip, ((1, 0, shift), (0, 1, 0)), fill)


def translate_y(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    shift = sign * strength * MAX_TRANSLATION * clip.shape[-2]
    return affine(clip, ((1, 0, 0), (0, 1, shift)), fill)


def brightness(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    return (clip * (1 + sign * strength * MAX_ENHANCEMENT)).clamp_(0, 1)


def color(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    return blend(gray(clip), clip, 1 + sign * strength * MAX_ENHANCEMENT)


def contrast(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    return blend(gray(clip).mean(), clip, 1 + sign * strength * MAX_ENHANCEMENT)


def sharpness(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    """Towards or away from PIL's 3x3 smoothing; the frame's border stays as it is."""
    kernel = torch.ones(1, 1, 3, 3, device=clip.device, dtype=clip.dtype)
    kernel[..., 1, 1] = 5
    smooth = clip.clone()
    inner = F.conv2d(clip.flatten(0, 1)[:, None], kernel / 13)
    smooth[..., 1:-1, 1:-1] = inner.view(*clip.shape[:2], *inner.shape[-2:])
    return blend(smooth, clip, 1 + sign * strength * MAX_ENHANCEMENT)


def posterize(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    """Keep the upper 8 to 4 bits."""
    step = 2 ** round(strength * MAX_POSTERIZE_BITS)
    return (clip * 255).round_().div_(step).floor_().mul_(step / 255)


def solarize(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    """Invert what is brighter than a threshold that falls from white to black."""
    return torch.where(clip >= 1 - strength, 1 - clip, clip) if strength else clip


def auto_contrast(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    low, high = clip.amin((0, 2, 3), keepdim=True), clip.amax((0, 2, 3), keepdim=True)
    flat = high <= low
    span = torch.where(flat, torch.ones_like(high), high - low)
    return torch.where(flat, clip, (clip - low) / span)


def equalize(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    """Spread each channel's 256-bin histogram evenly, with PIL's lookup table."""
    levels = (clip * 255).round_().long()
    tables = torch.stack([_equalizing_table(levels[:, c]) for c in range(3)])
    return torch.stack([tables[c][levels[:, c]] for c in range(3)], dim=1)


def identity(clip: Tensor, strength: float, sign: int, fill: Tensor) -> Tensor:
    return clip


def _equalizing_table(levels: Tensor) -> Tensor:
    counts = torch.bincount(levels.flatten(), minlength=256)
    index = torch.arange(256, device=levels.device)
    last = torch.where(counts > 0, index, 0).argmax()
    step = (counts.sum() - counts[last]) // 255
    table = (counts.cumsum(0) - counts + step // 2) // step.clamp(min=1)
    return torch.where(step == 0, index, table.clamp(max=255)).float() / 255


Operation = Callable[[Tensor, float, int, Tensor], Tensor]
OPERATIONS: dict[str, Operation] = {
    f.__name__: f
    for f in (
        *(identity, auto_contrast, equalize, rotate, solarize, color, posterize),
        *(contrast, brightness, sharpness, shear_x, shear_y, translate_x, translate_y),
    )
}
