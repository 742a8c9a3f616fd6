"""Pictures of clips: what the model never saw is greyed out, and what a masked model predicts is filled in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
    picture = _strip(clip, keep_mask, grid, tubelet_size, patch_size)
    return Image.fromarray(picture)


class Reconstructed(NamedTuple):
    """What a masked model made of one clip.

    Attributes:
        output: uint8 `(T, 3, H, W)`, targets as predicted.
        visible, targets: bool `(N,)`, True = is one.
    """

    output: Tensor
    visible: Tensor
    targets: Tensor


def render_reconstruction(
    clip: Tensor, shown: Reconstructed, grid: TubeletGrid, tubelet_size: int, patch_size: int
) -> Image.Image:
    """Three rows of first frames: the clip; what the encoder sees of it; what the decoder adds. The rest is grey.

    Raises:
        ValueError: the grid doesn't fit the clips or the masks.
    """
    everything = shown.visible | ~shown.visible
    known = shown.visible | shown.targets
    rows = [
        _strip(pixels, mask, grid, tubelet_size, patch_size)
        for pixels, mask in ((clip, everything), (clip, shown.visible), (shown.output, known))
    ]
    gap = np.full((GAP_PIXELS, rows[0].shape[1], 3), GAP_COLOR, np.uint8)
    return Image.fromarray(np.concatenate([rows[0], gap, rows[1], gap, rows[2]]))


def _strip(
    clip: Tensor, keep_mask: Tensor, grid: TubeletGrid, tubelet_size: int, patch_size: int
) -> np.ndarray:
    """The first frame of each tubelet side by side, uint8 `(H, width, 3)`; what is not in the mask is grey."""
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
    return np.concatenate(strip, axis=1)


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
    pictures = [
        render_selection(clip, mask, grid, tubelet_size, patch_size)
        for clip, mask in zip(clips, keep_masks, strict=True)
    ]
    counts = [{"num_kept": int(mask.sum())} for mask in keep_masks]
    return _write(run, pictures, captions, counts, grid)


def write_reconstructions(
    run: Path,
    clips: Sequence[Tensor],
    shown: Sequence[Reconstructed],
    captions: Sequence[str],
    *,
    grid: TubeletGrid,
    tubelet_size: int,
    patch_size: int,
) -> list[Path]:
    """As `write_examples`, of a masked model: uint8 `clips (T, 3, H, W)` and what was made of each."""
    pictures = [
        render_reconstruction(clip, one, grid, tubelet_size, patch_size)
        for clip, one in zip(clips, shown, strict=True)
    ]
    counts = [
        {"num_visible": int(one.visible.sum()), "num_targets": int(one.targets.sum())}
        for one in shown
    ]
    return _write(run, pictures, captions, counts, grid)


def _write(
    run: Path,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    counts: Sequence[dict[str, int]],
    grid: TubeletGrid,
) -> list[Path]:
    """The JPEGs, and `examples.json` with `counts` of tokens beside each picture's size and caption."""
    folder = run / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("example_*.jpg"):
        old.unlink()
    entries, files = [], []
    for number, picture in enumerate(pictures):
        file = folder / f"example_{number:02d}.jpg"
        picture.save(file, quality=88, subsampling=0)
        entries.append(
            {
                "file": file.name,
                "caption": captions[number],
                **counts[number],
                "num_tokens": grid.num_tokens,
                "num_pictures": grid.gt,
                "width": picture.width,
                "height": picture.height,
            }
        )
        files.append(file)
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return files
