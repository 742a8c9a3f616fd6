"""Clips that travel as they were decoded: joined into batches, and on the device made what a decoder's `read` gives.

Scaling and colouring are about a third of what a clip costs to read from a chunk store (`benchmarks/decode.py`), and a
4:2:0 box has fewer bytes than the RGB clip made of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.types import YuvClips, YuvLayout
from onereel.video.planes import BT601

# Weights of red and blue in brightness by AVColorSpace number (ITU-T H.273, table 4); all others count as BT.601.
WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087)}
WEIGHTS |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
BT601_WEIGHTS = (0.299, 0.114)
_PIXELS_AT_ONCE = 1 << 24  # of float32 pictures in the making, some 200 MB each


def stacked(clips: Sequence[Tensor | YuvClips]) -> Tensor | YuvClips:
    """One batch of clips that share their frames and size, all of one kind: `(B, T, 3, H, W)`, or as decoded."""
    coded = [clip for clip in clips if isinstance(clip, YuvClips)]
    if not coded:
        return torch.stack([clip for clip in clips if isinstance(clip, Tensor)])
    layouts = tuple(layout for clip in coded for layout in clip.layouts)
    return replace(coded[0], values=torch.cat([clip.values for clip in coded]), layouts=layouts)


def black(num_frames: int, size: tuple[int, int]) -> YuvClips:
    """One black clip of the smallest picture."""
    layout = YuvLayout(2, 2, BT601, full_range=True, rotation=0, hflip=False)
    frame = torch.tensor([0] * 4 + [128] * 2, dtype=torch.uint8)
    return YuvClips(frame.repeat(num_frames), (layout,), num_frames, size)


def to_rgb(clips: YuvClips) -> Tensor:
    """uint8 RGB `(B, T, 3, H, W)`, upright, on the device of `clips`.

    The reference decoder's own order of things (`video/decode.py`): colours at the resolution of the video, each colour
    sample for its four pixels, then an antialiased bilinear resize. It differs from that by rounding alone.
    """
    num_frames, size = clips.num_frames, clips.size
    rgb = clips.values.new_empty((len(clips.layouts), num_frames, 3, *size))
    for first, last, layout, values in _runs(clips):
        frames = rgb[first:last].flatten(0, 1)
        at_once = max(1, _PIXELS_AT_ONCE // (layout.height * layout.width))
        y, u, v = layout.planes(values)
        for start in range(0, len(frames), at_once):
            part = slice(start, start + at_once)
            frames[part] = _pictures(y[part], u[part], v[part], layout, size)
    return rgb


def _runs(clips: YuvClips) -> Iterator[tuple[int, int, YuvLayout, Tensor]]:
    """Neighbours of one layout: the first clip, the clip after the last, the layout, their values."""
    first, start = 0, 0
    for i, layout in enumerate(clips.layouts):
        if i + 1 == len(clips.layouts) or clips.layouts[i + 1] != layout:
            stop = start + (i + 1 - first) * clips.num_frames * layout.frame_bytes
            yield first, i + 1, layout, clips.values[start:stop]
            first, start = i + 1, stop


def _pictures(y: Tensor, u: Tensor, v: Tensor, layout: YuvLayout, size: tuple[int, int]) -> Tensor:
    """uint8 `(F, 3, H, W)`, upright."""
    turned = layout.rotation in (90, 270)
    rgb = _colored(y, u, v, layout)
    coded = size[::-1] if turned else size
    if coded != rgb.shape[-2:]:
        rgb = F.interpolate(rgb, coded, mode="bilinear", antialias=True)
    if layout.rotation:
        rgb = torch.rot90(rgb, -layout.rotation // 90, (-2, -1))
    if layout.hflip:
        rgb = rgb.flip(-1)
    return rgb.round_().clamp_(0, 255).byte()


def _colored(y: Tensor, u: Tensor, v: Tensor, layout: YuvLayout) -> Tensor:
    """float32 `(F, 3, h, w)` in 0..255 (ITU-R BT.601 and its kin: R - Y and B - Y are what u and v are made of)."""
    red, blue = WEIGHTS.get(layout.color_space, BT601_WEIGHTS)
    green = 1 - red - blue
    darkest, luma, chroma = (0, 255, 255) if layout.full_range else (16, 219, 224)
    y = y[:, None].float().sub_(darkest).mul_(255 / luma)
    b = u[:, None].float().sub_(128).mul_(2 * (1 - blue) * 255 / chroma)
    r = v[:, None].float().sub_(128).mul_(2 * (1 - red) * 255 / chroma)
    g = -(blue / green) * b - (red / green) * r
    differences = torch.cat([r, g, b], dim=1)
    return F.interpolate(differences, scale_factor=2, mode="nearest").add_(y).clamp_(0, 255)
