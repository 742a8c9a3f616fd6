"""Pictures of clips in which the tubelets that the model never saw are greyed out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onereel.types import TubeletGrid

if TYPE_CHECKING:
    from torch import Tensor

GAP_PIXELS = 2
GAP_COLOR = (128, 128, 128)
GREY, GREY_SHARE = 160, 0.82
"""Dropped patches are mixed with this grey to this share: recognisably absent on white and on black pages."""


def render_selection(
    clip: Tensor, keep_mask: Tensor, grid: TubeletGrid, tubelet_size: int, patch_size: int
) -> Image.Image:
    """The first frame of each tubelet, side by side; dropped patches grey.

    Args:
        clip: uint8 `(T, 3, H, W)`.
        keep_mask: bool `(N,)` in order (t, h, w), True = kept.

    Raises:
        ValueError: the grid doesn't fit the clip or the mask.
    """
    frames = clip.cpu().numpy()
    expected = (grid.gt * tubelet_size, 3, grid.gh * patch_size, grid.gw * patch_size)
    if frames.shape != expected or keep_mask.numel() != grid.num_tokens:
        raise ValueError(
            f"clip {frames.shape} and keep_mask ({keep_mask.numel()},) don't fit {grid} "
            f"with tubelets of {tubelet_size}x{patch_size}x{patch_size}"
        )
    pictures = frames[::tubelet_size].transpose(0, 2, 3, 1).astype(np.float32)
    kept = keep_mask.cpu().numpy().reshape(grid)
    kept = kept.repeat(patch_size, axis=1).repeat(patch_size, axis=2)[..., None]
    luma = pictures @ np.array([0.299, 0.587, 0.114], np.float32)
    greyed = GREY_SHARE * GREY + (1 - GREY_SHARE) * luma[..., None]
    shown = np.where(kept, pictures, greyed).round().astype(np.uint8)
    gap = np.full((shown.shape[1], GAP_PIXELS, 3), GAP_COLOR, np.uint8)
    strip = [part for picture in shown for part in (gap, picture)][1:]
    return Image.fromarray(np.concatenate(strip, axis=1))


def write_examples(
    run: Path,
    clips: Sequence[Tensor],
    keep_masks: Sequence[Tensor],
    captions: Sequence[str],
    *,
    grid: TubeletGrid,
    tubelet_size: int,
    patch_size: int,
) -> list[Path]:
    """Write `run/examples/` for the report, in place of what was there: a JPEG per clip and `examples.json`.

    Args:
        clips: uint8 `(T, 3, H, W)` each.
        keep_masks: bool `(N,)` each, True = kept.
        captions: what each clip shows.
    """
    folder = run / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("example_*.jpg"):
        old.unlink()
    entries, files = [], []
    for number, (clip, mask, caption) in enumerate(zip(clips, keep_masks, captions, strict=True)):
        file = folder / f"example_{number:02d}.jpg"
        picture = render_selection(clip, mask, grid, tubelet_size, patch_size)
        picture.save(file, quality=88, subsampling=0)
        entries.append(
            {
                "file": file.name,
                "caption": caption,
                "num_kept": int(mask.sum()),
                "num_tokens": grid.num_tokens,
                "num_pictures": grid.gt,
                "width": picture.width,
                "height": picture.height,
            }
        )
        files.append(file)
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return files
