"""The CUDA kernels against the operations that they stand in for."""

from __future__ import annotations

import pytest
import torch

from onereel.tokens.packing import pack_clips
from onereel.tokens.scores import pixel_difference
from onereel.types import TokenSelection

SHAPES = [
    # B, T, C, H, W, tubelet, patch
    (3, 8, 3, 32, 48, 2, 16),
    (2, 5, 3, 28, 42, 1, 14),
    (1, 6, 1, 24, 16, 3, 8),
    (2, 4, 3, 224, 224, 2, 16),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_differences_are_those_of_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    *size, tubelet, patch = shape
    clips = torch.randn(size).to(dtype)
    here = pixel_difference(clips, tubelet, patch)
    there = pixel_difference(clips.cuda(), tubelet, patch)
    assert there.dtype == torch.float32
    torch.testing.assert_close(there.cpu(), here, atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_gathered_patches_are_those_of_the_cpu(shape: tuple[int, ...], share: float) -> None:
    pytest.importorskip("triton")
    *size, tubelet, patch = shape
    clips = torch.randn(size)
    num_tokens = size[1] // tubelet * (size[3] // patch) * (size[4] // patch)
    mask = torch.rand(size[0], num_tokens) < share
    mask[:, 0] = True
    here = pack_clips(clips, TokenSelection(mask), tubelet, patch)
    there = pack_clips(clips.cuda(), TokenSelection(mask.cuda()), tubelet, patch)
    assert there.lengths == here.lengths
    assert torch.equal(there.values.cpu(), here.values)


@pytest.mark.gpu
def test_clips_that_want_gradients_and_strided_ones_are_right_too() -> None:
    clips = torch.randn(2, 4, 3, 32, 32, device="cuda")
    mask = TokenSelection(torch.ones(2, 8, dtype=torch.bool, device="cuda"))
    expected = pack_clips(clips.cpu(), TokenSelection(mask.keep_mask.cpu()), 2, 16).values
    wants = pack_clips(clips.clone().requires_grad_(), mask, 2, 16).values
    assert wants.requires_grad
    assert torch.equal(wants.detach().cpu(), expected)
    wide = torch.zeros(2, 4, 3, 32, 64, device="cuda")
    wide[..., :32] = clips
    assert torch.equal(pack_clips(wide[..., :32], mask, 2, 16).values.cpu(), expected)
