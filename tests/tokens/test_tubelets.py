"""Clips to tubelets and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.tokens.tubelets import patchify, shapes_in_window, tubelet_grid, unpatchify

small = st.integers(1, 3)


@given(gt=small, gh=small, gw=small, tubelet=small, patch=st.integers(1, 4), channels=small)
def test_round_trip(gt: int, gh: int, gw: int, tubelet: int, patch: int, channels: int) -> None:
    clips = torch.randn(2, gt * tubelet, channels, gh * patch, gw * patch)
    grid = tubelet_grid(gt * tubelet, gh * patch, gw * patch, tubelet, patch)
    patches = patchify(clips, tubelet, patch)
    assert grid == (gt, gh, gw)
    assert patches.shape == (2, grid.num_tokens, channels * tubelet * patch**2)
    assert torch.equal(unpatchify(patches, grid, tubelet, patch), clips)


def test_order_is_time_height_width_and_in_a_patch_channel_time_height_width() -> None:
    clips = torch.arange(4 * 3 * 4 * 6).float().reshape(1, 4, 3, 4, 6)
    patches = patchify(clips, 2, 2)
    n = 0
    for t in range(2):
        for h in range(2):
            for w in range(3):
                block = clips[0, 2 * t : 2 * t + 2, :, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
                assert torch.equal(patches[0, n], block.transpose(0, 1).flatten())
                n += 1


@pytest.mark.parametrize(
    ("frames", "tubelet", "patch", "tokens"), [(16, 2, 16, 1568), (16, 1, 14, 4096)]
)
def test_the_grids_of_the_papers(frames: int, tubelet: int, patch: int, tokens: int) -> None:
    assert tubelet_grid(frames, 224, 224, tubelet, patch).num_tokens == tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (15, 224, 224, 2, 16),
            "num_frames 15 is not a multiple of tubelet_size 2. Use num_frames 14 or 16",
        ),
        (
            (16, 225, 224, 2, 16),
            "height 225 is not a multiple of patch_size 16. Use height 224 or 240",
        ),
        (
            (16, 224, 100, 2, 16),
            "width 100 is not a multiple of patch_size 16. Use width 96 or 112",
        ),
        (
            (1, 224, 224, 2, 16),
            "num_frames 1 is not a multiple of tubelet_size 2. Use num_frames 2,",
        ),
        ((16, 224, 224, 0, 16), "tubelet_size is 0; allowed: 1 or more"),
    ],
)
def test_sides_that_do_not_divide_say_what_would(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tubelet_grid(*arguments)


def test_clips_without_a_batch_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"clips must be \(B, T, C, H, W\), not \(16, 3, 32, 32\)"
    ):
        patchify(torch.zeros(16, 3, 32, 32), 2, 16)


@pytest.mark.parametrize("tubelet_size", [1, 2])
def test_clips_with_colours_before_frames_are_refused(tubelet_size: int) -> None:
    with pytest.raises(ConfigError, match=r"\(2, 3, 4, 32, 32\) looks like .*transpose\(1, 2\)"):
        patchify(torch.zeros(2, 3, 4, 32, 32), tubelet_size, 16)


@pytest.mark.parametrize(
    ("frames", "sizes", "window", "num_pairs"),
    [
        ((4, 26), (168, 280), (2048, 4096), 18),  # as published for pre-training
        (
            (6, 26),
            (112, 364),
            (2048, 6144),
            41,
        ),  # released fine-tuning script, and its code's default
        ((6, 26), (112, 364), (2048, 8192), 51),
    ],
)
def test_pairs_of_frames_and_size_within_the_window(
    frames: tuple[int, int], sizes: tuple[int, int], window: tuple[int, int], num_pairs: int
) -> None:
    choices = range(*frames, 2), range(*sizes, 28)
    shapes = shapes_in_window(*choices, window, 1, 14)
    counts = [shape.num_frames * (shape.size // 14) ** 2 for shape in shapes]
    assert len(shapes) == len(set(shapes)) == num_pairs
    assert all(window[0] <= count <= window[1] for count in counts)
    everything = shapes_in_window(*choices, (0, 0), 1, 14)
    assert len(everything) == len(choices[0]) * len(choices[1])


def test_a_window_without_a_pair_says_which_tokens_there_are() -> None:
    with pytest.raises(ConfigError, match=r"50 to 60 tokens.* 64, 128, 144, 288; widen"):
        shapes_in_window((8, 16), (32, 48), (50, 60), 2, 8)
    with pytest.raises(ConfigError, match="num_frames 7 is not a multiple of tubelet_size 2"):
        shapes_in_window((8, 7), (32,), (0, 0), 2, 8)
    with pytest.raises(ConfigError, match="height 36 is not a multiple of patch_size 8"):
        shapes_in_window((8,), (32, 36), (0, 0), 2, 8)
