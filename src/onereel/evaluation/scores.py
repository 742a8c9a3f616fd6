"""Class probabilities of views, added up per video: the same sums in any order, batch make-up or number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onereel.errors import DataError
from onereel.types import SampleKey

# Probabilities are added as integers of this fraction. Integer sums don't depend on their order, so neither the
# batch size nor the number of ranks can change a result; 2^40 leaves room for 2^23 views in an int64.
FIXED_POINT = 2.0**40


class VideoScores(NamedTuple):
    """Every video once, by rising index.

    Attributes:
        indices: int64 `(V,)`, record of each video in its list.
        labels: int64 `(V,)`, its true class; -1 where it has none.
        probabilities: float32 `(V, K)`, the mean over its views.
    """

    indices: Tensor
    labels: Tensor
    probabilities: Tensor


class ViewSums:
    """Adds up view probabilities by video and refuses a view that comes twice.

    The sums of all videos lie in one tensor: a tensor for each would take several times the memory, and a hundred
    thousand of them many seconds on their way to another rank.
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}  # of each record, rising
        self._labels: list[int] = []
        self._seen: list[int] = []  # bit v: view v has come
        self._totals = torch.zeros(0, 0, dtype=torch.int64)  # with room for more rows

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, keys: Sequence[SampleKey], probabilities: Tensor, labels: Tensor | None = None
    ) -> None:
        """Add one batch of views: `probabilities` `(B, K)`, `labels` int64 `(B,)`."""
        fixed = (probabilities.detach().cpu().double() * FIXED_POINT).round().long()
        known = [-1] * len(keys) if labels is None else labels.tolist()
        self._add([key.index for key in keys], fixed, known, [1 << key.view for key in keys])

    def drop_incomplete(self, num_views: int) -> None:
        """Forget the videos of which fewer than `num_views` views came."""
        kept = [row for row, seen in enumerate(self._seen) if seen.bit_count() >= num_views]
        indices = list(self._rows)
        self._rows = {indices[row]: place for place, row in enumerate(kept)}
        self._labels = [self._labels[row] for row in kept]
        self._seen = [self._seen[row] for row in kept]
        self._totals = self._totals[kept]

    def merge(self, other: ViewSums) -> None:
        """Take over what another rank has added up."""
        self._add(list(other._rows), other._filled(), other._labels, other._seen)

    def state(self, num_views: int) -> dict[str, Tensor]:
        """All of it as tensors, of videos that have `num_views` views at most; see `of_state`."""
        seen = [[bool(bits >> view & 1) for view in range(num_views)] for bits in self._seen]
        return {
            "indices": torch.tensor(list(self._rows), dtype=torch.long),
            "labels": torch.tensor(self._labels, dtype=torch.long),
            "views": torch.tensor(seen, dtype=torch.bool),
            "totals": self._filled(),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> ViewSums:
        """The sums that `state` described."""
        sums = cls()
        seen = [sum(1 << view for view, one in enumerate(row) if one) for row in state["views"]]
        sums._add(state["indices"].tolist(), state["totals"], state["labels"].tolist(), seen)
        return sums

    def mean(self, num_views: int) -> VideoScores:
        """The mean over the views of each video. Raises DataError where a video lacks a view or has one too many."""
        for index, seen in zip(self._rows, self._seen):
            if seen != (1 << num_views) - 1:
                raise DataError(
                    f"sample {index} was scored in views {_views(seen)}; expected each of 0 to {num_views - 1} "
                    "once: evaluation must see every sample in every view"
                )
        if not self._rows:
            raise DataError("evaluation saw no video: is the list empty?")
        order = sorted(self._rows)
        rows = [self._rows[index] for index in order]
        return VideoScores(
            indices=torch.tensor(order),
            labels=torch.tensor([self._labels[row] for row in rows]),
            probabilities=(self._totals[rows].double() / (FIXED_POINT * num_views)).float(),
        )

    def _add(
        self, indices: Sequence[int], totals: Tensor, labels: Sequence[int], views: Sequence[int]
    ) -> None:
        rows = []
        for index, label, bits in zip(indices, labels, views, strict=True):
            row = self._rows.setdefault(index, len(self._rows))
            if row == len(self._seen):
                self._seen.append(0)
                self._labels.append(label)
            repeated = self._seen[row] & bits
            if repeated:
                raise DataError(f"sample {index} was scored twice in view {_views(repeated)[0]}")
            self._seen[row] |= bits
            rows.append(row)
        if rows:
            self._make_room(totals.shape[1])
            self._totals.index_add_(0, torch.tensor(rows), totals)

    def _make_room(self, width: int) -> None:
        room = len(self._totals)
        if len(self._rows) > room:
            totals = torch.zeros(max(len(self._rows), 2 * room), width, dtype=torch.int64)
            if room:
                totals[:room] = self._totals
            self._totals = totals

    def _filled(self) -> Tensor:
        return self._totals[: len(self._rows)]

    def __getstate__(self) -> dict[str, Any]:
        # A slice would be sent with the room behind it.
        return {**self.__dict__, "_totals": self._filled().clone()}


def _views(bits: int) -> list[int]:
    return [view for view in range(bits.bit_length()) if bits >> view & 1]
