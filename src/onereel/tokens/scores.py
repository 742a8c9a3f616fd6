"""How much each tubelet has to say: differences of pixels or of patch embeddings in time, or chance.

Scores are float32 `(B, N)`, tokens in order (t, h, w), higher is kept first. The first tubelet of a clip has none
before it and copies the second's score, as EVEREST and Flux do; where tubelets are scored in groups, the first of
each group does. All of it runs without synchronising host and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onereel.config import AugmentConfig
from onereel.tokens.budgets import group_sizes
from onereel.tokens.cuda import fused_on_cuda
from onereel.tokens.tubelets import clip_grid
from onereel.types import TubeletGrid

Std = tuple[float, float, float]
STD: Std = AugmentConfig.std
"""Standard deviation of R, G, B in 0..1 that clips are normalised with unless a run says otherwise."""


class Score(Protocol):
    """What a selector ranks by."""

    @property
    def needs_embeddings(self) -> bool:
        """As of `Selector`."""
        ...

    def __call__(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        """float32 `(B, N)`; the arguments are those of `Selector.select`."""
        ...


@dataclass(frozen=True)
class PixelScore:
    """`pixel_difference` to the tubelet before: run-length tokens (RLT) under another budget than a threshold.

    Attributes:
        std: of R, G, B; puts uint8 clips on the scale of normalised ones.
        groups: groups in time, as in `group_sizes`.
    """

    tubelet_size: int = 2
    patch_size: int = 16
    std: Std = STD
    groups: int = 1
    needs_embeddings = False

    def __call__(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        check_grid(clips, grid, self.tubelet_size, self.patch_size)
        difference = pixel_difference(clips, self.tubelet_size, self.patch_size, self.std)
        return per_tubelet(difference, self.groups).flatten(1)


@dataclass(frozen=True)
class EmbeddingScore:
    """`embedding_difference` of the raw patch embeddings (EVEREST section 3.2; Flux, within each of its groups)."""

    groups: int = 1
    needs_embeddings = True

    def __call__(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        if embeddings is None:
            raise ValueError("embedding scores need the patch embeddings (B, N, D), not None")
        return embedding_difference(embeddings, grid, self.groups)


@dataclass(frozen=True)
class RandomScore:
    """Chance: the control that every other score is measured against."""

    needs_embeddings = False

    def __call__(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        scores = random_scores(grid.num_tokens, len(clips), generators)
        return scores.to(clips.device, non_blocking=True)


def check_grid(clips: Tensor, grid: TubeletGrid, tubelet_size: int, patch_size: int) -> None:
    """Raise ValueError where tubelets of this size don't cut `clips` into `grid`."""
    if clip_grid(clips, tubelet_size, patch_size) != grid:
        raise ValueError(
            f"tubelets of {tubelet_size}x{patch_size}x{patch_size} don't cut "
            f"clips {tuple(clips.shape)} into {grid}"
        )


def pixel_difference(clips: Tensor, tubelet_size: int, patch_size: int, std: Std = STD) -> Tensor:
    """Mean |last frame of tubelet k - first of tubelet k - 1|, RLT section 3: float32 `(B, gt - 1, gh, gw)`.

    Args:
        clips: normalised float or uint8 `(B, T, C, H, W)`. The scores of uint8 are those of the clip normalised with
            `std`, up to rounding (its mean cancels).
    """
    clips = clips if clips.dtype == torch.uint8 else clips.float()
    first = clips[:, :-tubelet_size:tubelet_size]
    last = clips[:, 2 * tubelet_size - 1 :: tubelet_size]
    return patch_difference(last, first, patch_size, std)


def patch_difference(a: Tensor, b: Tensor, patch_size: int, std: Std = STD) -> Tensor:
    """Mean over channels and patch pixels of |a - b|: frames `(B, K, C, H, W)` to float32 `(B, K, gh, gw)`.

    uint8 frames are subtracted and summed as integers, a quarter of the time, and divided by 255 and `std`.
    """
    if fused_on_cuda(a) and fused_on_cuda(b):
        from onereel.tokens import kernels

        return kernels.patch_difference(a, b, patch_size)
    # Rows before columns: the first sum then runs along whole lines, twice as fast as both at once.
    if a.dtype != torch.uint8:
        pixels = (a - b).abs_().mean(dim=2)
        rows = pixels.unflatten(-2, (-1, patch_size)).mean(-2)
        return rows.unflatten(-1, (-1, patch_size)).mean(-1)
    levels = torch.maximum(a, b) - torch.minimum(a, b)  # |a - b| without leaving uint8
    # 16 bits hold the sum of 128 rows.
    total = torch.int16 if patch_size <= 128 else torch.int32
    rows = levels.unflatten(-2, (-1, patch_size)).sum(-2, dtype=total).float()
    sums = rows.unflatten(-1, (-1, patch_size)).sum(-1)
    # What one grey level of one pixel adds to the mean. Plain numbers: a tensor of them would have to be sent.
    weights = [1 / (len(std) * 255 * s * patch_size**2) for s in std]
    return sum(w * channel for w, channel in zip(weights, sums.unbind(2), strict=True))


def embedding_difference(embeddings: Tensor, grid: TubeletGrid, groups: int = 1) -> Tensor:
    """L2 distance between embeddings of neighbouring tubelets at the same place, in float32: `(B, N)`.

    Args:
        embeddings: `(B, N, D)` in any float dtype, before positions.
        groups: groups in time (`group_sizes`); the first tubelet of each copies its second. A clip of one tubelet
            scores 0 everywhere, a group of one against the tubelet before it.
    """
    if embeddings.shape[1] != grid.num_tokens:
        raise ValueError(f"embeddings have {embeddings.shape[1]} tokens, {grid} {grid.num_tokens}")
    volume = embeddings.unflatten(1, tuple(grid)).float()
    difference = torch.linalg.vector_norm(volume[:, 1:] - volume[:, :-1], dim=-1)
    return per_tubelet(difference, groups).flatten(1)


def per_tubelet(difference: Tensor, groups: int = 1) -> Tensor:
    """A score for every tubelet, `(B, gt, gh, gw)`, from `difference (B, gt - 1, gh, gw)` to the one before."""
    if difference.shape[1] == 0:
        batch, _, gh, gw = difference.shape
        return difference.new_zeros(batch, 1, gh, gw)
    parts = []
    start = 0
    for size in group_sizes(difference.shape[1] + 1, groups):
        # Row k - 1 is the difference of tubelet k to the one before.
        own = difference[:, start : start + size - 1]
        copied = own[:, :1] if size > 1 else difference[:, max(start - 1, 0)][:, None]
        parts += [copied, own]
        start += size
    return torch.cat(parts, dim=1)


def random_scores(
    num_tokens: int, batch: int, generators: Sequence[torch.Generator] | None
) -> Tensor:
    """float32 `(batch, num_tokens)` on the CPU: a random order of each clip's tokens, from its own generator.

    Raises ValueError without one generator per clip.
    """
    if generators is None or len(generators) != batch:
        given = "none" if generators is None else f"{len(generators)}"
        raise ValueError(
            f"random selection draws: pass one generator per clip ({batch}), not {given}"
        )
    order = torch.stack([torch.randperm(num_tokens, generator=g) for g in generators])
    falling = torch.arange(num_tokens, 0, -1, dtype=torch.float32).expand(batch, -1)
    return torch.empty(batch, num_tokens).scatter_(1, order, falling)
