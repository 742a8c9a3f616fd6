"""The masked autoencoder of VideoMAE (arXiv 2203.12602) and EVEREST (2211.10636) on packed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onereel.errors import ConfigError
from onereel.models.blocks import NORM_EPS, Block, Segments, reset_linears
from onereel.models.choosing import (
    Generators,
    dense_grid,
    derived_generators,
    select_tokens,
)
from onereel.models.positions import fixed_positions, positions_of
from onereel.models.vit import TOKEN_STD, VisionTransformer
from onereel.tokens.masking import Masking
from onereel.tokens.packing import (
    TokenIndices,
    cumulative_lengths,
    pack_at,
    per_token,
    take,
    token_indices,
)
from onereel.tokens.ranking import at_budget
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed, TubeletGrid

if TYPE_CHECKING:
    from onereel.tokens.frames import FrameSelection
    from onereel.tokens.selector import Selector


class MaskedDecoder(nn.Module):
    """A light transformer that predicts the pixels of hidden tubelets from the features of the visible ones.

    Args:
        encoder: whose features it reads, and whose grid, tubelets and options it shares.
        embed_dim, depth, num_heads: its own size.

    Positions are fixed sine-cosine of the encoder's kind, in a table of its own width. Where the encoder embeds run
    lengths, so does the decoder, of visible and hidden tokens alike.
    """

    pos_embed: Tensor

    def __init__(
        self, encoder: VisionTransformer, *, embed_dim: int, depth: int, num_heads: int
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError(f"decoder width {embed_dim} is not a multiple of {num_heads} heads")
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.grid = encoder.grid
        self.checkpointing = encoder.checkpointing
        self.embed = nn.Linear(encoder.embed_dim, embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        # Learned positions are the encoder's alone: VideoMAE's decoder has a fixed table in any case.
        self.positions = "sincos-1d" if encoder.positions == "sincos-1d" else "sincos"
        table = fixed_positions(self.positions, self.grid, embed_dim)
        self.register_buffer("pos_embed", table, persistent=False)
        self.length_embed = (
            None
            if encoder.length_embed is None
            else nn.Parameter(torch.zeros(len(encoder.length_embed), embed_dim))
        )
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, encoder.qk_norm, encoder.attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.head = nn.Linear(embed_dim, encoder.patch_values)
        reset_linears(self)
        # VideoMAE cuts the normal at one standard deviation, unlike timm's two.
        nn.init.trunc_normal_(self.mask_token, std=TOKEN_STD, a=-TOKEN_STD, b=TOKEN_STD)

    def forward(self, features: Packed, targets: Packed) -> Tensor:
        """Pixels `(M, P)` of `targets`, whose own values are not looked at, from the visible tokens' `features`."""
        visible = self.embed(features.values)
        visible = visible + self._places(features).to(visible.dtype)
        hidden = (self.mask_token + self._places(targets)).to(visible.dtype)
        x, lengths = _interleave(visible, hidden, features.lengths, targets.lengths)
        segments = Segments(lengths, cumulative_lengths(lengths, x.device))
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, segments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, segments)
        return self.head(self.norm(_last(x, lengths, targets.lengths)))

    def _places(self, tokens: Packed) -> Tensor:
        """Positions, and run lengths where they are embedded: `(M, D)`."""
        places = positions_of(tokens, self.pos_embed, self.grid, self.positions)
        if self.length_embed is None:
            return places
        if tokens.run_lengths is None:
            return places + self.length_embed[0]
        return places + nn.functional.embedding(tokens.run_lengths - 1, self.length_embed)

    def macs(self, num_visible: Sequence[int], num_targets: Sequence[int]) -> int:
        """Multiply-adds of the matrix products of a forward, the same terms as `VisionTransformer.macs`."""
        d = self.embed_dim
        lengths = [v + t for v, t in zip(num_visible, num_targets, strict=True)]
        blocks = sum(12 * n * d**2 + 2 * n**2 * d for n in lengths)
        ends = sum(num_visible) * self.embed.in_features + sum(num_targets) * self.head.out_features
        return self.depth * blocks + ends * d


class Reconstruction(NamedTuple):
    """What a forward gives.

    Attributes:
        predicted: `(M, P)` of the targets, in units of each patch's own mean and deviation.
        targets: the hidden tokens asked for; values are the clips' own pixels `(M, P)`.
        visible: the encoder's features.
        num_dense_tokens: tokens that a clip has when all are kept.
    """

    predicted: Tensor
    targets: Packed
    visible: Packed
    num_dense_tokens: int


class MaskedAutoencoder(nn.Module):
    """Selector, masks, encoder of the visible tokens, decoder of visible and target tokens.

    With a selector, only tokens that it keeps are visible or targets; the others are neither embedded for training,
    nor decoded, nor in the loss. A run-length token stands for its run at its head: its target is the head's pixels.

    Args:
        frames: frame selection before the selector, as in `VideoModel`.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder: MaskedDecoder,
        selector: Selector,
        masking: Masking,
        frames: FrameSelection | None = None,
    ) -> None:
        super().__init__()
        if encoder.pool != "mean":
            raise ConfigError(
                f"model.pool is {encoder.pool!r}; masked pre-training has no class token: use mean"
            )
        if isinstance(encoder.norm, nn.Identity):
            raise ConfigError(
                "model.fc_norm is True; masked pre-training pools nothing and normalises tokens: set it to False"
            )
        self.encoder, self.decoder = encoder, decoder
        self.selector, self.masking, self.frames = selector, masking, frames

    def forward(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None = None,
        generators: Generators = None,
        budget: int = 0,
    ) -> Reconstruction:
        """Reconstruct hidden parts of `clips`.

        Args:
            clips: normalised float `(B, T, C, H, W)`, or patches of them that were selected before.
            scoring_clips: what the selector looks at in place of `clips`; None: `clips`.
            generators: one CPU generator per clip, as in `VideoModel`; masks draw from others made of its seed.
            budget: tokens that the selector keeps of each clip, as in `VideoModel`; 0: its own number.
        """
        draws = derived_generators(generators, "mask")
        visible, targets = (
            self._of_patches(clips, draws)
            if isinstance(clips, Packed)
            else self._of_clips(clips, scoring_clips, generators, draws, budget)
        )
        features = self.encoder(visible, derived_generators(generators, "drop-path"))
        num_dense = dense_grid(self.frames, targets.grid).num_tokens
        return Reconstruction(self.decoder(features, targets), targets, features, num_dense)

    @torch.no_grad()
    def _of_patches(self, patches: Packed, draws: Generators) -> list[Packed]:
        """Visible and target patches, of those that were selected before."""
        clip = per_token(torch.arange(patches.batch_size, device=patches.device), patches)
        kept = TokenIndices(patches.lengths, torch.cat([clip[None], patches.coordinates.T]))
        return [take(patches, *part) for part in self.masking.split(kept, patches.grid, draws)]

    @torch.no_grad()
    def _of_clips(
        self,
        clips: Tensor,
        scoring_clips: Tensor | None,
        generators: Generators,
        draws: Generators,
        budget: int,
    ) -> list[Packed]:
        """Visible and target patches; no others are read."""
        block = (self.encoder.tubelet_size, self.encoder.patch_size)
        grid = clip_grid(clips, *block)
        seen = clips if scoring_clips is None else scoring_clips
        selector = at_budget(self.selector, budget, dense_grid(self.frames, grid))
        kept, run_lengths = self._select(selector, seen, grid, generators)
        parts = []
        for lengths, positions in self.masking.split(kept, grid, draws):
            tokens = TokenIndices(lengths, kept.indices[:, positions])
            parts.append(pack_at(clips, tokens, *block, run_lengths))
        return parts

    def _select(
        self, selector: Selector, seen: Tensor, grid: TubeletGrid, generators: Generators
    ) -> tuple[TokenIndices, Tensor | None]:
        """The kept tokens, and the run lengths `(B, N)` if there are any."""
        num_kept = selector.num_kept(dense_grid(self.frames, grid))
        if num_kept == grid.num_tokens:
            everything = seen.new_ones(len(seen), grid.num_tokens, dtype=torch.bool)
            return token_indices(everything, grid, num_kept), None
        embeddings = None
        if selector.needs_embeddings:
            # Under no_grad, so that dropped patches leave no trace for the backward pass.
            patches = patchify(seen, self.encoder.tubelet_size, self.encoder.patch_size)
            embeddings = self.encoder.embed(patches)
        selection = select_tokens(
            selector, self.frames, seen, embeddings, grid, generators, draws=self.training
        )
        return token_indices(selection.keep_mask, grid, num_kept), selection.run_lengths

    def macs(self, num_visible: Sequence[int], num_targets: Sequence[int]) -> int:
        """Multiply-adds of a forward that embeds the visible patches only; see `scoring_macs`."""
        return self.encoder.macs(num_visible) + self.decoder.macs(num_visible, num_targets)

    def scoring_macs(self, batch_size: int, grid: TubeletGrid) -> int:
        """Multiply-adds of embedding every patch of clips of `grid` for the selector, where it asks for that; there is
        no backward."""
        dense = batch_size * grid.num_tokens * int(self.selector.needs_embeddings)
        return dense * self.encoder.patch_values * self.encoder.embed_dim


def published_macs(
    model: MaskedAutoencoder, num_visible: Sequence[int], num_targets: Sequence[int]
) -> int:
    """Multiply-adds as papers count them, of clips of the encoder's grid: every patch is embedded, hidden ones too."""
    dense = len(num_visible) * model.encoder.grid.num_tokens
    return model.encoder.macs(num_visible, dense) + model.decoder.macs(num_visible, num_targets)


def _interleave(
    first: Tensor, second: Tensor, first_lengths: Sequence[int], second_lengths: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """`first` then `second` of each clip, and the tokens of each clip."""
    lengths = tuple(a + b for a, b in zip(first_lengths, second_lengths, strict=True))
    if len(set(first_lengths)) == len(set(second_lengths)) == 1:
        clips = [x.unflatten(0, (len(lengths), -1)) for x in (first, second)]
        return torch.cat(clips, dim=1).flatten(0, 1), lengths
    parts = zip(first.split(first_lengths), second.split(second_lengths))
    return torch.cat([part for clip in parts for part in clip]), lengths


def _last(x: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The last `counts[b]` rows of each clip."""
    if len(set(lengths)) == len(set(counts)) == 1:
        return x.unflatten(0, (len(lengths), -1))[:, -counts[0] :].flatten(0, 1)
    return torch.cat([clip[-n:] for clip, n in zip(x.split(tuple(lengths)), counts)])
