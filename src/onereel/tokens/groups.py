"""Groups in time: parts of a clip that are scored and ranked apart (Flux, arXiv 2503.14237, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from onereel.errors import ConfigError

FLUX_GROUPS = 4


def group_sizes(gt: int, groups: int = 0) -> tuple[int, ...]:
    """Tubelets of each group in time: contiguous, as equal as they can be, the larger ones first.

    Args:
        gt: tubelets in time.
        groups: how many; 0: 4 where gt is a multiple of 4, else 2 (Flux), but never of fewer than 2 tubelets, which
            have no neighbour in their group: 2 at gt = 4 and 5, and 1 below.

    Raises ConfigError for more groups than tubelets.
    """
    if groups == 0:
        groups = FLUX_GROUPS if gt % FLUX_GROUPS == 0 else 2
        while groups > 1 and gt < 2 * groups:
            groups //= 2
    if not 1 <= groups <= gt:
        raise ConfigError(
            f"groups is {groups}, but clips have {gt} tubelets in time; "
            f"allowed: 1 to {gt}, or 0 for the published rule"
        )
    small, larger = divmod(gt, groups)
    return (small + 1,) * larger + (small,) * (groups - larger)


def per_tubelet(difference: Tensor, groups: int = 1) -> Tensor:
    """A score for every tubelet, `(B, gt, gh, gw)`, from `difference (B, gt - 1, gh, gw)` to the one before."""
    if difference.shape[1] == 0:
        batch, _, gh, gw = difference.shape
        return difference.new_zeros(batch, 1, gh, gw)
    parts = []
    start = 0
    for size in group_sizes(difference.shape[1] + 1, groups):
        # Row k - 1 is the difference of tubelet k to the one before.
        own = difference[:, start : start + size - 1]
        copied = own[:, :1] if size > 1 else difference[:, max(start - 1, 0)][:, None]
        parts += [copied, own]
        start += size
    return torch.cat(parts, dim=1)
