"""Flexible sampling: each training batch has its own number of frames and size (Flux, arXiv 2503.14237, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from onereel.seeding import numpy_generator
from onereel.types import ClipShape


@dataclass(frozen=True)
class FlexibleShapes:
    """One shape for each micro-batch, uniform over `shapes`: a function of (seed, epoch, number of the micro-batch).

    It is thus the same on all ranks, where the released code lets each rank draw its own, and a resumed run goes on
    with the shapes it would have had.
    """

    shapes: tuple[ClipShape, ...]
    seed: int

    def draw(self, epoch: int, number: int) -> ClipShape:
        """The shape of micro-batch `number` of `epoch`, on every rank."""
        generator = numpy_generator(self.seed, epoch, number, "shape")
        return self.shapes[int(generator.integers(len(self.shapes)))]
