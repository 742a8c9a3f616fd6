"""Clips to logits: select tubelets, encode the kept ones, classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from onereel.errors import ConfigError
from onereel.models.factorised import Encoder, FactorisedEncoder
from onereel.models.heads import ClassificationHead, ProjectionHead
from onereel.seeding import stable_seed
from onereel.tokens.packing import pack, pack_all, pack_clips
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed, TokenSelection, TubeletGrid

if TYPE_CHECKING:
    from onereel.config import RunConfig
    from onereel.tokens.frames import FrameSelection
    from onereel.tokens.selector import Selector

Generators = Sequence[torch.Generator] | None


class Output(NamedTuple):
    """What a forward gives.

    Attributes:
        logits: `(B, num_classes)`; of a `ProjectionHead` the embedding `(B, E)`, not normalised.
        lengths: tokens kept per clip, a class token not counted.
        num_dense_tokens: tokens that a clip has when all are kept (of the frames that frame selection chooses).
        features: the encoder's features, class tokens included.
    """

    logits: Tensor
    lengths: tuple[int, ...]
    num_dense_tokens: int
    features: Packed


class VideoModel(nn.Module):
    """Selector, encoder and head.

    Args:
        encoder: turns packed patches into packed features.
        head: turns packed features into logits, or an embedding; its pool must be the encoder's.
        selector: holds no weights, and may be replaced at any time (`model.selector = ...`).
        config: what the parts were built from, which `save_pretrained` writes; None where they were put together
            by hand.
        frames: frame selection before it: draws in training, takes the best in evaluation. None: all frames.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: ClassificationHead | ProjectionHead,
        selector: Selector,
        config: RunConfig | None = None,
        frames: FrameSelection | None = None,
    ) -> None:
        super().__init__()
        if encoder.pool != head.pool:
            raise ConfigError(f"encoder pools by {encoder.pool!r}, head by {head.pool!r}")
        self.encoder, self.head, self.selector, self.frames = encoder, head, selector, frames
        self.config = config

    def forward(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None = None,
        generators: Generators = None,
    ) -> Output:
        """Classify `clips`.

        Args:
            clips: normalised float `(B, T, C, H, W)`, or patches of them that were selected before, or the
                `FrameFeatures` that a factorised encoder's spatial half made of them.
            scoring_clips: what the selector looks at in place of `clips`, same shape; None: `clips`.
            generators: one CPU generator per clip. A selector draws from it; drop path and dropout draw from
                others made of its seed, so that no technique shifts the draws of another.
        """
        if isinstance(clips, Packed):
            tokens, embedded = clips, False
        else:
            tokens, embedded = self._tokens(clips, scoring_clips, generators)
        features = self.encoder(
            tokens, derived_generators(generators, "drop-path"), embedded=embedded
        )
        logits = self.head(features, derived_generators(generators, "dropout"))
        return Output(
            logits, tokens.lengths, dense_grid(self.frames, tokens.grid).num_tokens, features
        )

    def _tokens(
        self, clips: Tensor, scoring_clips: Tensor | None, generators: Generators
    ) -> tuple[Packed, bool]:
        """The kept tokens, and whether they are embedded already or still patches."""
        encoder, block = self.encoder, (self.encoder.tubelet_size, self.encoder.patch_size)
        grid = clip_grid(clips, *block)
        if self.selector.num_kept(dense_grid(self.frames, grid)) == grid.num_tokens:
            return pack_all(patchify(clips, *block), grid), False
        seen = clips if scoring_clips is None else scoring_clips
        choose = partial(select_tokens, self.selector, self.frames, seen, draws=self.training)
        if not self.selector.needs_embeddings:
            return pack_clips(clips, choose(None, grid, generators), *block), False
        embeddings = scored = encoder.embed(patchify(clips, *block))
        if scoring_clips is not None:
            with torch.no_grad():
                scored = encoder.embed(patchify(scoring_clips, *block))
        return pack(embeddings, choose(scored.detach(), grid, generators), grid), True

    def macs(self, lengths: Sequence[int]) -> int:
        """Multiply-adds of the matrix products of a forward that keeps `lengths` tokens, head included.

        For clips of the encoder's own grid, scored on themselves; FLOPs are twice as many.
        """
        dense = len(lengths) * self.encoder.grid.num_tokens
        embedded = dense if self.selector.needs_embeddings else sum(lengths)
        return self.encoder.macs(lengths, embedded) + self.head.macs(len(lengths))

    def step_macs(self, lengths: Sequence[int], backward: int, *, from_frames: bool = False) -> int:
        """Those of a training step: the forward, and `backward` times what of it has a backward pass.

        `from_frames`: clips are `FrameFeatures`, and `lengths` counts frames.
        """
        encoder = self.encoder
        if not (isinstance(encoder, FactorisedEncoder) and (encoder.frozen or from_frames)):
            return (1 + backward) * self.macs(lengths)
        frames = [min(length, encoder.grid.gt) for length in lengths]
        num_tokens = len(lengths) * encoder.grid.num_tokens if from_frames else sum(lengths)
        trained = encoder.temporal_macs(frames, num_tokens) + self.head.macs(len(lengths))
        return backward * trained + (trained if from_frames else self.macs(lengths))

    def save_pretrained(
        self,
        folder: str | Path,
        class_names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write weights, configuration and card for `onereel.load(folder)`: see `pretrained.folder.write_folder`."""
        from onereel.models.pretrained.folder import write_folder

        return write_folder(folder, self, class_names, facts)

    def push_to_hub(
        self,
        name: str,
        class_names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        *,
        private: bool = True,
    ) -> str:
        """Upload the same as the model `owner/name` of the Hugging Face Hub: see `pretrained.folder.push_folder`."""
        from onereel.models.pretrained.folder import push_folder

        return push_folder(name, self, class_names, facts, private=private)


@torch.no_grad()
def select_tokens(
    selector: Selector,
    frames: FrameSelection | None,
    clips: Tensor,
    embeddings: Tensor | None,
    grid: TubeletGrid,
    generators: Generators,
    *,
    draws: bool,
) -> TokenSelection:
    """What `selector` keeps, of the frames that `frames` chooses where it is on (at random where it `draws`)."""
    if frames is None:
        return selector.select(clips, embeddings, grid, generators)
    return frames.select(selector, clips, embeddings, grid, generators, draws=draws)


def dense_grid(frames: FrameSelection | None, grid: TubeletGrid) -> TubeletGrid:
    """The tubelets of clips of `grid` that a model is given when it keeps all tokens."""
    return grid if frames is None else frames.given_grid(grid)


def derived_generators(generators: Generators, purpose: str) -> Generators:
    """Generators for another purpose, each a function of the seed of one of `generators`."""
    if generators is None:
        return None
    seeds = [stable_seed(generator.initial_seed(), purpose) for generator in generators]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
