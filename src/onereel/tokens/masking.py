"""Which of the kept tokens a masked autoencoder shows to its encoder, and which it asks of its decoder.

Sources: VideoMAE (arXiv 2203.12602) for tube and random masks, VideoMAE v2 (2303.16727) for dual masking, EVEREST
(2211.10636) for masking within the tokens that a selector keeps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from onereel.errors import ConfigError, unknown_name
from onereel.tokens.packing import TokenIndices, to_device
from onereel.types import TubeletGrid

KINDS = ("tube", "random")
ROUNDING = 1e-6  # so that 0.1 of 1560 is 156 and not, in floating point, one less


class Picked(NamedTuple):
    """Some tokens of a packed batch: how many of each clip, on the host, and which, int64 `(M,)`, rising."""

    lengths: tuple[int, ...]
    positions: Tensor


class Split(NamedTuple):
    """Disjoint tokens: what the encoder sees, and what the decoder must reconstruct."""

    visible: Picked
    targets: Picked


@dataclass(frozen=True)
class Masking:
    """Divides the kept tokens of each clip into visible ones, targets, and (with dual masking) neither.

    Of K kept tokens, "random" shows `floor((1 - mask_ratio) * K)`; "tube" hides `floor(mask_ratio * gh * gw)` places
    at all times and shows what is kept at the others. Of 1568 tokens at 0.9 that is 156 and, as VideoMAE's code counts
    tubes, 160 (its paper says 10 %, which is 156.8; its code's random mask shows 157).

    Of the hidden tokens `floor(decode_ratio * hidden)` are targets: first those of a running cell, then any. With
    tubes and 8 tubelets in time the running cell holds exactly half of them.

    Attributes:
        mask_ratio: share hidden of what is kept: of tokens ("random") or of places ("tube").
        decode_ratio: share reconstructed of what is hidden; 1 in VideoMAE and EVEREST, 0.5 in VideoMAE v2.
    """

    kind: Literal["tube", "random"] = "tube"
    mask_ratio: float = 0.9
    decode_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("objective.mask", self.kind, KINDS)
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(
                f"objective.mask_ratio is {self.mask_ratio}; allowed: between 0 and 1"
            )
        if not 0 < self.decode_ratio <= 1:
            raise ConfigError(
                f"objective.decode_ratio is {self.decode_ratio}; allowed: above 0, up to 1"
            )

    def split(
        self,
        kept: TokenIndices,
        grid: TubeletGrid,
        generators: Sequence[torch.Generator] | None,
    ) -> Split:
        """Draw the masks of a batch.

        Args:
            kept: the tokens to divide. Nothing waits for their device, but where tubes show some of them.
            generators: one CPU generator per clip.

        Returns:
            Positions among `kept`, on its device.

        Raises:
            ValueError: there are no generators, or a clip has nothing to show or nothing to hide.
        """
        batch = len(kept.lengths)
        if generators is None or len(generators) != batch:
            raise ValueError(f"masks are drawn: pass one generator per clip ({batch})")
        draws = [_draw(grid, generator) for generator in generators]
        device = kept.indices.device
        noise, places, start = (to_device(torch.stack(d), device) for d in zip(*draws))
        clip, t, h, w = kept.indices
        keys = noise[clip, t, h, w]
        if self.kind == "random":
            num_visible = [self._num_shown(n) for n in kept.lengths]
        else:
            hidden_places = _hidden_places(self.mask_ratio, grid)
            hides = (places < hidden_places)[clip, h, w]
            keys = keys + hides
            if set(kept.lengths) == {grid.num_tokens}:
                num_visible = [grid.gt * (grid.gh * grid.gw - hidden_places)] * batch
            else:
                shown = noise.new_zeros(batch).index_add_(0, clip, (~hides).double())
                num_visible = shown.int().tolist()
        _check_counts(num_visible, kept.lengths)
        everything = Picked(kept.lengths, torch.arange(len(clip), device=device))
        visible, hidden = _divide(everything, clip, keys, num_visible)
        num_targets = [max(1, _floor(self.decode_ratio * n)) for n in hidden.lengths]
        if num_targets == list(hidden.lengths):
            return Split(visible, hidden)
        elsewhere = ~running_cell(grid, device)[start[clip], t, h, w]
        return Split(
            visible, _divide(hidden, clip, noise[clip, t, h, w] + elsewhere, num_targets)[0]
        )

    def check_shows_some(self, num_kept: int) -> None:
        """Raise ConfigError where a random mask would show none, or all, of the fewest tokens that a clip keeps."""
        shown = self._num_shown(num_kept)
        if not 0 < shown < num_kept:
            raise ConfigError(
                f"objective.mask_ratio {self.mask_ratio:g} shows {shown or 'none'} of the {num_kept} tokens that a "
                "clip may keep; one at least must be shown, and one hidden. Keep more tokens, or change the ratio"
            )

    def _num_shown(self, num_kept: int) -> int:
        """Of `num_kept` tokens, by a random mask."""
        return _floor((1 - self.mask_ratio) * num_kept)


def running_cell(grid: TubeletGrid, device: torch.device | None = None) -> Tensor:
    """bool `(4, gt, gh, gw)`: half of each 2x2 cell of places, moving on by one place per tubelet, from 4 starts.

    Two neighbours of the four, taken clockwise, so that every place is covered half of the time (MAR, arXiv
    2207.11660, whose mask VideoMAE v2 gives its decoder).
    """
    ring = to_device(torch.tensor([[0, 1], [3, 2]]), device or torch.device("cpu"))
    start, t, h, w = (torch.arange(n, device=device) for n in (4, *grid))
    place = ring[h % 2][:, w % 2]
    return (place - (start[:, None, None, None] + t[:, None, None])) % 4 < 2


def _draw(grid: TubeletGrid, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One clip's draws: noise per token, an order of places, and the running cell's start.

    All of them whatever is masked, so that no setting moves another's draws. Double precision, so that no two are
    equal and every device sorts alike.
    """
    noise = torch.rand(tuple(grid), generator=generator, dtype=torch.float64)
    places = torch.randperm(grid.gh * grid.gw, generator=generator).unflatten(0, grid[1:])
    return noise, places, torch.randint(4, (), generator=generator)


def _floor(value: float) -> int:
    return math.floor(value + ROUNDING)


def _hidden_places(mask_ratio: float, grid: TubeletGrid) -> int:
    places = grid.gh * grid.gw
    return min(max(1, _floor(mask_ratio * places)), places - 1)


def _check_counts(num_visible: Sequence[int], num_kept: Sequence[int]) -> None:
    for clip, (visible, kept) in enumerate(zip(num_visible, num_kept)):
        if not 0 < visible < kept:
            raise ValueError(
                f"clip {clip} of the batch would show {visible} of {kept} kept tokens; masking needs at least one "
                "visible and one hidden. Keep more tokens, or use objective.mask random"
            )


def _divide(
    tokens: Picked, clip: Tensor, keys: Tensor, counts: Sequence[int]
) -> tuple[Picked, Picked]:
    """The `counts[b]` of `tokens` of clip b with the lowest keys, and the others.

    Args:
        clip, keys: of all kept tokens; 0 <= key < 2.
    """
    order = (2 * clip + keys)[tokens.positions].argsort()
    bounds = [0, *itertools.accumulate(tokens.lengths)]
    middles = [start + count for start, count in zip(bounds, counts)]
    parts = []
    for starts, stops in ((bounds, middles), (middles, bounds[1:])):
        ranges = [torch.arange(start, stop) for start, stop in zip(starts, stops)]
        chosen = order[to_device(torch.cat(ranges), order.device)].sort().values
        parts.append(Picked(tuple(map(len, ranges)), tokens.positions[chosen]))
    return parts[0], parts[1]
