"""Scores against loops over tubelets and places."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.tokens.groups import group_sizes, per_tubelet
from onereel.tokens.pixels import STD
from onereel.tokens.run_length import RunLength
from onereel.tokens.scores import (
    EmbeddingScore,
    PixelScore,
    embedding_difference,
    pixel_difference,
    random_scores,
)
from onereel.tokens.tubelets import clip_grid
from onereel.types import TubeletGrid

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]


def embeddings_of(grid: TubeletGrid, dim: int = 8, seed: int = 0, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid.num_tokens, dim, generator=generator)


def normalised(clips: torch.Tensor, std: tuple[float, ...] = STD) -> torch.Tensor:
    return (clips.float() / 255 - MEAN) / torch.tensor(std)[:, None, None]


def embedding_difference_by_loop(
    clip: torch.Tensor, grid: TubeletGrid, groups: int
) -> torch.Tensor:
    """EVEREST's rule in each group of tubelets; a group of one looks outside."""
    volume = clip.reshape(*grid, -1)
    scores = torch.zeros(tuple(grid))
    start = 0
    for size in group_sizes(grid.gt, groups):
        for t in range(start, start + size):
            if t > start:
                other = t - 1
            elif size > 1:
                other = t + 1
            else:
                other = t - 1 if t else min(1, grid.gt - 1)
            scores[t] = (volume[t] - volume[other]).square().sum(-1).sqrt()
        start += size
    return scores.flatten()


@given(
    gt=st.integers(1, 9), groups=st.integers(0, 4), seed=st.integers(0, 99), space=st.integers(1, 3)
)
@settings(max_examples=60, deadline=None)
def test_embedding_difference_equals_the_loop(gt: int, groups: int, seed: int, space: int) -> None:
    grid = TubeletGrid(gt, space, 2)
    groups = min(groups, gt)
    embeddings = embeddings_of(grid, seed=seed)
    scores = embedding_difference(embeddings, grid, groups)
    expected = [embedding_difference_by_loop(clip, grid, groups) for clip in embeddings]
    torch.testing.assert_close(scores, torch.stack(expected))
    assert EmbeddingScore(groups)(embeddings, embeddings, grid, None).equal(scores)


def test_the_first_tubelet_copies_the_second_and_a_single_one_says_nothing() -> None:
    grid = TubeletGrid(8, 2, 3)
    scores = embedding_difference(embeddings_of(grid), grid).view(2, 8, 6)
    assert torch.equal(scores[:, 0], scores[:, 1])
    grid = TubeletGrid(1, 2, 3)
    assert embedding_difference(embeddings_of(grid), grid).tolist() == [[0.0] * 6] * 2


def test_half_precision_embeddings_are_subtracted_in_full_precision() -> None:
    grid = TubeletGrid(4, 2, 2)
    embeddings = (embeddings_of(grid, dim=768) * 100).bfloat16()
    scores = embedding_difference(embeddings, grid)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, embedding_difference(embeddings.float(), grid))


def test_embeddings_that_are_absent_or_do_not_fit_are_refused() -> None:
    grid = TubeletGrid(4, 2, 2)
    with pytest.raises(ValueError, match="15 tokens"):
        embedding_difference(torch.zeros(1, 15, 3), grid)
    with pytest.raises(ValueError, match="need the patch embeddings"):
        EmbeddingScore()(torch.zeros(1, 8, 3, 32, 32), None, grid, None)


@given(
    seed=st.integers(0, 99),
    ts=st.integers(1, 3),
    p=st.sampled_from([2, 7, 16]),
    gt=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_pixel_difference_equals_the_loop_in_floats_and_in_bytes(
    seed: int, ts: int, p: int, gt: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = (2, gt * ts, 3, 2 * p, 3 * p)
    clips = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    std = (0.2, 0.3, 0.4)
    floats = normalised(clips, std)
    expected = torch.zeros(2, gt - 1, 2, 3)
    for k in range(1, gt):
        pixels = (floats[:, (k + 1) * ts - 1] - floats[:, (k - 1) * ts]).abs()
        for h in range(2):
            for w in range(3):
                patch = pixels[..., h * p : (h + 1) * p, w * p : (w + 1) * p]
                expected[:, k - 1, h, w] = patch.mean((1, 2, 3))
    torch.testing.assert_close(pixel_difference(floats, ts, p), expected)
    torch.testing.assert_close(pixel_difference(clips, ts, p, std), expected)
    grid = clip_grid(clips, ts, p)
    scores = PixelScore(ts, p, std)(clips, None, grid, None)
    torch.testing.assert_close(scores, per_tubelet(expected).flatten(1))


@pytest.mark.parametrize("reference", ["adjacent", "anchor"])
def test_run_lengths_of_bytes_are_those_of_floats(reference: str) -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-9, 10, (4, 16, 3, 4, 4), generator=generator)
    levels = steps.cumsum(1).add(128).repeat_interleave(16, -1).repeat_interleave(16, -2)
    noise = torch.randint(-3, 4, (4, 16, 3, 64, 64), generator=generator)
    clips = (levels + noise).clamp(0, 255).to(torch.uint8)
    selector = RunLength(0.15, reference)  # type: ignore[arg-type]
    grid = clip_grid(clips, 2, 16)
    of_bytes = selector.select(clips, None, grid, None)
    of_floats = selector.select(normalised(clips), None, grid, None)
    assert 0.2 < of_bytes.keep_mask.float().mean() < 0.8
    assert torch.equal(of_bytes.keep_mask, of_floats.keep_mask)


def test_full_contrast_does_not_overflow() -> None:
    clips = torch.zeros(1, 4, 3, 64, 64, dtype=torch.uint8)
    clips[:, 2:] = 255
    assert pixel_difference(clips, 2, 64, (1.0, 1.0, 1.0)).item() == pytest.approx(1.0)
    clips = torch.zeros(1, 4, 3, 160, 160, dtype=torch.uint8)
    clips[:, 2:] = 255
    assert pixel_difference(clips, 2, 160, (1.0, 1.0, 1.0)).item() == pytest.approx(1.0)


def test_a_size_that_is_no_multiple_of_the_patch_is_answered() -> None:
    clips = torch.zeros(1, 4, 3, 50, 48)
    with pytest.raises(ConfigError, match="height 50 is not a multiple of patch_size 16"):
        PixelScore()(clips, None, TubeletGrid(2, 3, 3), None)


def test_a_random_order_is_the_generators_own() -> None:
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    scores = random_scores(50, 2, seeds)
    for b, seed in enumerate((3, 4)):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(scores[b].argsort(descending=True), order)
