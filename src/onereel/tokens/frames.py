"""Information-intensive frame selection (EVEREST, arXiv 2211.10636, section 3.3): which tubelets in time a clip is made
of, drawn in proportion to what a selector would keep of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.seeding import stable_seed
from onereel.tokens.packing import to_device
from onereel.types import TokenSelection, TubeletGrid

if TYPE_CHECKING:
    from onereel.tokens.selector import Selector

NEVER_FIRST = (
    1e-300  # weight of a tubelet without kept tokens: behind every other, whatever is drawn
)


@dataclass(frozen=True)
class FrameSelection:
    """A stage around a selector: of the tubelets in time that a clip offers, `num_tubelets` are kept, then tokens of
    those.

    The selector looks at all candidates, and its tokens per tubelet are the weights of a draw without replacement. It
    then looks again, at the chosen tubelets as if they were the clip: neighbours in time are other ones now, and exact
    budgets count tokens of what the model is given. The released code lacks this stage and the paper doesn't settle
    these points. Positions stay those of the candidates, that is true times; run lengths count chosen tubelets.
    """

    num_tubelets: int

    def given_grid(self, candidates: TubeletGrid) -> TubeletGrid:
        """The grid that is left of `candidates`. Raises ConfigError where it has too few tubelets in time."""
        if candidates.gt < self.num_tubelets:
            raise ConfigError(
                f"the clip has {candidates.gt} tubelets in time, fewer than the {self.num_tubelets} that frame "
                "selection chooses; read more frames, or set tokens.frame_selection to 0"
            )
        return candidates._replace(gt=self.num_tubelets)

    def select(
        self,
        selector: Selector,
        clips: Tensor,
        embeddings: Tensor | None,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
        *,
        draws: bool,
    ) -> TokenSelection:
        """Tokens of the chosen tubelets, as a mask over all candidates.

        Args:
            clips, embeddings, grid, generators: of all candidates, as a selector takes them.
            draws: choose at random, which takes a generator per clip (ValueError without); else the tubelets with most
                tokens, earlier ones where they tie.
        """
        given = self.given_grid(grid)
        if given == grid:
            return selector.select(clips, embeddings, grid, generators)
        first = selector.select(clips, embeddings, grid, generators)
        counts = first.keep_mask.unflatten(1, tuple(grid)).sum((2, 3))
        times = choose_tubelets(counts, self.num_tubelets, generators, draws=draws)
        rows = torch.arange(len(clips), device=clips.device)[:, None]
        if embeddings is not None:
            embeddings = embeddings.unflatten(1, (grid.gt, -1))[rows, times].flatten(1, 2)
        chosen = clips.unflatten(1, (grid.gt, -1))[rows, times].flatten(1, 2)
        inner = selector.select(chosen, embeddings, given, generators)

        def at_true_times(values: Tensor) -> Tensor:
            all_times = values.new_zeros(len(clips), grid.gt, grid.gh * grid.gw)
            all_times[rows, times] = values.unflatten(1, (given.gt, -1))
            return all_times.flatten(1)

        runs = inner.run_lengths
        return TokenSelection(
            at_true_times(inner.keep_mask),
            None if runs is None else at_true_times(runs),
            inner.num_kept,
        )


def choose_tubelets(
    counts: Tensor,
    num_chosen: int,
    generators: Sequence[torch.Generator] | None = None,
    *,
    draws: bool,
) -> Tensor:
    """`num_chosen` tubelets of each clip, rising: int64 `(B, num_chosen)`.

    Drawn one after the other with probability proportional to `counts (B, gt)` among those left, all at once by the
    Gumbel top-k trick (arXiv 1903.06059); or, without `draws`, those of the largest counts.
    """
    scores = counts.double()
    if draws:
        if generators is None or len(generators) != len(counts):
            given = "none" if generators is None else f"{len(generators)}"
            raise ValueError(
                f"frame selection draws: pass one generator per clip ({len(counts)}), not {given}"
            )
        # Generators of its own: the selector's draws must not depend on whether frames are drawn.
        own = [
            torch.Generator().manual_seed(stable_seed(g.initial_seed(), "frames"))
            for g in generators
        ]
        waits = torch.stack(
            [scores.new_empty(counts.shape[1], device="cpu").exponential_(generator=g) for g in own]
        )
        # The log of an exponential is a Gumbel variable with its sign turned.
        scores = scores.clamp(min=NEVER_FIRST).log() - to_device(waits.log(), scores.device)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order[:, :num_chosen].sort(dim=1).values
