"""Run-length tokens (RLT, arXiv 2411.05222): a tubelet that shows what its place showed before is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onereel.errors import ConfigError, unknown_name
from onereel.tokens.motion import compensated_difference
from onereel.tokens.pixels import (
    STD,
    Std,
    as_floats,
    check_grid,
    check_noise_cell,
    patch_difference,
)
from onereel.tokens.runs import run_lengths
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
        noise_cell: average cells of so many pixels squared before subtracting; sensor noise falls by that factor.
        follow_camera: drop, too, what differs only by the camera's motion, until it has moved by half a patch since
            its token was kept, whose position is then wrong. Adjacent only.
    """

    threshold: float = 0.1
    reference: Literal["adjacent", "anchor"] = "adjacent"
    tubelet_size: int = 2
    patch_size: int = 16
    std: Std = STD
    noise_cell: int = 1
    follow_camera: bool = False
    needs_embeddings = False

    def __post_init__(self) -> None:
        if self.reference not in ("adjacent", "anchor"):
            raise unknown_name("run-length reference", self.reference, ("adjacent", "anchor"))
        check_noise_cell(self.noise_cell, self.patch_size)
        if self.follow_camera and self.reference == "anchor":
            raise ConfigError(
                "follow_camera compares with the neighbouring tubelet; set the reference to adjacent"
            )

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
        first = clips[:, :: self.tubelet_size]
        last = clips[:, self.tubelet_size - 1 :: self.tubelet_size]
        kept = self._changed_tubelets(first, last)
        always = kept.new_ones(len(clips), 1, grid.gh, grid.gw)
        keep_mask = torch.cat([always, kept], dim=1).flatten(1)
        return TokenSelection(keep_mask, run_lengths(keep_mask, grid))

    def _changed_tubelets(self, first: Tensor, last: Tensor) -> Tensor:
        """Which tubelets after the first are kept, bool `(B, gt - 1, gh, gw)`.

        `first` and `last` are the first and last frames of all tubelets, `(B, gt, C, H, W)`.
        """
        if first.shape[1] > 1 and self.reference == "anchor":
            return self._since_head(first, last)
        if first.shape[1] > 1 and self.follow_camera:
            return self._beyond_camera(
                as_floats(first[:, :-1], self.std), as_floats(last[:, 1:], self.std)
            )
        return self._changed(last[:, 1:], first[:, :-1])

    def _changed(self, now: Tensor, before: Tensor) -> Tensor:
        difference = patch_difference(now, before, self.patch_size, self.std, self.noise_cell)
        return difference > self.threshold

    def _since_head(self, first: Tensor, last: Tensor) -> Tensor:
        """One step after the other, since a decision moves the head of the next."""
        head = first[:, :1]
        kept = []
        for k in range(1, first.shape[1]):
            now = slice(k, k + 1)
            kept.append(self._changed(last[:, now], head))
            pixels = kept[-1].repeat_interleave(self.patch_size, -1)
            pixels = pixels.repeat_interleave(self.patch_size, -2)
            head = torch.where(pixels[:, :, None], first[:, now], head)
        return torch.cat(kept, dim=1)

    def _beyond_camera(self, before: Tensor, now: Tensor) -> Tensor:
        """One step after the other, since a kept token is where it says, and its shift starts from nothing."""
        in_place, followed, shift = compensated_difference(
            before, now, self.patch_size, self.noise_cell
        )
        moves = in_place > self.threshold
        new = moves & (followed > self.threshold)
        # The frames compared are 2t - 1 apart, tubelets t.
        per_tubelet = shift * (self.tubelet_size / (2 * self.tubelet_size - 1))
        along = moves[..., None] * per_tubelet[:, :, None, None]
        shifted = torch.zeros_like(along[:, 0])
        kept = []
        for k in range(new.shape[1]):
            shifted = shifted + along[:, k]
            kept.append(new[:, k] | (shifted.abs().amax(-1) > self.patch_size / 2))
            shifted = torch.where(kept[-1][..., None], 0.0, shifted)
        return torch.stack(kept, dim=1)
