"""Whether the kernels of `onereel.tokens.kernels` apply."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def fused_on_cuda(clips: Tensor) -> bool:
    """Whether a kernel may read `clips`: on CUDA, floats, without gradients, where Triton is installed."""
    return (
        clips.is_cuda
        and clips.is_floating_point()
        and not clips.requires_grad
        and clips.stride(-1) == 1
        and clips.stride(-2) == clips.shape[-1]
        and _has_triton()
    )


@cache
def _has_triton() -> bool:
    # It comes with PyTorch's CUDA builds for Linux, and not with the others.
    return find_spec("triton") is not None
