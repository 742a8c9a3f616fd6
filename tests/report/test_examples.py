"""Greyed patches are exactly the dropped ones; what is written can be read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onereel.report.examples import (
    GAP_PIXELS,
    GREY,
    Reconstructed,
    render_reconstruction,
    render_selection,
    write_examples,
    write_reconstructions,
)
from onereel.types import TubeletGrid

GRID = TubeletGrid(3, 2, 4)
PATCH = 8


def a_clip() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (2 * GRID.gt, 3, GRID.gh * PATCH, GRID.gw * PATCH)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def tubelets_of(picture: np.ndarray, t: int) -> np.ndarray:
    """`(gh, gw, patch, patch, 3)` of the t-th picture of a strip."""
    left = t * (GRID.gw * PATCH + GAP_PIXELS)
    frame = picture[:, left : left + GRID.gw * PATCH]
    return frame.reshape(GRID.gh, PATCH, GRID.gw, PATCH, 3).swapaxes(1, 2)


def test_kept_patches_are_unchanged_and_dropped_ones_greyed() -> None:
    clip = a_clip()
    keep_mask = torch.rand(GRID.num_tokens, generator=torch.Generator().manual_seed(1)) < 0.5
    picture = np.asarray(render_selection(clip, keep_mask, GRID, 2, PATCH)).astype(int)
    kept = keep_mask.numpy().reshape(GRID)
    for t in range(GRID.gt):
        source = clip[2 * t].permute(1, 2, 0).numpy().astype(int)
        expected = source.reshape(GRID.gh, PATCH, GRID.gw, PATCH, 3).swapaxes(1, 2)
        shown = tubelets_of(picture, t)
        assert (shown[kept[t]] == expected[kept[t]]).all()
        dropped = shown[~kept[t]]
        assert (dropped.max(axis=-1) == dropped.min(axis=-1)).all()
        assert (abs(dropped - GREY) < 40).all()


def test_all_kept_is_the_clip_itself() -> None:
    clip = a_clip()
    keep_mask = torch.ones(GRID.num_tokens, dtype=torch.bool)
    picture = render_selection(clip, keep_mask, GRID, 2, PATCH)
    assert picture.width == GRID.gt * GRID.gw * PATCH + (GRID.gt - 1) * GAP_PIXELS
    first = np.asarray(picture)[:, : GRID.gw * PATCH]
    assert (first == clip[0].permute(1, 2, 0).numpy()).all()


def a_reconstruction() -> Reconstructed:
    """Of a decoder that answers white; a quarter is visible, a half is asked for."""
    order = torch.randperm(GRID.num_tokens, generator=torch.Generator().manual_seed(2))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(GRID.num_tokens))
    visible, targets = place < 6, (place >= 6) & (place < 18)
    white = torch.full_like(a_clip(), 255)
    return Reconstructed(white, visible, targets)


def test_three_rows_show_the_clip_what_is_seen_and_what_is_answered() -> None:
    clip, shown = a_clip(), a_reconstruction()
    picture = np.asarray(render_reconstruction(clip, shown, GRID, 2, PATCH))
    height = GRID.gh * PATCH
    rows = [picture[i * (height + GAP_PIXELS) :][:height] for i in range(3)]
    everything = torch.ones(GRID.num_tokens, dtype=torch.bool)
    assert (rows[0] == np.asarray(render_selection(clip, everything, GRID, 2, PATCH))).all()
    assert (rows[1] == np.asarray(render_selection(clip, shown.visible, GRID, 2, PATCH))).all()
    known = (shown.visible | shown.targets).numpy().reshape(GRID)
    for t in range(GRID.gt):
        answer = tubelets_of(rows[2], t)
        assert (answer[known[t]] == 255).all()
        assert (answer[~known[t]] < 255).all(), "what was not asked for is grey"


def test_reconstructions_say_how_many_tokens_were_shown_and_asked_for(tmp_path: Path) -> None:
    sizes = {"tubelet_size": 2, "patch_size": PATCH}
    (file,) = write_reconstructions(
        tmp_path, [a_clip()], [a_reconstruction()], ["wave"], grid=GRID, **sizes
    )
    (entry,) = json.loads((tmp_path / "examples" / "examples.json").read_text())
    assert (entry["num_visible"], entry["num_targets"], entry["num_tokens"]) == (6, 12, 24)
    assert (entry["caption"], entry["file"]) == ("wave", file.name)
    with Image.open(file) as picture:
        assert picture.size == (entry["width"], entry["height"])


def test_what_doesn_t_fit_is_refused() -> None:
    mask = torch.ones(GRID.num_tokens, dtype=torch.bool)
    with pytest.raises(ValueError, match="don't fit"):
        render_selection(a_clip()[:-1], mask, GRID, 2, PATCH)
    with pytest.raises(ValueError, match="don't fit"):
        render_selection(a_clip(), mask[:-1], GRID, 2, PATCH)


def test_written_examples_can_be_read_and_replace_older_ones(tmp_path: Path) -> None:
    masks = [torch.ones(GRID.num_tokens, dtype=torch.bool) for _ in range(3)]
    masks[1][4:] = False
    layout = {"grid": GRID, "tubelet_size": 2, "patch_size": PATCH}
    write_examples(tmp_path, [a_clip()] * 3, masks, ["a", "b", "c"], **layout)
    files = write_examples(tmp_path, [a_clip()] * 2, masks[:2], ["a", "b"], **layout)
    assert sorted((tmp_path / "examples").glob("*.jpg")) == files
    entries = json.loads((tmp_path / "examples" / "examples.json").read_text())
    assert [entry["caption"] for entry in entries] == ["a", "b"]
    assert [entry["num_kept"] for entry in entries] == [GRID.num_tokens, 4]
    for entry, file in zip(entries, files):
        with Image.open(file) as picture:
            assert picture.size == (entry["width"], entry["height"])
