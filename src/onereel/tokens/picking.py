"""Token selection where the clips are read: what a worker of the loader does in place of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from onereel.seeding import clip_generators
from onereel.tokens.frames import FrameSelection
from onereel.tokens.packing import pack_all, pack_clips
from onereel.tokens.selector import Selector
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed, SampleKey


@dataclass(frozen=True)
class PatchPicker:
    """uint8 clips to those of their patches that the model would keep; small enough to send to a worker.

    Attributes:
        selector: one that looks at pixels.
        frames: frame selection around it, or None.
        training: whether frames are drawn, as in training, or those with most tokens taken.
        seed: of the run; selectors draw from (seed, epoch, index, view), as in the model.
    """

    selector: Selector
    frames: FrameSelection | None
    training: bool
    tubelet_size: int
    patch_size: int
    seed: int

    def __call__(self, clips: Tensor, keys: Sequence[SampleKey]) -> Packed:
        """uint8 clips `(B, T, C, H, W)` to packed uint8 patches `(M, P)`, pixels of a patch in order (c, t, h, w)."""
        block = (self.tubelet_size, self.patch_size)
        grid = clip_grid(clips, *block)
        if self.selector.num_kept(grid) == grid.num_tokens and self.frames is None:
            return pack_all(patchify(clips, *block), grid)
        generators = clip_generators(self.seed, keys)
        if self.frames is None:
            selection = self.selector.select(clips, None, grid, generators)
        else:
            selection = self.frames.select(
                self.selector, clips, None, grid, generators, draws=self.training
            )
        return pack_clips(clips, selection, *block)
