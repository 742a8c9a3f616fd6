"""What an evaluation's figures are called, which of them comes first, and over how many items it is a share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """The figures of one kind of test, each a share of 1.

    Attributes:
        key: of the figure that comes first; the kind of test is the first whose `mark` the file has.
        title, words: its name at the head of a column, and in a sentence.
        items: what it counts, in a sentence.
        count: where the file says of how many items it is the share; empty: it is a mean, and no share.
        more: the other figures, by their titles.
    """

    mark: str
    key: str
    title: str
    words: str
    items: str
    count: tuple[str, ...]
    more: Mapping[str, str]

    @property
    def columns(self) -> dict[str, str]:
        """All figures by their titles, the first one first."""
        return {self.title: self.key, **self.more}

    def num_items(self, values: Mapping[str, Any]) -> int | None:
        """Items that the figure is a share of; None where it is a mean, or the file doesn't say."""
        found: Any = values if self.count else None
        for name in self.count:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def interval(self, values: Mapping[str, Any]) -> tuple[float, float] | None:
        """95 % interval of the figure for this many items (Wilson 1927)."""
        share, count = values[self.key], self.num_items(values)
        if not count:
            return None
        z = 1.959964
        scale = 1 + z * z / count
        middle = (share + z * z / (2 * count)) / scale
        half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / scale
        return middle - half, middle + half


TOP1 = Measure(
    mark="top1",
    key="top1",
    title="Top-1",
    words="top‑1",
    items="test samples",
    count=("num_videos",),
    more={"Top-5": "top5"},
)
MEASURES = (
    Measure(
        mark="video_to_text_top1",
        key="top1",
        title="R@1, text to video",
        words="recall at 1 from text to video",
        items="captions",
        count=("details", "text_to_video", "num_queries"),
        more={
            "R@5, text to video": "top5",
            "R@1, video to text": "video_to_text_top1",
            "R@5, video to text": "video_to_text_top5",
        },
    ),
    Measure(
        mark="mean_map",
        key="mean_map",
        title="mAP",
        words="mAP",
        items="",
        count=(),
        more={"nDCG": "mean_ndcg"},
    ),
    Measure(
        mark="accuracy",
        key="accuracy",
        title="Right answers",
        words="right answers",
        items="questions",
        count=("num_texts",),
        more={},
    ),
    TOP1,
)


def measure_of(values: Mapping[str, Any]) -> Measure | None:
    """What these figures are of; None where there is none that can be shown."""
    return next((one for one in MEASURES if one.mark in values), None)
