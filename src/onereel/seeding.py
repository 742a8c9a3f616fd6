"""Randomness as a function of (seed, epoch, index, purpose), never of worker count or history.

A generator is made where it is used, from integers that say what it is for, and thrown away. So the order of
samples, a crop or a dropped token can be recomputed by anyone at any time, and a resumed run needs no
random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from onereel.types import SampleKey

if TYPE_CHECKING:
    import torch


def stable_seed(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of `key` and on nothing else (the same on every machine)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*key: int | str) -> np.random.Generator:
    """A NumPy generator for `key`, conventionally `(seed, epoch, index, purpose)`."""
    return np.random.Generator(np.random.Philox(stable_seed(*key)))


def clip_generators(
    seed: int, keys: Iterable[SampleKey], purpose: str = "tokens"
) -> list[torch.Generator]:
    """One CPU generator per clip, a function of (seed, epoch, index, view, purpose) only."""
    import torch  # not at the top: whoever shuffles or crops need not load it

    return [
        torch.Generator().manual_seed(stable_seed(seed, key.epoch, key.index, key.view, purpose))
        for key in keys
    ]
