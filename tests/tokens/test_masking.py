"""Masks hide and show exactly as many tokens as they say, of those that are kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onereel.errors import ConfigError
from onereel.tokens.masking import Masking, Picked, Split, running_cell
from onereel.tokens.packing import token_indices
from onereel.types import TubeletGrid

FULL = TubeletGrid(8, 14, 14)


def generators(batch: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(batch)]


def as_mask(part: Picked, kept: Tensor, grid: TubeletGrid) -> Tensor:
    """bool `(B, gt, gh, gw)`; checks on the way that tokens are in order and as many as their lengths say."""
    clip, place = kept.nonzero()[part.positions].T
    assert (part.positions.diff() > 0).all()
    assert clip.bincount(minlength=len(kept)).tolist() == list(part.lengths)
    mask = torch.zeros_like(kept)
    mask[clip, place] = True
    return mask.view(-1, *grid)


def split_kept(
    masking: Masking, kept: Tensor, grid: TubeletGrid, draws: list[torch.Generator]
) -> Split:
    return masking.split(token_indices(kept, grid), grid, draws)


def split_all(masking: Masking, grid: TubeletGrid = FULL, batch: int = 2) -> Split:
    return split_kept(masking, full(batch, grid), grid, generators(batch))


def full(batch: int, grid: TubeletGrid = FULL) -> Tensor:
    return torch.ones(batch, grid.num_tokens, dtype=torch.bool)


def kept_at_random(batch: int, num_kept: int, grid: TubeletGrid = FULL) -> Tensor:
    noise = torch.rand(batch, grid.num_tokens, generator=torch.Generator().manual_seed(5))
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(
        1, noise.argsort(1)[:, :num_kept], True
    )


@pytest.mark.parametrize(
    ("masking", "visible", "targets"),
    [
        (Masking("tube", 0.9), 160, 1408),  # VideoMAE's code
        (Masking("tube", 0.75), 392, 1176),  # the same at 75 %
        (Masking("random", 0.9), 156, 1412),  # EVEREST's floor
        (Masking("tube", 0.9, decode_ratio=0.5), 160, 704),  # VideoMAE v2: dual masking
        (Masking("random", 0.9, decode_ratio=0.5), 156, 706),
    ],
)
def test_published_counts(masking: Masking, visible: int, targets: int) -> None:
    split = split_all(masking)
    assert split.visible.lengths == (visible,) * 2
    assert split.targets.lengths == (targets,) * 2


def test_everest_counts() -> None:
    """470 kept of 1568: 156 visible and 314 targets, that is all the others."""
    kept = kept_at_random(3, 470)
    split = split_kept(Masking("random", 2 / 3), kept, FULL, generators(3))
    assert split.visible.lengths == (156,) * 3
    assert split.targets.lengths == (314,) * 3
    both = as_mask(split.visible, kept, FULL) | as_mask(split.targets, kept, FULL)
    assert torch.equal(both.flatten(1), kept)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["tube", "random"]),
    mask_ratio=st.floats(0.05, 0.95),
    decode_ratio=st.floats(0.1, 1.0),
    grid=st.builds(TubeletGrid, st.integers(1, 5), st.integers(3, 6), st.integers(3, 6)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 9),
    dropped=st.floats(0.0, 0.6),
)
def test_properties(kind, mask_ratio, decode_ratio, grid, batch, seed, dropped) -> None:
    """Both parts are among the kept tokens, disjoint, never empty, and together all of them at decode_ratio 1."""
    noise = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(seed))
    keep = noise >= dropped
    keep[:, 0] = True  # as run lengths have it, so that tubes find something at each place
    kept = keep.flatten(1)
    masking = Masking(kind, mask_ratio, decode_ratio)
    lengths = kept.sum(1)
    if kind == "random" and ((1 - mask_ratio) * lengths.min() < 1):
        with pytest.raises(ValueError, match="needs at least one visible"):
            split_kept(masking, kept, grid, generators(batch, seed))
        return
    split = split_kept(masking, kept, grid, generators(batch, seed))
    visible, targets = (as_mask(part, kept, grid) for part in split)
    assert not (visible & targets).any()
    assert ((visible | targets) <= keep).all()
    hidden = (keep & ~visible).flatten(1).sum(1)
    wanted = (decode_ratio * hidden + 1e-6).floor().clamp(min=1)
    assert split.targets.lengths == tuple(wanted.int().tolist())
    if kind == "random":
        expected = ((1 - mask_ratio) * lengths + 1e-6).floor()
        assert split.visible.lengths == tuple(expected.int().tolist())
    else:
        places = (keep & visible).any(1), (keep & ~visible).any(1)
        assert not (places[0] & places[1]).any(), "a place is shown at all times or at none"


def test_masks_are_each_clips_own_and_reproducible() -> None:
    masking = Masking("random", 0.75)
    both = split_kept(masking, full(2), FULL, generators(2)).visible.positions
    again = split_kept(masking, full(2), FULL, generators(2)).visible.positions
    assert torch.equal(both, again)
    alone = split_kept(masking, full(1), FULL, generators(2)[1:]).visible.positions
    assert torch.equal(both[392:] - FULL.num_tokens, alone)
    assert not torch.equal(both[:392], alone)


def test_every_token_is_shown_equally_often() -> None:
    grid, batch = TubeletGrid(2, 4, 4), 2000
    kept = full(batch, grid)
    for kind in ("random", "tube"):
        split = split_kept(Masking(kind, 0.75), kept, grid, generators(batch))
        share = as_mask(split.visible, kept, grid).float().mean(0)
        assert (share - 0.25).abs().max() < 0.06, kind  # six standard deviations


def test_the_running_cell_covers_half_of_each_frame_and_each_place_half_of_the_time() -> None:
    cells = running_cell(TubeletGrid(8, 6, 4))
    assert (cells.float().mean((2, 3)) == 0.5).all()
    assert (cells.float().mean(1) == 0.5).all()
    blocks = cells.unflatten(3, (2, 2)).unflatten(2, (3, 2)).sum((3, 5))
    assert (blocks == 2).all(), "two of every 2x2 cell"
    for a, b in itertools.pairwise(cells[0]):
        assert not torch.equal(a, b), "it moves on"
    assert torch.equal(cells[1, :4], cells[0, [1, 2, 3, 0]]), "starts are shifts in time"


def test_dual_masking_asks_for_the_running_cell() -> None:
    """With tubes and 8 tubelets in time it holds exactly half of what is hidden."""
    split = split_all(Masking("tube", 0.9, decode_ratio=0.5), batch=4)
    visible, targets = (as_mask(part, full(4), FULL) for part in split)
    cells = running_cell(FULL)
    for clip in range(4):
        matches = [torch.equal(targets[clip], cell & ~visible[clip]) for cell in cells]
        assert sum(matches) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cube",), "Known: random, tube"),
        (("tube", 1.0), "mask_ratio is 1.0"),
        (("tube", 0.9, 0.0), "decode_ratio is 0.0"),
    ],
)
def test_settings_that_cannot_work(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Masking(*arguments)


def test_what_cannot_be_masked_is_said() -> None:
    grid = TubeletGrid(1, 2, 2)
    one = torch.tensor([[True, False, False, False]])
    with pytest.raises(ValueError, match="0 of 1 kept"):
        split_kept(Masking("random", 0.5), one, grid, generators(1))
    with pytest.raises(ValueError, match="one generator per clip"):
        Masking().split(token_indices(full(2, grid), grid), grid, None)
