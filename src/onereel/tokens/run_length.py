"""Run-length tokens (RLT, arXiv 2411.05222): a tubelet that shows what its place showed before is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onereel.errors import unknown_name
from onereel.tokens.runs import run_lengths
from onereel.tokens.scores import STD, Std, check_grid, patch_difference
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
        std: of R, G, B; puts uint8 clips on the scale of normalised ones.
    """

    threshold: float = 0.1
    reference: Literal["adjacent", "anchor"] = "adjacent"
    tubelet_size: int = 2
    patch_size: int = 16
    std: Std = STD
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
        check_grid(clips, grid, self.tubelet_size, self.patch_size)
        clips = clips if clips.dtype == torch.uint8 else clips.float()
        first = clips[:, :: self.tubelet_size]
        last = clips[:, self.tubelet_size - 1 :: self.tubelet_size]
        changed = self._adjacent if self.reference == "adjacent" else self._anchored
        kept = changed(first, last)
        always = kept.new_ones(len(clips), 1, grid.gh, grid.gw)
        keep_mask = torch.cat([always, kept], dim=1).flatten(1)
        return TokenSelection(keep_mask, run_lengths(keep_mask, grid))

    def _changed(self, now: Tensor, before: Tensor) -> Tensor:
        return patch_difference(now, before, self.patch_size, self.std) > self.threshold

    def _adjacent(self, first: Tensor, last: Tensor) -> Tensor:
        """Which tubelets after the first are kept, bool `(B, gt - 1, gh, gw)`.

        `first` and `last` are the first and last frames of all tubelets, `(B, gt, C, H, W)`.
        """
        return self._changed(last[:, 1:], first[:, :-1])

    def _anchored(self, first: Tensor, last: Tensor) -> Tensor:
        """As `_adjacent`; one step after the other, since a decision moves the head of the next."""
        head = first[:, :1]
        kept = []
        for k in range(1, first.shape[1]):
            now = slice(k, k + 1)
            kept.append(self._changed(last[:, now], head))
            pixels = kept[-1].repeat_interleave(self.patch_size, -1)
            pixels = pixels.repeat_interleave(self.patch_size, -2)
            head = torch.where(pixels[:, :, None], first[:, now], head)
        return torch.cat(kept, dim=1) if kept else self._adjacent(first, last)
