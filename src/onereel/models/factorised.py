"""The factorised encoder of ViViT (arXiv 2103.15691, Model 2): space within each frame, then time over the frames.

A frame here is a tubelet in time: with tubelets of 2 frames, 32 frames of a clip are 16. Its spatial half may be frozen
(arXiv 2306.04822): it then costs a forward pass, and no memory for a backward one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from onereel.errors import ConfigError
from onereel.models.adapter import create_adapter
from onereel.models.backbone import ImageBackbone
from onereel.models.blocks import compile_blocks
from onereel.models.pooling import pool_tokens
from onereel.models.vit import VisionTransformer
from onereel.tokens.packing import Frames, by_frame, concatenate, cumulative_lengths
from onereel.types import FrameFeatures, Packed, TubeletGrid

Generators = Sequence[torch.Generator] | None


class FactorisedEncoder(nn.Module):
    """Packed patches in, one feature per frame out, the temporal class token first where there is one.

    Tokens of a clip must lie in order (t, h, w), as packing gives them. A frame of which no token is kept has no place
    in the temporal half: it is absent, not zeros, and the other frames keep their true times.

    Args:
        spatial: of grid (1, gh, gw); sees the tokens of one frame at a time, and is the same for all times. An
            `ImageBackbone` must be frozen.
        temporal: of grid (gt, 1, 1), as wide as `spatial` and without a patch embedding; sees one vector per frame.
            Both pool alike: by class tokens, or by the mean (Scenic's "gap"); a backbone has its own way.
        adapter: "none" or a name of `ADAPTERS`.
        frozen: no weight of `spatial` learns, and it stays in evaluation mode: no gradient enters it.
        frames_at_once: frames that a frozen `spatial` takes at once, to bound the memory; 0: all of a batch.
    """

    def __init__(
        self,
        spatial: VisionTransformer | ImageBackbone,
        temporal: VisionTransformer,
        *,
        adapter: str = "none",
        frozen: bool = False,
        frames_at_once: int = 0,
    ) -> None:
        super().__init__()
        if (
            spatial.pool == "attention"
            or temporal.pool == "attention"
            or (isinstance(spatial, VisionTransformer) and spatial.pool != temporal.pool)
        ):
            raise ConfigError(
                f"the spatial half pools by {spatial.pool!r}, the temporal by {temporal.pool!r}; "
                "allowed: both by mean, or both by cls"
            )
        self.spatial, self.temporal = spatial, temporal
        self.adapter = create_adapter(adapter, temporal.embed_dim)
        self.frozen, self.frames_at_once = frozen, frames_at_once
        self.grid = spatial.grid._replace(gt=temporal.grid.gt)
        self.tubelet_size, self.patch_size = spatial.tubelet_size, spatial.patch_size
        self.patch_values = spatial.patch_values
        self.embed_dim, self.pool = temporal.embed_dim, temporal.pool
        self.depth = spatial.depth + temporal.depth
        self.temporal_depth = temporal.depth
        self.num_layers = 1 if self.adapter is None else self.adapter.num_layers
        if self.num_layers > spatial.depth:
            raise ConfigError(
                f"model.adapter {adapter} reads the last {self.num_layers} layers, and the spatial half has "
                f"{spatial.depth}; allowed: bottleneck, temporal-conv, attention-pool"
            )
        if frozen:
            spatial.requires_grad_(False)
            spatial.eval()

    def train(self, mode: bool = True) -> FactorisedEncoder:
        """As of every module; a frozen spatial half stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.spatial.eval()
        return self

    def compile(self, **options: object) -> None:
        """torch.compile the blocks."""
        compile_blocks(self, **options)

    def embed(self, patches: Tensor) -> Tensor:
        """Patch embedding, before positions: `(..., P)` to `(..., D)`."""
        assert isinstance(self.spatial, VisionTransformer)  # backbones see whole frames
        return self.spatial.embed(patches)

    def forward(
        self, tokens: Packed, generators: Generators = None, *, embedded: bool = False
    ) -> Packed:
        """Features of the frames of packed tokens, of grid (gt, 1, 1).

        Args:
            tokens: packed patches `(M, P)`, or `FrameFeatures`, which are taken up after the spatial half.
            generators: one CPU generator per clip, which drop path draws from in training; else not needed.
            embedded: the values are already those of `embed`, `(M, D)`.
        """
        if not isinstance(tokens, FrameFeatures):
            tokens = self.frame_features(tokens, generators, embedded=embedded)
        return self.from_frames(tokens, generators)

    def frame_features(
        self, tokens: Packed, generators: Generators = None, *, embedded: bool = False
    ) -> FrameFeatures:
        """The spatial half. Frozen, it draws nothing, and its result has no history and storage of its own."""
        frames = by_frame(tokens)
        grid = TubeletGrid(tokens.grid.gt, 1, 1)
        if not self.frozen:
            return self._read(frames, grid, _per_frame(generators, frames), embedded)
        with torch.no_grad():
            return self._read(frames, grid, None, embedded)

    def from_frames(self, features: FrameFeatures, generators: Generators = None) -> Packed:
        """Adapter and temporal half: features `(F, D)`, with the class token first in each clip."""
        values = features.values if self.adapter is None else self.adapter(features)
        frames = Packed(
            values=values,
            lengths=features.lengths,
            cu_seqlens=features.cu_seqlens,
            coordinates=features.coordinates,
            grid=features.grid,
        )
        return self.temporal(frames, generators, embedded=True)

    def _read(
        self, frames: Frames, grid: TubeletGrid, generators: Generators, embedded: bool
    ) -> FrameFeatures:
        count = len(frames.tokens.lengths)
        step = self.frames_at_once if self.frozen and self.frames_at_once else count
        parts = [
            self._see(frames.tokens.part(first, min(first + step, count)), generators, embedded)
            for first in range(0, count, step)
        ]
        values = torch.cat([vectors for vectors, _ in parts])
        seen = [tokens for _, tokens in parts if tokens is not None]
        return FrameFeatures(
            values=values,
            lengths=frames.lengths,
            cu_seqlens=cumulative_lengths(frames.lengths, values.device),
            coordinates=frames.coordinates,
            grid=grid,
            tokens=concatenate(seen) if seen else None,
        )

    def _see(
        self, frames: Packed, generators: Generators, embedded: bool
    ) -> tuple[Tensor, Packed | None]:
        """The vectors `(F, W)` of some frames, and the features of their tokens where the adapter reads them."""
        layers = range(self.spatial.depth - self.num_layers, self.spatial.depth - 1)
        seen, below = self.spatial.forward_layers(frames, generators, layers, embedded=embedded)
        given = [seen, *(replace(seen, values=x) for x in reversed(below))]
        assert self.spatial.pool != "attention"  # refused above
        vectors = torch.cat([pool_tokens(one, self.spatial.pool) for one in given], dim=1)
        reads_tokens = self.adapter is not None and self.adapter.reads_tokens
        return vectors, seen if reads_tokens else None

    def macs(
        self,
        lengths: Sequence[int],
        num_embedded: int | None = None,
        grid: TubeletGrid | None = None,
    ) -> int:
        """Multiply-adds of the matrix products of a forward with `lengths` tokens per clip, spread over its frames.

        Args:
            num_embedded: patches embedded, where that is more than are kept.
            grid: of the clips; None: the encoder's own.
        """
        num_times = (grid or self.grid).gt
        per_frame = [n for length in lengths for n in _spread(length, num_times)]
        frames = [min(length, num_times) for length in lengths]
        return self.spatial.macs(per_frame, num_embedded) + self.temporal_macs(frames, sum(lengths))

    def temporal_macs(self, num_frames: Sequence[int], num_tokens: int) -> int:
        """Those of adapter and temporal half, for clips of so many frames, which hold `num_tokens` tokens in all."""
        adapter = 0 if self.adapter is None else self.adapter.macs(sum(num_frames), num_tokens)
        return adapter + self.temporal.macs(num_frames, 0)


Encoder = VisionTransformer | FactorisedEncoder


def _per_frame(generators: Generators, frames: Frames) -> Generators:
    """The generator of each frame's clip, so that its frames share a draw (as in Scenic)."""
    if generators is None:
        return None
    return [g for g, count in zip(generators, frames.lengths, strict=True) for _ in range(count)]


def _spread(num_tokens: int, num_frames: int) -> list[int]:
    """So many tokens over so many frames, as evenly as can be; frames without any are left out."""
    each, more = divmod(num_tokens, num_frames)
    return [n for n in (each + (i < more) for i in range(num_frames)) if n]
