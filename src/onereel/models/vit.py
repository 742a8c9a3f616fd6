"""The plain video vision transformer, pre-norm, on packed tokens (ViT, arXiv 2010.11929; tubelets as in ViViT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onereel.errors import ConfigError, unknown_name
from onereel.models.attention import BACKENDS
from onereel.models.blocks import (
    STYLES,
    Block,
    Segments,
    compile_blocks,
    reset_linears,
    reset_rescaled,
)
from onereel.models.positions import (
    POSITIONS,
    GlobalPositions,
    PositionKind,
    fixed_positions,
    positions_of,
)
from onereel.tokens.packing import cumulative_lengths, per_token, to_device
from onereel.tokens.positions import gather_positions, gather_space_time, rotary_angles
from onereel.types import Packed, TubeletGrid

TOKEN_STD = 0.02  # class token and learned positions, as timm and VideoMAE
COLORS = 3
POOLS = ("mean", "cls", "attention")


class VisionTransformer(nn.Module):
    """Patches of kept tubelets in, one feature per token out.

    Args:
        grid: the grid that the model is made for. For clips of another, 3-D sin-cos positions are computed, and
            other tables interpolated.
        tubelet_size, patch_size: frames and pixels per side of a tubelet.
        embed_dim, depth, num_heads: as in timm.
        pool: "cls" and "attention" put a learned token in front of each clip, "mean" doesn't; the head pools
            accordingly.
        positions: "sincos" (fixed, 3-D), "sincos-1d" (fixed, by running number: VideoMAE's weights), "learned",
            "space-time" (a learned table of places plus one of times, which starts as zeros: AVION's), "global" (see
            `GlobalPositions`), or "rope" (queries and keys turned by time, row and column, see `rotary_angles`).
        style: one of `STYLES`.
        drop_path_rate: probability of skipping a branch of the last block for a clip; rises linearly from 0.
        qk_norm: LayerNorm on each head's queries and keys.
        patch_norm: a norm before and after the patch embedding (Dual PatchNorm, arXiv 2302.01327; FluxViT).
        local_positions: see `Attention`.
        table_grid: of the table of "global" positions; None: `grid`.
        length_embedding: add a learned vector per run length (RLT section 3.2), zero at the start.
        final_norm: normalise the features; off where the head normalises the pooled one (VideoMAE's fine-tuning).
        checkpointing: recompute each block in the backward pass.
        attention: back-end, see `onereel.models.attention`.
        patch_embedding: off where tokens come with a width of `embed_dim` and need none.
        align_corners: how a learned table is interpolated, see `resize_positions`.
        position_std: standard deviation that a learned table starts with.

    Linear weights start as `reset_linears` says, as in the ViT paper's code, MAE and VideoMAE's pre-training; in style
    "flux" as `reset_rescaled`.
    """

    temporal_depth = 0  # blocks over time alone, of an encoder that has such
    pos_embed: Tensor | None

    def __init__(
        self,
        grid: TubeletGrid,
        *,
        tubelet_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        pool: Literal["mean", "cls", "attention"] = "mean",
        positions: PositionKind = "sincos",
        style: Literal["vit", "clip", "vivit", "flux"] = "vit",
        drop_path_rate: float = 0.0,
        qk_norm: bool = False,
        patch_norm: bool = False,
        local_positions: bool = False,
        table_grid: TubeletGrid | None = None,
        length_embedding: bool = False,
        final_norm: bool = True,
        checkpointing: bool = False,
        attention: str = "auto",
        patch_embedding: bool = True,
        align_corners: bool = False,
        position_std: float = TOKEN_STD,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        _check_names(pool, positions, style, attention)
        if not 0 <= drop_path_rate < 1:
            raise ConfigError(f"drop_path_rate is {drop_path_rate}; allowed: 0 or more, below 1")
        look = STYLES[style]
        if qk_norm and look.wide_qk_norm:
            raise ConfigError(f"style {style} normalises queries and keys already: set qk_norm off")
        self.grid, self.tubelet_size, self.patch_size = grid, tubelet_size, patch_size
        self.embed_dim, self.depth, self.num_heads, self.pool = embed_dim, depth, num_heads, pool
        self.drop_path_rate, self.checkpointing = drop_path_rate, checkpointing
        self.qk_norm, self.attention, self.align_corners = qk_norm, attention, align_corners
        self.patch_values = COLORS * tubelet_size * patch_size**2
        self.positions, self.style, self.position_std = positions, style, position_std
        self._add_patch_embedding(patch_embedding, patch_norm)
        self._add_position_tables(table_grid or grid)
        self.cls_token = nn.Parameter(torch.empty(embed_dim)) if pool != "mean" else None
        self.length_embed = (
            nn.Parameter(torch.empty(grid.gt, embed_dim)) if length_embedding else None
        )
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, qk_norm, attention, look, local_positions)
            for _ in range(depth)
        )
        self.input_norm = look.make_norm(embed_dim) if look.input_norm else None
        self.norm = look.make_norm(embed_dim) if final_norm else nn.Identity()
        self.reset_parameters()

    def _add_patch_embedding(self, wanted: bool, norms: bool) -> None:
        sizes, look = (self.patch_values, self.embed_dim), STYLES[self.style]
        self.patch_embed = nn.Linear(*sizes, bias=look.patch_bias) if wanted else nn.Identity()
        self.patch_norms = nn.ModuleList(map(look.make_norm, sizes)) if norms else None

    def _add_position_tables(self, table_grid: TubeletGrid) -> None:
        grid, width = self.grid, self.embed_dim
        self.global_positions: nn.Module | None = None
        if self.positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(grid.num_tokens, width))
        elif self.positions == "space-time":
            self.pos_embed = nn.Parameter(torch.empty(grid.gh * grid.gw, width))
            self.temporal_embed = nn.Parameter(torch.empty(grid.gt, width))
        elif self.positions == "global":
            self.global_positions = GlobalPositions(table_grid, width)
            self.pos_embed = None
        elif self.positions == "rope":
            self.pos_embed = None
        else:
            # Not persistent: it follows from the grid, and another grid must be able to load the weights.
            table = fixed_positions(self.positions, grid, width)
            self.register_buffer("pos_embed", table, persistent=False)

    def reset_parameters(self) -> None:
        """Draw fresh weights, from the global generator as every PyTorch module does."""
        if STYLES[self.style].init_std:
            reset_rescaled(self, STYLES[self.style].init_std)
        else:
            reset_linears(self)
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.trunc_normal_(self.pos_embed, std=self.position_std)
        if self.positions == "space-time":
            nn.init.zeros_(self.temporal_embed)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=TOKEN_STD)
        if self.length_embed is not None:
            nn.init.zeros_(self.length_embed)

    def compile(self, **options: Any) -> None:
        """torch.compile the blocks."""
        compile_blocks(self, **options)

    def embed(self, patches: Tensor) -> Tensor:
        """Patch embedding, before positions: `(..., P)` to `(..., D)`."""
        if self.patch_norms is None:
            return self.patch_embed(patches)
        before, after = self.patch_norms
        return after(self.patch_embed(before(patches)))

    def forward(
        self,
        tokens: Packed,
        generators: Sequence[torch.Generator] | None = None,
        *,
        embedded: bool = False,
    ) -> Packed:
        """Features of packed tokens.

        Args:
            tokens: packed patches `(M, P)`.
            generators: one CPU generator per clip, which drop path draws from in training; else not needed.
            embedded: the values are already those of `embed`, `(M, D)`.

        Returns:
            Features `(M, D)`, normalised where the encoder has a final norm. Where it has a class token, each clip
            begins with it, at coordinates -1.
        """
        return self.forward_layers(tokens, generators, (), embedded=embedded)[0]

    def forward_layers(
        self,
        tokens: Packed,
        generators: Sequence[torch.Generator] | None,
        layers: Sequence[int],
        *,
        embedded: bool = False,
    ) -> tuple[Packed, list[Tensor]]:
        """As `forward`, and what each block of `layers` (from 0, rising) gives: `(M, D)`, class tokens included."""
        if not embedded:
            tokens = replace(tokens, values=self.embed(tokens.values))
        tokens = replace(tokens, values=self.place(tokens))
        token = self.class_token()
        if token is not None:
            tokens = prepend_token(tokens, token)
        if self.input_norm is not None:
            tokens = replace(tokens, values=self.input_norm(tokens.values))
        segments = self.segments(tokens)
        scales = self._drop_path_scales(tokens, generators)
        x, between = tokens.values, []
        for number, (block, scale) in enumerate(zip(self.blocks, scales, strict=True)):
            if self.checkpointing and torch.is_grad_enabled():
                # Blocks draw nothing (see _drop_path_scales), so there is no random state to keep.
                x = checkpoint(
                    block, x, segments, scale, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x = block(x, segments, scale)
            if number in layers:
                between.append(x)
        return replace(tokens, values=self.norm(x)), between

    def class_token(self) -> Tensor | None:
        """What each clip begins with, its place in it: `(D,)`; None where there is none."""
        if self.cls_token is None or not isinstance(self.global_positions, GlobalPositions):
            return self.cls_token
        return self.cls_token + self.global_positions.pos_embed[0]

    def segments(self, tokens: Packed) -> Segments:
        """What attention must know of `tokens`, class tokens included."""
        angles = None
        if self.positions == "rope":
            angles = rotary_angles(tokens.coordinates, self.embed_dim // self.num_heads)
        return Segments(tokens.lengths, tokens.cu_seqlens, angles)

    def place(self, tokens: Packed) -> Tensor:
        """Embedded tokens plus what says where they are and how long they last: `(M, D)`."""
        positions = self._positions(tokens)
        x = tokens.values if positions is None else tokens.values + positions
        return x if self.length_embed is None else x + self._length_embedding(tokens)

    def _positions(self, tokens: Packed) -> Tensor | None:
        """What is added to each token; None where attention sees to positions."""
        if self.global_positions is not None:
            table = self.global_positions(tokens.grid)
            return gather_positions(table, tokens.coordinates, tokens.grid)
        if self.pos_embed is None:
            return None
        if self.positions == "space-time":
            tables = (self.pos_embed, self.temporal_embed)
            return gather_space_time(*tables, tokens.coordinates, self.grid, tokens.grid)
        return positions_of(
            tokens, self.pos_embed, self.grid, self.positions, align_corners=self.align_corners
        )

    def _length_embedding(self, tokens: Packed) -> Tensor:
        table = self.length_embed
        assert table is not None
        if tokens.run_lengths is None:
            return table[0]  # no runs: each token stands for itself
        if tokens.grid.gt > len(table):
            raise ConfigError(
                f"clips of {tokens.grid.gt} tubelets in time, but length_embedding was made for {len(table)}. "
                f"Use clips of at most {len(table) * self.tubelet_size} frames."
            )
        return F.embedding(tokens.run_lengths - 1, table)

    def _drop_path_scales(
        self, tokens: Packed, generators: Sequence[torch.Generator] | None
    ) -> Sequence[Tensor | None]:
        """Per block, `(2, M)` factors of its two branches: 0 where a clip skips it, else 1 / keep probability.

        One draw per clip, block and branch; from the clip's own generator, so that it doesn't depend on the batch.
        A generator that is given for several clips (frames of one) draws once for all of them.
        """
        if not (self.training and self.drop_path_rate):
            return [None] * self.depth
        if generators is None or len(generators) != tokens.batch_size:
            raise ValueError(
                f"drop path draws: pass one generator per clip ({tokens.batch_size}), or call eval()"
            )
        keep = 1 - torch.linspace(0, self.drop_path_rate, self.depth)[:, None, None]
        draws = {g: torch.rand(self.depth, 2, generator=g) for g in dict.fromkeys(generators)}
        scales = (torch.stack([draws[g] for g in generators], dim=-1) < keep) / keep
        return list(per_token(to_device(scales, tokens.device), tokens))

    def macs(self, lengths: Sequence[int], num_embedded: int | None = None) -> int:
        """Multiply-adds of the matrix products of a forward with `lengths` tokens per clip.

        `12 n d^2 + 2 n^2 d` per block and `n P d` for the embedding; a class token counts in the blocks.
        `num_embedded`: patches embedded, where that is more than are kept.
        """
        d, extra = self.embed_dim, int(self.cls_token is not None)
        blocks = sum(12 * n * d**2 + 2 * n**2 * d for n in (n + extra for n in lengths))
        embedded = sum(lengths) if num_embedded is None else num_embedded
        return self.depth * blocks + embedded * self.patch_values * d


def _check_names(pool: str, positions: str, style: str, attention: str) -> None:
    for kind, given, allowed in (
        ("pool", pool, POOLS),
        ("positions", positions, POSITIONS),
        ("style", style, STYLES),
        ("attention back-end", attention, ("auto", *BACKENDS)),
    ):
        if given not in allowed:
            raise unknown_name(kind, given, allowed)


def prepend_token(packed: Packed, token: Tensor) -> Packed:
    """`packed` with `token (D,)` in front of each clip, at coordinates (-1, -1, -1) with run length 0."""

    def prepend(values: Tensor, first: Tensor) -> Tensor:
        first = first.expand(1, *values.shape[1:])
        return torch.cat([part for clip in values.split(packed.lengths) for part in (first, clip)])

    lengths = tuple(n + 1 for n in packed.lengths)
    runs = packed.run_lengths
    return Packed(
        values=prepend(packed.values, token.to(packed.values.dtype)),
        lengths=lengths,
        cu_seqlens=cumulative_lengths(lengths, packed.values.device),
        coordinates=prepend(packed.coordinates, packed.coordinates.new_full((), -1)),
        grid=packed.grid,
        run_lengths=None if runs is None else prepend(runs, runs.new_zeros(())),
    )
