"""Runs: how many tubelets in time a kept token stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from onereel.types import TubeletGrid


def run_lengths(keep_mask: Tensor, grid: TubeletGrid) -> Tensor:
    """Tubelets from each kept token to the next kept one at the same place, or to the clip's end.

    Args:
        keep_mask: bool `(B, N)`.

    Returns:
        int64 `(B, N)`, in the order of the mask, 0 where dropped; they sum to N where all of the first tubelet is kept,
        and to less where what precedes a place's first kept token belongs to no run.
    """
    kept = keep_mask.unflatten(1, tuple(grid))
    time = torch.arange(grid.gt, device=keep_mask.device)[:, None, None]
    at = torch.where(kept, time, grid.gt)
    # The next kept time is the smallest kept time after this one: a running minimum from the end.
    after = torch.cat([at[:, 1:], torch.full_like(at[:, :1], grid.gt)], dim=1)
    following = after.flip(1).cummin(dim=1).values.flip(1)
    return ((following - time) * kept).flatten(1)
