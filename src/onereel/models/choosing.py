"""From clips to the tokens that an encoder sees: one selection, or nested ones of one ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from onereel.models.factorised import Encoder
from onereel.seeding import stable_seed
from onereel.tokens.budgets import keep_first
from onereel.tokens.packing import pack, pack_all, pack_clips, take_selected
from onereel.tokens.ranking import ranker
from onereel.tokens.runs import run_lengths
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed, TokenSelection, TubeletGrid

if TYPE_CHECKING:
    from onereel.tokens.frames import FrameSelection
    from onereel.tokens.selector import Selector

Generators = Sequence[torch.Generator] | None


def chosen_tokens(
    encoder: Encoder,
    selector: Selector,
    frames: FrameSelection | None,
    clips: Tensor,
    scoring_clips: Tensor | None,
    generators: Generators,
    *,
    draws: bool,
) -> tuple[Packed, bool]:
    """The kept tokens of normalised `clips`, and whether they are embedded already or still patches.

    Args:
        scoring_clips: what the selector looks at in place of `clips`, same shape; None: `clips`.
        draws: whether frames are chosen at random, as in training.
    """
    block = (encoder.tubelet_size, encoder.patch_size)
    grid = clip_grid(clips, *block)
    if selector.num_kept(dense_grid(frames, grid)) == grid.num_tokens:
        return pack_all(patchify(clips, *block), grid), False
    seen = clips if scoring_clips is None else scoring_clips
    choose = partial(select_tokens, selector, frames, seen, draws=draws)
    if not selector.needs_embeddings:
        return pack_clips(clips, choose(None, grid, generators), *block), False
    with torch.no_grad():
        scored = encoder.embed(patchify(seen, *block))
        choice = choose(scored, grid, generators)
    if scoring_clips is None and not torch.is_grad_enabled():
        return pack(scored, choice, grid), True
    # Embedded anew, so that the backward pass holds kept patches only.
    return pack_clips(clips, choice, *block), False


class Ranked(NamedTuple):
    """The tokens of normalised `clips` in an order.

    Attributes:
        grid: of the clips.
        order: int64 `(B, N)`, best first.
        embedded: every patch, embedded, where that was needed to rank them or because all are kept.
    """

    clips: Tensor
    grid: TubeletGrid
    order: Tensor
    embedded: Packed | None

    def first(self, count: int) -> TokenSelection:
        """The first `count` tokens of each clip."""
        keep_mask = keep_first(self.order, count)
        return TokenSelection(keep_mask, run_lengths(keep_mask, self.grid), count)


def rank_tokens(
    encoder: Encoder,
    selector: Selector,
    clips: Tensor,
    scoring_clips: Tensor | None,
    generators: Generators,
    *,
    fewest: int,
    most: int,
) -> Ranked:
    """`clips` as their selector ranks them, for budgets of `fewest` to `most` tokens.

    Raises ConfigError where the selector doesn't rank.
    """
    block = (encoder.tubelet_size, encoder.patch_size)
    grid, chooser = clip_grid(clips, *block), ranker(selector)
    embedded = embeddings = None
    if chooser.needs_embeddings or most >= grid.num_tokens:
        patches = pack_all(patchify(clips, *block), grid)
        embedded = replace(patches, values=encoder.embed(patches.values))
        embeddings = embedded.values.detach().view(len(clips), grid.num_tokens, -1)
    if fewest >= grid.num_tokens:
        return Ranked(clips, grid, raster_order(clips, grid), embedded)
    with torch.no_grad():
        seen = clips if scoring_clips is None else scoring_clips
        if scoring_clips is not None and chooser.needs_embeddings:
            embeddings = encoder.embed(patchify(scoring_clips, *block))
        order = chooser.rank(seen, embeddings, grid, generators)
    return Ranked(clips, grid, order, embedded)


def raster_order(clips: Tensor, grid: TubeletGrid) -> Tensor:
    """The order `(B, N)` of tokens that are not ranked."""
    return torch.arange(grid.num_tokens, device=clips.device).expand(len(clips), -1)


def nested_tokens(encoder: Encoder, ranked: Ranked, counts: Sequence[int]) -> list[Packed]:
    """The first tokens, embedded, for each of `counts`, which fall; the patches of the largest are embedded once."""
    choices = [ranked.first(count) for count in counts]
    largest = ranked.embedded
    if largest is None:
        patches = pack_clips(ranked.clips, choices[0], encoder.tubelet_size, encoder.patch_size)
        largest = replace(patches, values=encoder.embed(patches.values))
    return [
        largest if count == largest.lengths[0] else take_selected(largest, choice)
        for count, choice in zip(counts, choices)
    ]


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
