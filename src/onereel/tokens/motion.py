"""How a hand-held or moving camera shifts the picture, so that what only moves with it need not count as new.

One translation per pair of frames: phase correlation finds it to the pixel, a few steps of robust Lucas-Kanade to
the tenth of one. Zoom, rotation and parallax are not modelled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.tokens.pixels import average_cells, patch_difference

PICTURE_SIDE = 56
"""Pixels along the shorter side, at least, of the grey picture that shifts are estimated on."""
SMALLEST_SIDE = 16
"""Pictures with a shorter side hold too little to estimate from."""
NUM_STEPS = 4
"""Steps of refinement; on real pictures the error is then below 0.2 pixels of a 224-pixel frame."""


def compensated_difference(
    before: Tensor, now: Tensor, patch_size: int, noise_cell: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Differences in place and after following the camera, and how far it moved.

    Args:
        before: normalised float frames `(B, K, C, H, W)`.
        now: likewise, each to be compared with the frame of `before` at the same index.
        noise_cell: as of `patch_difference`.

    Returns:
        `patch_difference(now, before)`, `patch_difference(now, before shifted along)`, both `(B, K, gh, gw)`, and
        the shift, float32 `(B, K, 2)`: pixels down and right that the picture moved.
    """
    shift = estimate_shift(before, now)
    moved = shift_frames(before.flatten(0, 1), shift.flatten(0, 1)).unflatten(0, before.shape[:2])
    in_place = patch_difference(now, before, patch_size, noise_cell=noise_cell)
    followed = patch_difference(now, moved, patch_size, noise_cell=noise_cell)
    return in_place, followed, shift


def estimate_shift(before: Tensor, now: Tensor) -> Tensor:
    """How far the picture moved between frames `(B, K, C, H, W)`: float32 `(B, K, 2)` pixels down and right."""
    side = min(before.shape[-2:])
    if side < SMALLEST_SIDE:
        return before.new_zeros(*before.shape[:2], 2)
    cell = max(1, side // PICTURE_SIDE)
    grey_before, grey_now = (
        average_cells(frames.mean(2, keepdim=True), cell).flatten(0, 2) for frames in (before, now)
    )
    shift = _refined(grey_before, grey_now, _correlated(grey_before, grey_now))
    return (shift * cell).unflatten(0, before.shape[:2])


def shift_frames(frames: Tensor, shift: Tensor) -> Tensor:
    """`frames (M, C, H, W)` moved by `shift (M, 2)` pixels, bilinear; what enters repeats the edge."""
    height, width = frames.shape[-2:]
    # grid_sample counts from -1 to 1 across the frame.
    rows = _centres(height, frames) - shift[:, :1] * (2 / height)
    columns = _centres(width, frames) - shift[:, 1:] * (2 / width)
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, height, -1),
            rows[:, :, None].expand(-1, -1, width),
        ],
        dim=-1,
    )
    return F.grid_sample(frames, grid.to(frames.dtype), padding_mode="border", align_corners=False)


def _centres(length: int, like: Tensor) -> Tensor:
    return (torch.arange(length, device=like.device) + 0.5) * (2 / length) - 1


def _correlated(before: Tensor, now: Tensor) -> Tensor:
    """Whole pixels of shift between grey pictures `(M, h, w)` by phase correlation: float32 `(M, 2)`."""
    height, width = before.shape[-2:]
    window = torch.outer(
        *(torch.hann_window(n, periodic=False, device=before.device) for n in (height, width))
    )
    a, b = (torch.fft.rfft2((p - p.mean((-2, -1), keepdim=True)) * window) for p in (before, now))
    cross = b * a.conj()
    size = cross.abs()
    # What hardly occurs has no phase worth counting.
    cross = cross / (size + 1e-6 * size.amax((-2, -1), keepdim=True) + 1e-12)
    peak = torch.fft.irfft2(cross, s=(height, width)).flatten(1).argmax(1)
    down, right = peak // width, peak % width
    down = torch.where(down > height // 2, down - height, down)
    right = torch.where(right > width // 2, right - width, right)
    return torch.stack([down, right], dim=1).float()


def _refined(before: Tensor, now: Tensor, shift: Tensor) -> Tensor:
    """`shift (M, 2)` after steps of Lucas-Kanade in which places that move otherwise weigh little."""
    margin = max(2, min(before.shape[-2:]) // 14)  # the shifted edge is made up
    inside = (slice(None), slice(margin, -margin), slice(margin, -margin))
    for _ in range(NUM_STEPS):
        moved = shift_frames(before[:, None], shift)[:, 0]
        down = (moved.roll(-1, 1) - moved.roll(1, 1))[inside].flatten(1) / 2
        right = (moved.roll(-1, 2) - moved.roll(1, 2))[inside].flatten(1) / 2
        error = (now - moved)[inside].flatten(1)
        scale = 2 * error.abs().median(dim=1, keepdim=True).values + 0.02  # a grey level or so
        weight = 1 / (1 + (error / scale).square())
        dd, dr, rr = ((weight * p).sum(1) for p in (down * down, down * right, right * right))
        de, re = ((weight * p).sum(1) for p in (down * error, right * error))
        ridge = 1e-6 * (dd + rr) + 1e-9
        determinant = (dd + ridge) * (rr + ridge) - dr * dr
        step = torch.stack([(rr + ridge) * de - dr * re, (dd + ridge) * re - dr * de], dim=1)
        shift = shift - (step / determinant[:, None]).clamp(-1, 1)
    return shift
