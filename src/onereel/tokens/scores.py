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

from onereel.tokens.groups import per_tubelet
from onereel.tokens.guards import cap_cuts, find_cuts
from onereel.tokens.motion import compensated_difference
from onereel.tokens.packing import to_device
from onereel.tokens.pixels import (
    STD,
    Std,
    as_floats,
    check_grid,
    check_noise_cell,
    patch_difference,
)
from onereel.types import TubeletGrid


class Score(Protocol):
    """What a selector ranks by."""

    @property
    def groups(self) -> int:
        """Groups in time that are scored apart, as in `group_sizes`."""
        ...

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
        noise_cell: as of `pixel_difference`.
        follow_camera: likewise.
        cap_cuts: guard against scene cuts, `onereel.tokens.guards.cap_cuts`.
    """

    tubelet_size: int = 2
    patch_size: int = 16
    std: Std = STD
    noise_cell: int = 1
    follow_camera: bool = False
    cap_cuts: bool = False
    groups = 1
    needs_embeddings = False

    def __post_init__(self) -> None:
        check_noise_cell(self.noise_cell, self.patch_size)

    def __call__(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        check_grid(clips, grid, self.tubelet_size, self.patch_size)
        difference = pixel_difference(
            clips,
            self.tubelet_size,
            self.patch_size,
            self.std,
            noise_cell=self.noise_cell,
            follow_camera=self.follow_camera,
        )
        scores = per_tubelet(difference)
        if self.cap_cuts:
            scores = cap_cuts(scores, find_cuts(clips, grid, self.std))
        return scores.flatten(1)


@dataclass(frozen=True)
class EmbeddingScore:
    """`embedding_difference` of the raw patch embeddings (EVEREST section 3.2; Flux, within each of its groups).

    Attributes:
        groups: groups in time, as in `group_sizes`.
        cap_cuts: guard against scene cuts, which it finds in the pixels.
    """

    groups: int = 1
    cap_cuts: bool = False
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
        scores = embedding_difference(embeddings, grid, self.groups)
        if not self.cap_cuts:
            return scores
        scores = scores.unflatten(1, tuple(grid))
        return cap_cuts(scores, find_cuts(clips, grid), self.groups).flatten(1)


@dataclass(frozen=True)
class RandomScore:
    """Chance: the control that every other score is measured against."""

    groups = 1
    needs_embeddings = False

    def __call__(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Tensor:
        return to_device(random_scores(grid.num_tokens, len(clips), generators), clips.device)


def pixel_difference(
    clips: Tensor,
    tubelet_size: int,
    patch_size: int,
    std: Std = STD,
    *,
    noise_cell: int = 1,
    follow_camera: bool = False,
) -> Tensor:
    """Mean |last frame of tubelet k - first of tubelet k - 1|, RLT section 3: float32 `(B, gt - 1, gh, gw)`.

    Args:
        clips: normalised float or uint8 `(B, T, C, H, W)`. The scores of uint8 are those of the clip normalised with
            `std`, up to rounding (its mean cancels).
        noise_cell: average cells of so many pixels squared before subtracting; sensor noise falls by that factor.
        follow_camera: take the smaller of this and the difference to the frame shifted as the camera moved.
    """
    before = clips[:, :-tubelet_size:tubelet_size]
    now = clips[:, 2 * tubelet_size - 1 :: tubelet_size]
    if not follow_camera or now.shape[1] == 0:
        return patch_difference(now, before, patch_size, std, noise_cell)
    before, now = as_floats(before, std), as_floats(now, std)
    return torch.minimum(*compensated_difference(before, now, patch_size, noise_cell)[:2])


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
