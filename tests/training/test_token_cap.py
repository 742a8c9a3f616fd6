"""Micro-batches cut by tokens: nothing is lost, the cap holds, no part could take the next clip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onereel.errors import ConfigError
from onereel.training.token_cap import cut
from onereel.types import Batch, Packed, SampleKey, TubeletGrid


def make_batch(lengths: list[int], num_failed: int = 0, num_clips: int | None = None) -> Batch:
    total = sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = Packed(
        torch.arange(total)[:, None],
        tuple(lengths),
        bounds,
        torch.arange(3 * total).view(-1, 3),
        TubeletGrid(4, 4, 4),
        torch.arange(total),
    )
    return Batch(
        packed,
        [SampleKey(0, i) for i in range(len(lengths))],
        labels=torch.arange(len(lengths)),
        captions=[str(i) for i in range(len(lengths))],
        num_failed=num_failed,
        num_clips=len(lengths) if num_clips is None else num_clips,
    )


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), cap=st.integers(50, 200))
def test_parts_are_the_batch_in_order_filled_up_to_the_cap(lengths, cap):
    batch = make_batch(lengths, num_failed=3)
    parts = cut(batch, cap)
    totals = [sum(part.clips.lengths) for part in parts]
    assert max(totals) <= cap
    following = [part.clips.lengths[0] for part in parts[1:]]
    assert all(total + length > cap for total, length in zip(totals, following))
    assert [key for part in parts for key in part.keys] == batch.keys
    assert [caption for part in parts for caption in part.captions] == batch.captions
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert torch.equal(torch.cat([part.clips.values for part in parts]), batch.clips.values)
    assert [part.num_clips for part in parts] == [len(part.keys) for part in parts]
    assert [part.num_failed for part in parts] == [3] + [0] * (len(parts) - 1)
    for part in parts:
        assert part.clips.cu_seqlens.diff().tolist() == list(part.clips.lengths)


def test_without_a_cap_and_without_a_clip_the_batch_stays():
    whole = Batch(torch.zeros(2, 4, 3, 8, 8), [SampleKey(0, 0), SampleKey(0, 1)], num_clips=2)
    assert cut(whole, 0)[0] is whole
    failed = make_batch([60], num_failed=2, num_clips=0)
    assert cut(failed, 50)[0] is failed


def test_what_cannot_be_cut_is_named():
    with pytest.raises(ConfigError, match=r"index=1.* keeps 51 tokens.*max_tokens_per_device = 50"):
        cut(make_batch([3, 51]), 50)
    whole = Batch(torch.zeros(2, 4, 3, 8, 8), [SampleKey(0, 0), SampleKey(0, 1)], num_clips=2)
    with pytest.raises(ConfigError, match=r"tokens\.where to 'loader'"):
        cut(whole, 50)
