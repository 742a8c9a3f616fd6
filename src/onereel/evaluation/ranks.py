"""What every rank must know of the others at the end of an evaluation."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from onereel.errors import OnereelError


def gather(value: Any, failure: OnereelError | None = None) -> list[Any]:
    """The value of every rank, on every rank; raises the first rank's failure, if there is one, on all of them."""
    gathered: list[Any] = [(value, failure)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (value, failure))
    for _, error in gathered:
        if error is not None:
            raise error
    return [value for value, _ in gathered]
