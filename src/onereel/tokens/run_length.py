"""Run-length tokens (RLT, arXiv 2411.05222): a tubelet that shows what its place showed before is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onereel.errors import unknown_name
from onereel.tokens.tubelets import clip_grid
from onereel.types import TokenSelection, TubeletGrid


@dataclass(frozen=True)
class RunLength:
    """Keep a tubelet whose last frame differs from the first frame of its reference tubelet; RLT section 3.

    The difference is the mean over channels and pixels of |last - first|, in normalised values; a tubelet is kept
    where it is strictly above `threshold`. The first tubelet of every place is kept, so a negative threshold keeps all.

    Attributes:
        threshold: 0.1 in the paper: about 5.8 of 255 grey levels under ImageNet's standard deviation.
        reference: "adjacent" compares with the tubelet before, as published, and never sees a slow drift; "anchor"
            compares with the head of the run, the last tubelet kept at that place.
    """

    threshold: float = 0.1
    reference: Literal["adjacent", "anchor"] = "adjacent"
    tubelet_size: int = 2
    patch_size: int = 16
    needs_embeddings = False

    def __post_init__(self) -> None:
        if self.reference not in ("adjacent", "anchor"):
            raise unknown_name("run-length reference", self.reference, ("adjacent", "anchor"))

    def num_kept(self, grid: TubeletGrid) -> None:
        return None

    def select(
        self,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> TokenSelection:
        """The kept tubelets and their run lengths; deterministic."""
        if clip_grid(clips, self.tubelet_size, self.patch_size) != grid:
            raise ValueError(
                f"tubelets of {self.tubelet_size}x{self.patch_size}x{self.patch_size} don't cut "
                f"clips {tuple(clips.shape)} into {grid}"
            )
        clips = clips.float()
        first = clips[:, :: self.tubelet_size]
        last = clips[:, self.tubelet_size - 1 :: self.tubelet_size]
        keep = _keep_adjacent if self.reference == "adjacent" else _keep_anchor
        changed = keep(first, last, self.patch_size, self.threshold)
        always = changed.new_ones(len(clips), 1, grid.gh, grid.gw)
        keep_mask = torch.cat([always, changed], dim=1).flatten(1)
        return TokenSelection(keep_mask, run_lengths(keep_mask, grid))


def _keep_adjacent(first: Tensor, last: Tensor, patch_size: int, threshold: float) -> Tensor:
    """Which tubelets after the first are kept, bool `(B, gt - 1, gh, gw)`.

    `first` and `last` are the first and last frames of all tubelets, `(B, gt, C, H, W)`.
    """
    return _patch_difference(last[:, 1:], first[:, :-1], patch_size) > threshold


def _keep_anchor(first: Tensor, last: Tensor, patch_size: int, threshold: float) -> Tensor:
    """As `_keep_adjacent`; one step after the other, since a decision moves the head of the next."""
    head = first[:, :1]
    changed = []
    for k in range(1, first.shape[1]):
        now = slice(k, k + 1)
        changed.append(_patch_difference(last[:, now], head, patch_size) > threshold)
        pixels = changed[-1].repeat_interleave(patch_size, -1).repeat_interleave(patch_size, -2)
        head = torch.where(pixels[:, :, None], first[:, now], head)
    return (
        torch.cat(changed, dim=1) if changed else _keep_adjacent(first, last, patch_size, threshold)
    )


def _patch_difference(a: Tensor, b: Tensor, patch_size: int) -> Tensor:
    """Mean over channels and patch pixels of |a - b|: frames `(B, K, C, H, W)` to `(B, K, gh, gw)`."""
    pixels = (a - b).abs_().mean(dim=2)
    # Rows before columns: the first mean then runs along whole lines, twice as fast as both at once.
    return pixels.unflatten(-2, (-1, patch_size)).mean(-2).unflatten(-1, (-1, patch_size)).mean(-1)


def run_lengths(keep_mask: Tensor, grid: TubeletGrid) -> Tensor:
    """Tubelets from each kept token to the next kept one at the same place, or to the clip's end.

    Args:
        keep_mask: bool `(B, N)`.

    Returns:
        int64 `(B, N)`, in the order of the mask, 0 where dropped; they sum to N where all of the first tubelet is kept.
    """
    kept = keep_mask.unflatten(1, tuple(grid))
    time = torch.arange(grid.gt, device=keep_mask.device)[:, None, None]
    at = torch.where(kept, time, grid.gt)
    # The next kept time is the smallest kept time after this one: a running minimum from the end.
    after = torch.cat([at[:, 1:], torch.full_like(at[:, :1], grid.gt)], dim=1)
    following = after.flip(1).cummin(dim=1).values.flip(1)
    return ((following - time) * kept).flatten(1)
