"""Class probabilities of views, added up per video: the same sums in any order, batch make-up or number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


@dataclass
class _Video:
    total: Tensor
    label: int
    views: set[int] = field(default_factory=set)


class ViewSums:
    """Adds up view probabilities by video and refuses a view that comes twice."""

    def __init__(self) -> None:
        self._videos: dict[int, _Video] = {}

    def add(
        self, keys: Sequence[SampleKey], probabilities: Tensor, labels: Tensor | None = None
    ) -> None:
        """Add one batch of views: `probabilities` `(B, K)`, `labels` int64 `(B,)`."""
        fixed = (probabilities.detach().cpu().double() * FIXED_POINT).round().long()
        known = [-1] * len(keys) if labels is None else labels.tolist()
        for key, row, label in zip(keys, fixed, known, strict=True):
            self._add(key.index, row, label, {key.view})

    def drop_incomplete(self, num_views: int) -> None:
        """Forget the videos of which fewer than `num_views` views came."""
        self._videos = {i: v for i, v in self._videos.items() if len(v.views) >= num_views}

    def merge(self, other: ViewSums) -> None:
        """Take over what another rank has added up."""
        for index, video in other._videos.items():
            self._add(index, video.total, video.label, video.views)

    def state(self, num_views: int) -> dict[str, Tensor]:
        """All of it as tensors, of videos that have `num_views` views at most; see `of_state`."""
        videos = self._videos.values()
        seen = [[view in video.views for view in range(num_views)] for video in videos]
        return {
            "indices": torch.tensor(list(self._videos), dtype=torch.long),
            "labels": torch.tensor([video.label for video in videos], dtype=torch.long),
            "views": torch.tensor(seen, dtype=torch.bool),
            "totals": torch.stack([video.total for video in videos]) if seen else torch.zeros(0, 0),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> ViewSums:
        """The sums that `state` described."""
        sums = cls()
        rows = zip(
            state["indices"].tolist(), state["totals"], state["labels"].tolist(), state["views"]
        )
        for index, total, label, seen in rows:
            sums._add(index, total, label, seen.nonzero()[:, 0].tolist())
        return sums

    def mean(self, num_views: int) -> VideoScores:
        """The mean over the views of each video. Raises DataError where a video lacks a view or has one too many."""
        for index, video in self._videos.items():
            if video.views != set(range(num_views)):
                raise DataError(
                    f"sample {index} was scored in views {sorted(video.views)}; expected each of 0 to {num_views - 1} "
                    "once: evaluation must see every sample in every view"
                )
        if not self._videos:
            raise DataError("evaluation saw no video: is the list empty?")
        order = sorted(self._videos)
        totals = torch.stack([self._videos[index].total for index in order])
        return VideoScores(
            indices=torch.tensor(order),
            labels=torch.tensor([self._videos[index].label for index in order]),
            probabilities=(totals.double() / (FIXED_POINT * num_views)).float(),
        )

    def _add(self, index: int, total: Tensor, label: int, views: Iterable[int]) -> None:
        video = self._videos.setdefault(index, _Video(torch.zeros_like(total), label))
        repeated = video.views.intersection(views)
        if repeated:
            raise DataError(f"sample {index} was scored twice in view {min(repeated)}")
        video.total = video.total + total
        video.views.update(views)
