"""View sums: the order, the batches and the ranks that views come in can't change a bit of the mean."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import DataError
from onereel.evaluation.scores import VideoScores, ViewSums
from onereel.types import SampleKey


def views(
    num_videos: int, num_views: int, num_classes: int
) -> tuple[list[SampleKey], torch.Tensor]:
    generator = torch.Generator().manual_seed(num_videos * 100 + num_views)
    keys = [
        SampleKey(0, video * 7, view) for video in range(num_videos) for view in range(num_views)
    ]
    logits = torch.randn(len(keys), num_classes, generator=generator) * 5
    return keys, logits.softmax(-1)


def summed(
    keys: list[SampleKey], rows: torch.Tensor, order: list[int], cuts: list[int]
) -> ViewSums:
    """Add the views in `order`, in one ViewSums per stretch between `cuts`, then merge them."""
    total = ViewSums()
    edges = [0, *sorted(cuts), len(order)]
    for first, last in pairwise(edges):
        part = ViewSums()
        chosen = order[first:last]
        labels = torch.tensor([keys[i].index % 3 for i in chosen], dtype=torch.long)
        part.add([keys[i] for i in chosen], rows[chosen], labels)
        total.merge(part)
    return total


def assert_equal(one: VideoScores, other: VideoScores) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), num_videos=st.integers(1, 5), num_views=st.integers(1, 6))
def test_mean_does_not_depend_on_order_or_parts(
    data: st.DataObject, num_videos: int, num_views: int
) -> None:
    keys, rows = views(num_videos, num_views, num_classes=4)
    straight = list(range(len(keys)))
    order = data.draw(st.permutations(straight))
    cuts = data.draw(st.lists(st.integers(0, len(keys)), max_size=3))
    expected = summed(keys, rows, straight, []).mean(num_views)
    assert_equal(summed(keys, rows, order, cuts).mean(num_views), expected)


def test_mean_is_the_mean_over_views() -> None:
    keys, rows = views(num_videos=4, num_views=3, num_classes=5)
    scores = summed(keys, rows, list(range(12)), []).mean(3)
    assert scores.indices.tolist() == [0, 7, 14, 21]
    assert scores.labels.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(scores.probabilities, rows.view(4, 3, 5).mean(1), atol=1e-7, rtol=0)


def test_a_view_that_lacks_or_comes_twice_is_an_error() -> None:
    keys, rows = views(num_videos=2, num_views=2, num_classes=3)
    with pytest.raises(DataError, match=r"sample 7 was scored in views \[0\]"):
        summed(keys, rows, [0, 1, 2], []).mean(2)
    with pytest.raises(DataError, match="scored twice in view 1"):
        summed(keys, rows, [0, 1, 1], [2])
    with pytest.raises(DataError, match="no video"):
        ViewSums().mean(1)


def test_sums_come_back_from_their_tensors_and_go_on() -> None:
    keys, rows = views(5, 3, 4)
    half, rest = ViewSums(), ViewSums()
    half.add(keys[:7], rows[:7])
    rest.add(keys[7:], rows[7:])
    again = ViewSums.of_state(half.state(3))
    for sums in (half, again):
        sums.merge(rest)
    assert all(map(torch.equal, half.mean(3), again.mean(3)))
    assert ViewSums.of_state(ViewSums().state(3)).state(3)["indices"].tolist() == []


def test_many_videos_take_little_more_than_their_sums_on_their_way_to_other_ranks() -> None:
    sums, width = ViewSums(), 16
    for first in range(0, 3000, 100):
        keys = [SampleKey(0, index) for index in range(first, first + 100)]
        sums.add(keys, torch.rand(100, width))
    sent = pickle.dumps(sums)
    assert len(sent) < 1.25 * 3000 * width * 8
    assert_equal(pickle.loads(sent).mean(1), sums.mean(1))


def test_what_is_incomplete_is_forgotten() -> None:
    keys, rows = views(num_videos=3, num_views=2, num_classes=4)
    sums = ViewSums()
    sums.add([keys[i] for i in (2, 0, 3, 4, 5)], rows[[2, 0, 3, 4, 5]])
    sums.drop_incomplete(2)
    assert sums.mean(2).indices.tolist() == [7, 14]
    sums.add(keys[:2], rows[:2])
    assert_equal(sums.mean(2), summed_without_labels(keys, rows).mean(2))


def summed_without_labels(keys: list[SampleKey], rows: torch.Tensor) -> ViewSums:
    sums = ViewSums()
    sums.add(keys, rows)
    return sums
