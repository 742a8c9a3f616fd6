"""The encoder that learns from a teacher, and the part of a clip's tokens that it sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from onereel.models.choosing import (
    Generators,
    Ranked,
    chosen_tokens,
    derived_generators,
    nested_tokens,
    rank_tokens,
    raster_order,
)
from onereel.models.heads import TokenPool
from onereel.models.vit import VisionTransformer
from onereel.tokens.packing import to_device
from onereel.tokens.tubelets import clip_grid
from onereel.types import Packed, TokenSelection, TubeletGrid

if TYPE_CHECKING:
    from onereel.tokens.frames import FrameSelection
    from onereel.tokens.selector import Selector


class Shown(NamedTuple):
    """What is settled before the teacher is asked.

    Attributes:
        grid: of the clips.
        counts: tokens that the student sees by each budget; empty where its selector says.
        pool: the tokens that the teacher is shown and the student's lie within; None: all.
        ranked: the student's order of the tokens, where there are budgets.
        tokens: the student's, embedded, where there are none.
    """

    grid: TubeletGrid
    counts: tuple[int, ...]
    pool: TokenSelection | None
    ranked: Ranked | None
    tokens: Packed | None


class Student(nn.Module):
    """Selector, encoder, and what pools its features; a classifier comes with fine-tuning.

    Args:
        encoder: turns packed patches into packed features.
        selector: what the student sees without budgets; with them it ranks by the student's own embeddings or pixels.
        frames: frame selection before it, where there are no budgets.
        budgets: tokens of a clip that the student sees, falling.
        pool_budget: tokens that the ranking keeps for teacher and student; 0: all.
        by_attention: within the pool the student's tokens are drawn by the teacher's attention, not the best ranked.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        selector: Selector,
        frames: FrameSelection | None = None,
        *,
        budgets: Sequence[int] = (),
        pool_budget: int = 0,
        by_attention: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.selector, self.frames = encoder, selector, frames
        self.head = TokenPool(encoder.embed_dim, encoder.pool)
        self.budgets, self.pool_budget, self.by_attention = (
            tuple(budgets),
            pool_budget,
            by_attention,
        )

    def show(
        self,
        clips: Tensor,
        scoring_clips: Tensor | None,
        generators: Generators,
        budgets: Sequence[int],
    ) -> Shown:
        """Rank the tokens of normalised `clips (B, T, C, H, W)`, or select them where there are no `budgets`."""
        encoder = self.encoder
        grid = clip_grid(clips, encoder.tubelet_size, encoder.patch_size)
        if not budgets:
            tokens, embedded = chosen_tokens(
                encoder,
                self.selector,
                self.frames,
                clips,
                scoring_clips,
                generators,
                draws=self.training,
            )
            if not embedded:
                tokens = replace(tokens, values=encoder.embed(tokens.values))
            return Shown(grid, (), None, None, tokens)
        pool = min(self.pool_budget or grid.num_tokens, grid.num_tokens)
        counts = tuple(min(budget, pool) for budget in budgets)
        if self.by_attention and not self.pool_budget:
            ranked = Ranked(clips, grid, raster_order(clips, grid), None)
        else:
            ranked = rank_tokens(
                encoder,
                self.selector,
                clips,
                scoring_clips,
                generators,
                fewest=counts[-1],
                most=counts[0],
            )
        return Shown(grid, counts, ranked.first(pool) if self.pool_budget else None, ranked, None)

    def tokens(
        self, shown: Shown, attention: Tensor | None, generators: Generators
    ) -> list[Packed]:
        """The student's embedded tokens, for each budget.

        Args:
            attention: of the teacher, `(B, N)`, where `by_attention`.
        """
        if shown.ranked is None:
            assert shown.tokens is not None
            return [shown.tokens]
        ranked = shown.ranked
        if attention is not None:
            mask = None if shown.pool is None else shown.pool.keep_mask
            draws = derived_generators(generators, "attention")
            ranked = ranked._replace(order=attention_order(attention, mask, draws))
        return nested_tokens(self.encoder, ranked, shown.counts)

    def draws(self, generators: Generators, number: int) -> Generators:
        """What drop path draws from for the budget with this number."""
        return derived_generators(generators, f"drop-path {number}" if number else "drop-path")

    def macs(self, grid: TubeletGrid, lengths: Sequence[Sequence[int]]) -> int:
        """Multiply-adds for clips of `grid`, embedded once, at each budget's `lengths`."""
        dense = len(lengths[0]) * grid.num_tokens
        embedded = dense if self.selector.needs_embeddings else sum(lengths[0])
        blocks = sum(self.encoder.macs(each, 0) for each in lengths)
        pooler = self.head.pooler
        pooled = 0
        if pooler is not None:
            pooled = sum(pooler.macs([n + 1 for n in each]) for each in lengths)
        return self.encoder.macs((), embedded) + blocks + pooled


@torch.no_grad()
def attention_order(attention: Tensor, pool: Tensor | None, generators: Generators) -> Tensor:
    """An order of each clip's tokens, of which the first K are drawn by `attention` without replacement, for any K.

    Args:
        attention: `(B, N)`, 0 or more.
        pool: bool `(B, N)`: all others come last; None: there are none.
        generators: one CPU generator per clip.

    Returns:
        int64 `(B, N)`. Each token waits for an exponential time of its rate, as in a race (UMT draws by multinomial).
    """
    if generators is None or len(generators) != len(attention):
        raise ValueError(f"attention draws: pass one generator per clip ({len(attention)})")
    num_tokens = attention.shape[1]
    waits = torch.stack([torch.empty(num_tokens).exponential_(generator=g) for g in generators])
    speed = attention.float() / to_device(waits, attention.device)
    if pool is not None:
        speed = speed.masked_fill(~pool, -1.0)
    return torch.sort(speed, dim=1, descending=True, stable=True).indices
