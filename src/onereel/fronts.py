"""What is worth choosing where cost and accuracy pull apart: the rows of a Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def pareto_front(
    rows: Iterable[T], cost: Callable[[T], float], accuracy: Callable[[T], float]
) -> list[T]:
    """Those that none beats in both, cheapest first."""
    found: list[T] = []
    for row in sorted(rows, key=lambda row: (cost(row), -accuracy(row))):
        if not found or accuracy(row) > accuracy(found[-1]):
            found.append(row)
    return found
