"""Position embeddings by coordinate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.tokens.positions import (
    flat_index,
    flat_sincos_positions,
    gather_positions,
    gather_space_time,
    resize_bicubic,
    resize_positions,
    rotary_angles,
    rotate,
    sincos_positions,
    video_sincos_positions,
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


def test_video_positions_give_time_a_quarter_and_columns_before_rows() -> None:
    # dim 32: 8 for t, 12 for w, 12 for h.
    row = video_sincos_positions(GRID, 32)[flat_index(torch.tensor([2, 1, 3]), GRID)]
    expected = []
    for position, dim in ((2, 8), (3, 12), (1, 12)):
        angles = [position / 10000 ** (2 * i / dim) for i in range(dim // 2)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert torch.allclose(row, torch.tensor(expected))
    with pytest.raises(ValueError, match="multiple of 16, not 24"):
        video_sincos_positions(GRID, 24)


@pytest.mark.parametrize(
    "new", [GRID, TubeletGrid(7, 2, 4), TubeletGrid(2, 5, 3), TubeletGrid(1, 1, 9)]
)
def test_bicubic_tables_are_interpolated_axis_by_axis(new: TubeletGrid) -> None:
    table = torch.randn(GRID.num_tokens, 5)
    expected = table.unflatten(0, tuple(GRID))
    for axis, mode in enumerate(("linear", "bicubic", "bicubic")):
        expected = along(expected, axis, new[axis], mode)
    assert torch.allclose(resize_bicubic(table, GRID, new), expected.flatten(0, 2), atol=1e-5)


def along(volume: torch.Tensor, axis: int, size: int, mode: str) -> torch.Tensor:
    """`volume` interpolated along one axis, by its definition: 2 or 4 neighbours, corners not aligned."""
    length, moved = volume.shape[axis], volume.movedim(axis, 0)
    rows = []
    for i in range(size):
        place = (i + 0.5) * length / size - 0.5
        if mode == "linear":
            place = max(place, 0.0)
        left = math.floor(place)
        neighbours = range(left, left + 2) if mode == "linear" else range(left - 1, left + 3)
        row = torch.zeros_like(moved[0])
        for neighbour in neighbours:
            weight = kernel(abs(place - neighbour), mode)
            row += weight * moved[min(max(neighbour, 0), length - 1)]
        rows.append(row)
    return torch.stack(rows).movedim(0, axis)


def kernel(distance: float, mode: str) -> float:
    """Keys' cubic with a = -0.75, as PyTorch has it; or a triangle."""
    if mode == "linear":
        return max(1 - distance, 0.0)
    if distance <= 1:
        return 1.25 * distance**3 - 2.25 * distance**2 + 1
    return -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


@given(
    st.sampled_from([6, 12, 16, 32, 64]),
    *[st.tuples(*[st.integers(0, 40)] * 3) for _ in range(3)],
)
@settings(max_examples=50, deadline=None)
def test_rotated_products_depend_on_the_difference_of_coordinates_alone(
    head_dim: int, first: tuple[int, ...], second: tuple[int, ...], move: tuple[int, ...]
) -> None:
    draws = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, head_dim, generator=draws) for _ in range(2))
    products = []
    for shift in ((0, 0, 0), move):
        places = [torch.tensor([place]) + torch.tensor(shift) for place in (first, second)]
        turned = [rotate(x, rotary_angles(p, head_dim)) for x, p in zip((q, k), places)]
        products.append((turned[0] * turned[1]).sum(-1))
    assert torch.allclose(products[0], products[1], atol=1e-4)


def test_rotation_keeps_lengths_and_leaves_class_tokens_as_they_are() -> None:
    x = torch.randn(3, 2, 16)
    angles = rotary_angles(torch.tensor([[-1, -1, -1], [4, 0, 2], [0, 7, 1]]), 16)
    turned = rotate(x, angles)
    assert torch.equal(turned[0], x[0])
    assert not torch.allclose(turned[1:], x[1:], atol=0.1)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert rotate(x.bfloat16(), angles).dtype == torch.bfloat16


@pytest.mark.parametrize("axis", range(3))
def test_each_axis_turns_channels_of_its_own(axis: int) -> None:
    places = torch.zeros(1, 3, dtype=torch.int64)
    places[0, axis] = 5
    turned = rotary_angles(places, 64)[0] != 0
    pairs = (slice(0, 12), slice(12, 22), slice(22, 32))
    assert turned[pairs[axis]].all()
    assert turned.sum() == len(range(32)[pairs[axis]])


@pytest.mark.parametrize("head_dim", [4, 15])
def test_heads_too_narrow_to_turn_are_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"6 or more, not {head_dim}"):
        rotary_angles(torch.zeros(1, 3), head_dim)
