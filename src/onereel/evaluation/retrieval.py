"""Text to video and back: recall at k and median rank for caption sets, graded mAP and nDCG for EPIC-KITCHENS-100.

Embeddings are compared by their dot product: normalise them for cosine similarity. Products are made in float64 and
rounded to float32, so that equal embeddings tie whatever the block size or the device. Of two that tie, the one that
comes first in the gallery is ranked first: constant embeddings score like a guess, not like a perfect model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onereel.errors import DataError

if TYPE_CHECKING:
    from onereel.data.annotations import Annotations

BLOCK_SCORES = 2**22
"""Scores in memory at once: a block of queries against the whole gallery. 2^22 take about 150 MB."""
KS = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """How well one direction retrieves.

    Attributes:
        num_queries: queries asked.
        recall: share of queries of which a right answer is among the first k, by k.
        median_rank, mean_rank: of the best right answer, 1 = first; the mean of the middle two for an even number.
    """

    num_queries: int
    recall: dict[int, float]
    median_rank: float
    mean_rank: float

    def __str__(self) -> str:
        shares = ", ".join(f"R@{k} {share:.2%}" for k, share in self.recall.items())
        return f"{shares}, median rank {self.median_rank:g} ({self.num_queries} queries)"


@dataclass(frozen=True)
class CaptionRetrieval:
    """Recall in both directions on a caption set."""

    text_to_video: Recall
    video_to_text: Recall

    def __str__(self) -> str:
        return f"text to video: {self.text_to_video}\nvideo to text: {self.video_to_text}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class MultiInstanceRetrieval:
    """EPIC-KITCHENS-100's multi-instance retrieval, 0 to 1.

    Attributes:
        map_video_to_text, map_text_to_video: mean of `graded_average_precision` over the queries.
        ndcg_video_to_text, ndcg_text_to_video: mean of `ndcg` over them.
    """

    map_video_to_text: float
    map_text_to_video: float
    ndcg_video_to_text: float
    ndcg_text_to_video: float

    @property
    def mean_map(self) -> float:
        return (self.map_video_to_text + self.map_text_to_video) / 2

    @property
    def mean_ndcg(self) -> float:
        return (self.ndcg_video_to_text + self.ndcg_text_to_video) / 2

    def __str__(self) -> str:
        return (
            f"mAP {self.mean_map:.2%} (video to text {self.map_video_to_text:.2%}, text to video "
            f"{self.map_text_to_video:.2%}), nDCG {self.mean_ndcg:.2%} (video to text "
            f"{self.ndcg_video_to_text:.2%}, text to video {self.ndcg_text_to_video:.2%})"
        )

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON, with the means of both directions."""
        means = {"mean_map": self.mean_map, "mean_ndcg": self.mean_ndcg}
        return {**dataclasses.asdict(self), **means}


class CaptionSet(NamedTuple):
    """The texts of a list, and the moments of video that they are about.

    Attributes:
        texts: T captions.
        video_of_text: int64 `(T,)`, position of each text's moment in `records`.
        records: int64 `(V,)`, a record of each different moment (path, start and end), by rising index.
    """

    texts: tuple[str, ...]
    video_of_text: Tensor
    records: Tensor


def caption_set(annotations: Annotations) -> CaptionSet:
    """All captions of a list; records of the same moment count as one video with several captions."""
    moments: dict[tuple[str, float | None, float | None], int] = {}
    texts: list[str] = []
    video_of_text: list[int] = []
    records: list[int] = []
    for record in map(annotations.record, range(len(annotations))):
        moment = (record.path, record.start, record.end)
        if moment not in moments:
            moments[moment] = len(records)
            records.append(record.index)
        said = record.captions or ((record.caption,) if record.caption else ())
        texts += said
        video_of_text += [moments[moment]] * len(said)
    if not texts:
        raise DataError(f"{annotations.source}: no captions; retrieval needs a column 'caption'")
    return CaptionSet(tuple(texts), torch.tensor(video_of_text), torch.tensor(records))


def caption_retrieval(
    videos: Tensor, texts: Tensor, video_of_text: Tensor, ks: Sequence[int] = KS
) -> CaptionRetrieval:
    """Recall both ways, without a matrix of all pairs.

    Args:
        videos: `(V, D)` embeddings.
        texts: `(T, D)` embeddings; a video may have several texts, of which the best placed counts.
        video_of_text: int64 `(T,)`, the video that each text belongs to.

    Raises DataError where a text has no video or a video no text, or a value is not finite.
    """
    numbers = torch.arange(len(videos), device=videos.device)
    video_of_text = video_of_text.to(videos.device)
    return CaptionRetrieval(
        text_to_video=recall(retrieval_ranks(texts, videos, video_of_text, numbers), ks),
        video_to_text=recall(retrieval_ranks(videos, texts, numbers, video_of_text), ks),
    )


def retrieval_ranks(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    block_scores: int = BLOCK_SCORES,
) -> Tensor:
    """int64 `(Q,)` rank, 1 = first, of each query's best right answer: an item of the gallery with the same id.

    Args:
        queries, gallery: `(Q, D)` and `(G, D)` embeddings.
        query_ids, gallery_ids: int64 `(Q,)` and `(G,)`.
        block_scores: most scores in memory at once.

    Raises DataError where a query has no right answer, shapes don't fit, or a value is not finite.
    """
    _check(queries, gallery)
    if query_ids.shape != queries.shape[:1] or gallery_ids.shape != gallery.shape[:1]:
        raise DataError(
            f"one id per row: {tuple(query_ids.shape)} ids for {len(queries)} queries, "
            f"{tuple(gallery_ids.shape)} for {len(gallery)} items"
        )
    unanswered = ~torch.isin(query_ids, gallery_ids)
    if unanswered.any():
        raise DataError(
            f"query {int(unanswered.int().argmax())} and {int(unanswered.sum()) - 1} others have no right answer "
            "in the gallery; leave them out"
        )
    by_id = gallery_ids.argsort(stable=True)
    first = torch.searchsorted(gallery_ids[by_id], query_ids)
    counts = torch.searchsorted(gallery_ids[by_id], query_ids, right=True) - first
    ranks = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    for rows, scores in _blocks(queries, gallery, block_scores):
        right = _ranges(first[rows], counts[rows])
        ranks[rows] = _best_ranks(scores, right.row, by_id[right.value])
    return ranks


class _Pairs(NamedTuple):
    row: Tensor
    value: Tensor


def _ranges(first: Tensor, counts: Tensor) -> _Pairs:
    """The integers `first[i]` to `first[i] + counts[i] - 1` of all rows i, one after another."""
    row = torch.arange(len(first), device=first.device).repeat_interleave(counts)
    within = torch.arange(len(row), device=first.device) - (counts.cumsum(0) - counts)[row]
    return _Pairs(row, first[row] + within)


def _best_ranks(scores: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """int64 `(Q,)` rank in `scores` `(Q, G)` of the best of each row's right items, which are (row, column) pairs."""
    own = scores[row, column]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce_(0, row, own, "amax")
    ahead = (scores > best[:, None]).sum(dim=1)
    tied = (scores >= best[:, None]).sum(dim=1) - ahead > 1
    if tied.any():
        leads = own == best[row]
        place = row.new_full((len(scores),), scores.shape[1])
        place.scatter_reduce_(0, row[leads], column[leads], "amin")
        earlier = torch.arange(scores.shape[1], device=scores.device) < place[tied, None]
        ahead[tied] += ((scores[tied] == best[tied, None]) & earlier).sum(dim=1)
    return ahead + 1


def recall(ranks: Tensor, ks: Sequence[int] = KS) -> Recall:
    """Summary of ranks that start at 1."""
    values = ranks.cpu().numpy()
    return Recall(
        num_queries=len(values),
        recall={k: float((values <= k).mean()) for k in ks},
        median_rank=float(np.median(values)),
        mean_rank=float(values.mean()),
    )


def multi_instance_retrieval(
    videos: Tensor, texts: Tensor, relevancy: Tensor, block_scores: int = BLOCK_SCORES
) -> MultiInstanceRetrieval:
    """mAP and nDCG in both directions.

    Args:
        videos: `(V, D)` embeddings.
        texts: `(S, D)` embeddings.
        relevancy: `(V, S)`, 0 to 1 (`data.relevancy`).
        block_scores: most scores in memory at once.

    Raises DataError where a query has no item of relevancy 1, shapes don't fit, or a value is not finite.
    """
    _check(videos, texts)
    if relevancy.shape != (len(videos), len(texts)):
        raise DataError(
            f"relevancy {tuple(relevancy.shape)} for {len(videos)} videos and {len(texts)} texts"
        )
    figures = []
    for queries, gallery, wanted in ((videos, texts, relevancy), (texts, videos, relevancy.T)):
        precision, gain = [], []
        for rows, scores in _blocks(queries, gallery, block_scores):
            ranked = in_order(scores, wanted[rows].to(scores.device))
            precision.append(graded_average_precision(ranked))
            gain.append(ndcg(ranked))
        figures.append((torch.cat(precision).mean().item(), torch.cat(gain).mean().item()))
    (map_vt, ndcg_vt), (map_tv, ndcg_tv) = figures
    return MultiInstanceRetrieval(map_vt, map_tv, ndcg_vt, ndcg_tv)


def in_order(scores: Tensor, relevancy: Tensor) -> Tensor:
    """`relevancy` `(Q, G)` of the items in the order that `scores` `(Q, G)` ranks them, best first."""
    return relevancy.gather(1, scores.argsort(dim=1, descending=True, stable=True))


def graded_average_precision(ranked: Tensor) -> Tensor:
    """float64 `(Q,)` from relevancies `(Q, G)` in ranked order, as EPIC-KITCHENS-100's official script has it.

    The mean, over the places k of the items with relevancy 1, of (sum of the relevancies of the first k) / k. The
    graded sum makes it larger than a binary average precision: 5.6 % in place of 0.3 % for a random order. Raises
    DataError where a query has no item of relevancy 1.
    """
    exact = ranked == 1
    counts = exact.sum(dim=1)
    if (counts == 0).any():
        raise DataError(
            f"{int((counts == 0).sum())} queries have no item of relevancy 1, for which this mAP is not defined"
        )
    places = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    precision = ranked.double().cumsum(dim=1) / places
    return (precision * exact).sum(dim=1) / counts


def ndcg(ranked: Tensor) -> Tensor:
    """float64 `(Q,)` from relevancies `(Q, G)` in ranked order, cut at the number of items that are relevant at all.

    DCG is the sum over the first K places of relevancy / log2(place + 1), where K items have a relevancy above 0;
    nDCG divides it by that of the ideal order.
    """
    places = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
    inside = places <= (ranked > 0).sum(dim=1, keepdim=True)
    discount = 1 / (places + 1).double().log2()
    ideal = ranked.sort(dim=1, descending=True).values.double() @ discount
    return (ranked * inside).double() @ discount / ideal


def _blocks(queries: Tensor, gallery: Tensor, block_scores: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of queries and their float32 `(rows, G)` scores against the whole gallery."""
    gallery = gallery.double().T
    step = max(1, block_scores // gallery.shape[1])
    for first in range(0, len(queries), step):
        rows = slice(first, first + step)
        yield rows, (queries[rows].double() @ gallery).float()


def _check(queries: Tensor, gallery: Tensor) -> None:
    shapes = (tuple(queries.shape), tuple(gallery.shape))
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise DataError(f"embeddings must be (Q, D) and (G, D) of one width D, not {shapes}")
    if not len(queries) or not len(gallery):
        raise DataError(f"retrieval needs queries and a gallery, not {shapes}")
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise DataError("an embedding is not finite: the model's weights are broken")
