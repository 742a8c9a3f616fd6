"""Guards of a budget: scores made so that no tubelet gets nothing, and a scene cut doesn't get all."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.tokens.groups import per_tubelet
from onereel.tokens.pixels import STD, Std, as_floats
from onereel.types import TubeletGrid

CUT_CORRELATION = 0.5
"""Pictures that have less than this in common lie on two sides of a cut; on real clips most cuts have .3 or less,
others .6 or more; fast pans and what passes close to the camera lie in between."""
CUT_CHANGE = 0.05
"""Least change of a cut, root mean square of patch means in normalised values: noise on a flat picture is no cut."""


def check_floor(min_per_tubelet: int, kept: int | None, grid: TubeletGrid) -> None:
    """Raise ConfigError where the floor doesn't fit under a budget of `kept` tokens per clip (None: not exact)."""
    if kept is None:
        raise ConfigError(
            f"min_per_tubelet is {min_per_tubelet}, but the budget is not an exact count per clip; "
            "use budget clip or group, or set it to 0"
        )
    places = min(kept // grid.gt, grid.gh * grid.gw)
    if not 0 <= min_per_tubelet <= places:
        raise ConfigError(
            f"min_per_tubelet is {min_per_tubelet}; allowed with {kept} tokens of {grid.gt} tubelets in time: "
            f"0 to {places}"
        )


def with_floor(scores: Tensor, grid: TubeletGrid, min_per_tubelet: int) -> Tensor:
    """`scores (B, N)` in which the best `min_per_tubelet` tokens of every tubelet in time come before all others."""
    rows = scores.unflatten(1, (grid.gt, -1))
    order = torch.sort(rows, dim=2, descending=True, stable=True).indices
    return rows.scatter(2, order[..., :min_per_tubelet], math.inf).flatten(1)


def find_cuts(clips: Tensor, grid: TubeletGrid, std: Std = STD) -> Tensor:
    """bool `(B, gt - 1)`: whether a scene cut lies between first frame of tubelet k and last frame of k + 1.

    Args:
        clips: normalised float or uint8 `(B, T, C, H, W)`.
        std: of R, G, B; puts uint8 clips on the scale of normalised ones.
    """
    tubelet_size, patch = clips.shape[1] // grid.gt, clips.shape[-1] // grid.gw
    before = _contrasts(clips[:, :-tubelet_size:tubelet_size], patch, std)
    now = _contrasts(clips[:, 2 * tubelet_size - 1 :: tubelet_size], patch, std)
    change = (now - before).square().mean(2)
    # 2ab / (aa + bb) is a correlation that also falls when contrast does, and knows flat pictures.
    unlike = change > (1 - CUT_CORRELATION) * (now.square() + before.square()).mean(2)
    return unlike & (change > CUT_CHANGE**2)


def _contrasts(frames: Tensor, patch: int, std: Std) -> Tensor:
    """Patch means less those of their frame and colour, so that bytes and normalised floats agree: `(B, K, D)`."""
    means = F.avg_pool2d(as_floats(frames, std).flatten(0, 1), patch)
    return (means - means.mean((-2, -1), keepdim=True)).flatten(1).unflatten(0, frames.shape[:2])


def cap_cuts(scores: Tensor, cuts: Tensor, groups: int = 1) -> Tensor:
    """`scores (B, gt, gh, gw)` in which half the places of a cut, a checkerboard, no longer stand out.

    A cut changes every place, so its tubelet would take the whole budget; yet the new scene must be seen. The other
    places score as in the next tubelet without a cut (the one before, where none follows), as the first tubelet of a
    clip copies the second.

    Args:
        cuts: of `find_cuts`.
        groups: those that `scores` were made with; a score that a tubelet copied is a cut's where its source's is.
    """
    gt, gh, gw = scores.shape[1:]
    is_cut = per_tubelet(cuts[..., None, None], groups)
    time = torch.arange(gt, device=scores.device)[:, None, None]
    after = torch.where(is_cut, gt, time).flip(1).cummin(1).values.flip(1)
    before = torch.where(is_cut, -1, time).cummax(1).values
    source = torch.where(after < gt, after, torch.where(before >= 0, before, time))
    calm = scores.gather(1, source.expand_as(scores))
    rows, columns = (torch.arange(n, device=scores.device) for n in (gh, gw))
    every_second = (rows[:, None] + columns) % 2 == 1
    return torch.where(is_cut & every_second, calm, scores)
