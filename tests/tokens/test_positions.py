"""Position embeddings by coordinate."""

from __future__ import annotations

import math

import pytest
import torch

from onereel.tokens.positions import (
    flat_index,
    flat_sincos_positions,
    gather_positions,
    gather_space_time,
    resize_positions,
    sincos_positions,
)
from onereel.types import TubeletGrid

GRID = TubeletGrid(3, 2, 4)


def coordinates(grid: TubeletGrid) -> torch.Tensor:
    return torch.cartesian_prod(*(torch.arange(n) for n in grid))


@pytest.mark.parametrize("dim", [6, 96, 192, 256, 384, 768, 1024, 1280])
def test_every_position_is_its_own_and_of_one_norm(dim: int) -> None:
    table = sincos_positions(GRID, dim)
    assert table.shape == (24, dim)
    assert torch.allclose(table.norm(dim=1), torch.tensor(math.sqrt(dim / 2)))
    assert torch.cdist(table, table).fill_diagonal_(1.0).min() > 0.1


def test_a_position_depends_on_its_coordinate_and_not_on_the_grid() -> None:
    small, large = sincos_positions(GRID, 36), sincos_positions(TubeletGrid(5, 6, 7), 36)
    inside = gather_positions(large, coordinates(GRID), TubeletGrid(5, 6, 7))
    assert torch.equal(small, inside)


def test_values_follow_the_formula() -> None:
    # dim 20: 6 for h, 6 for w, 8 for t.
    row = sincos_positions(GRID, 20)[flat_index(torch.tensor([2, 1, 3]), GRID)]
    expected = []
    for position, dim in ((2, 8), (1, 6), (3, 6)):
        angles = [position / 10000 ** (2 * i / dim) for i in range(dim // 2)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert torch.allclose(row, torch.tensor(expected))


@pytest.mark.parametrize("dim", [4, 97])
def test_a_width_that_cannot_be_shared_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"even dim of 6 or more, not {dim}"):
        sincos_positions(GRID, dim)


def test_gather_takes_rows_by_coordinate() -> None:
    table = torch.randn(GRID.num_tokens, 5)
    order = torch.randperm(GRID.num_tokens)
    assert torch.equal(gather_positions(table, coordinates(GRID)[order], GRID), table[order])


def test_resizing_to_the_same_grid_changes_nothing() -> None:
    table = torch.randn(GRID.num_tokens, 5)
    assert resize_positions(table, GRID, GRID) is table


def test_resizing_keeps_a_table_that_is_linear_in_time_linear_between_centres() -> None:
    old, new = TubeletGrid(4, 2, 2), TubeletGrid(8, 2, 2)
    table = coordinates(old)[:, :1].float()
    resized = resize_positions(table, old, new).reshape(8, 2, 2)
    centres = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    assert torch.allclose(resized, centres[:, None, None].expand(8, 2, 2))


def test_resizing_interpolates_each_axis() -> None:
    old, new = TubeletGrid(2, 3, 4), TubeletGrid(4, 6, 2)
    table = torch.randn(old.num_tokens, 7)
    volume = table.T.reshape(1, 7, *old)
    expected = torch.nn.functional.interpolate(volume, size=tuple(new), mode="trilinear")
    assert torch.equal(resize_positions(table, old, new), expected.reshape(7, -1).T)


@pytest.mark.parametrize("dim", [6, 48])
def test_flat_values_follow_videomaes_formula(dim: int) -> None:
    """Position n, value j: n / 10000 ** (2 * (j // 2) / dim); the sine where j is even, else the cosine."""
    table = flat_sincos_positions(GRID, dim)
    expected = torch.empty(GRID.num_tokens, dim, dtype=torch.float64)
    for n in range(GRID.num_tokens):
        for j in range(dim):
            angle = n / 10000 ** (2 * (j // 2) / dim)
            expected[n, j] = math.cos(angle) if j % 2 else math.sin(angle)
    assert torch.allclose(table.double(), expected, atol=1e-6)


def test_flat_positions_know_the_running_number_only() -> None:
    assert torch.equal(
        flat_sincos_positions(GRID, 12), flat_sincos_positions(TubeletGrid(1, 1, 24), 12)
    )
    with pytest.raises(ValueError, match="even dim, not 7"):
        flat_sincos_positions(GRID, 7)


def test_places_and_times_are_added_and_times_interpolated_linearly() -> None:
    """The published example: a temporal ramp 0, 1, 2, 3 of 4 frames, for 16."""
    old, new = TubeletGrid(4, 2, 3), TubeletGrid(16, 2, 3)
    space = 100 * torch.arange(6.0)[:, None]
    time = torch.arange(4.0)[:, None]
    every = torch.cartesian_prod(*(torch.arange(n) for n in new))
    rows = gather_space_time(space, time, every, old, new).unflatten(0, tuple(new))
    assert rows[0, ..., 0].tolist() == [[0, 100, 200], [300, 400, 500]]
    ramp = [0, 0, *(0.125 + 0.25 * i for i in range(12)), 3, 3]
    torch.testing.assert_close(rows[:, 0, 0, 0], torch.tensor(ramp))


def test_places_and_times_of_the_own_grid_are_read_as_they_are() -> None:
    grid = TubeletGrid(3, 2, 2)
    space, time = torch.randn(4, 5), torch.randn(3, 5)
    every = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    rows = gather_space_time(space, time, every, grid, grid)
    assert torch.equal(rows, (time[:, None] + space).flatten(0, 1))
