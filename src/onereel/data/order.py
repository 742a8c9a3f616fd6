"""The order of an epoch as a function: any position's sample is computed alone, in O(1) memory, for 10^8 samples."""

from __future__ import annotations

import numpy as np

from onereel.seeding import stable_seed

NUM_ROUNDS = 8


def shuffled(positions: np.ndarray, num_items: int, *key: int | str) -> np.ndarray:
    """Where a permutation of range(num_items) that depends on `key` alone sends `positions`.

    A Feistel network permutes the smallest 4^k >= num_items, and values beyond num_items are sent through it again
    until they fall inside (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Args:
        positions: integers in [0, num_items).

    Returns int64 of the same shape.
    """
    half = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))
    round_keys = [np.uint64(stable_seed(*key, "order", i)) for i in range(NUM_ROUNDS)]
    values = _permute(positions.astype(np.uint64), half, round_keys)
    while (outside := values >= num_items).any():
        values[outside] = _permute(values[outside], half, round_keys)
    return values.astype(np.int64)


def _permute(values: np.ndarray, half: np.uint64, round_keys: list[np.uint64]) -> np.ndarray:
    """A Feistel network over 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << half | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of x affects every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
