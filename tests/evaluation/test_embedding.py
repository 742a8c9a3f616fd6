"""Embeddings of a list: in its order, averaged over views, whatever the batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.errors import DataError, DecodeError, OnereelError
from onereel.evaluation.embedding import embed_videos
from onereel.types import Batch, SampleKey


class FakeLoader:
    """`vectors` `(V, views, D)` as clips, video by video."""

    def __init__(self, vectors: Tensor, batch_size: int, broken: int | None = None) -> None:
        self.vectors, self.broken = vectors, broken
        keys = [SampleKey(0, i, v) for i in range(len(vectors)) for v in range(vectors.shape[1])]
        self.parts = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
        self.num_batches = len(self.parts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for keys in self.parts[start:]:
            if any(key.index == self.broken for key in keys):
                raise DecodeError("bad.mp4", "truncated", 3)
            clips = torch.stack([self.vectors[key.index, key.view] for key in keys])
            yield Batch(clips, list(keys), num_clips=len(keys))


def embed(loader: FakeLoader, **options: object) -> Tensor:
    return embed_videos(lambda batch: batch.clips, loader, **options)


def test_mean_of_the_views_directions_in_order():
    vectors = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    expected = F.normalize(F.normalize(vectors, dim=-1).mean(1), dim=-1)
    told: list[tuple[int, int]] = []
    found = embed(FakeLoader(vectors, 4), num_views=3, on_batch=lambda *n: told.append(n))
    torch.testing.assert_close(found, expected)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for batch_size in (1, 15):
        assert torch.equal(embed(FakeLoader(vectors, batch_size), num_views=3), found)


def test_errors_name_the_sample():
    vectors = torch.ones(3, 1, 4)
    with pytest.raises(DataError, match="sample 0 was scored in views"):
        embed(FakeLoader(vectors, 2), num_views=2)
    with pytest.raises(DecodeError, match=r"bad\.mp4, frame 3"):
        embed(FakeLoader(vectors, 2, broken=2))
    vectors[1, 0, 2] = float("nan")
    with pytest.raises(OnereelError, match="sample 1, view 0 is not finite"):
        embed(FakeLoader(vectors, 2))
