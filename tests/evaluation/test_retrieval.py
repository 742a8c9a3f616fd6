"""Retrieval figures against loops over queries, against published figures, and within bounded memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from onereel.data.annotations import Annotations, read_annotations
from onereel.errors import DataError
from onereel.evaluation.retrieval import (
    caption_retrieval,
    caption_set,
    graded_average_precision,
    in_order,
    multi_instance_retrieval,
    ndcg,
    recall,
    retrieval_ranks,
)

SIZES = {"num_queries": st.integers(1, 9), "num_items": st.integers(1, 12)}
# Few different values, so that ties are common.
LEVELS = torch.tensor([-0.5, 0.0, 0.25, 0.25, 1.0])


def random(*shape: int, seed: int = 0, levels: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(*shape, generator=generator)
    return levels[torch.randint(len(levels), shape, generator=generator)]


def ranking(scores: list[float]) -> list[int]:
    """Best first; of two that tie the one that comes first."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))


# ---------------------------------------------------------------------------------------------------------- recall


@settings(deadline=None, max_examples=60)
@given(**SIZES, seed=st.integers(0, 10**6), ties=st.booleans(), block=st.integers(1, 40))
def test_ranks_equal_brute_force(num_queries, num_items, seed, ties, block):
    levels = LEVELS if ties else None
    queries = random(num_queries, 3, seed=seed, levels=levels)
    gallery = random(num_items, 3, seed=seed + 1, levels=levels)
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, num_items))
    wanted = ids[
        torch.from_numpy(np.random.default_rng(seed + 1).integers(0, num_items, num_queries))
    ]
    expected = []
    for query, own in zip(queries.double(), wanted.tolist()):
        order = ranking((gallery.double() @ query).float().tolist())
        expected.append(1 + [ids[j].item() == own for j in order].index(True))
    for size in (block, 10**6):
        assert retrieval_ranks(queries, gallery, wanted, ids, size).tolist() == expected


def test_recall_and_ranks_by_hand():
    found = recall(torch.tensor([1, 2, 7, 11]))
    assert found.recall == {1: 0.25, 5: 0.5, 10: 0.75}
    assert (found.median_rank, found.mean_rank, found.num_queries) == (4.5, 5.25, 4)
    assert str(found) == "R@1 25.00%, R@5 50.00%, R@10 75.00%, median rank 4.5 (4 queries)"


def test_the_best_of_several_captions_counts_for_a_video():
    videos = torch.eye(2, 3)
    texts = torch.tensor([[0.9, 0, 0], [0, 1, 0], [0.8, 0, 0], [0, 0.1, 0]])
    found = caption_retrieval(videos, texts, torch.tensor([1, 0, 0, 1]), ks=(1, 2))
    assert found.video_to_text.recall == {1: 0.0, 2: 1.0}
    assert found.text_to_video.recall == {1: 0.5, 2: 1.0}
    assert json.loads(json.dumps(found.to_dict()))["video_to_text"]["median_rank"] == 2.0
    assert str(found).startswith("text to video: R@1 50.00%")


def test_constant_embeddings_score_like_a_guess():
    ones = torch.ones(50, 8)
    found = caption_retrieval(ones, ones, torch.arange(50))
    for direction in (found.text_to_video, found.video_to_text):
        assert direction.recall == {1: 0.02, 5: 0.1, 10: 0.2}
        assert direction.median_rank == 25.5


def test_equal_embeddings_tie_whatever_the_block():
    """A thousand copies of one caption must not be told apart by how a matrix product was rounded."""
    texts = F.normalize(random(7, 333), dim=-1).repeat_interleave(150, 0)
    videos = F.normalize(random(40, 333, seed=1), dim=-1)
    ids = torch.arange(len(texts))
    for size in (1, 5000, 10**7):
        ranks = retrieval_ranks(videos, texts, ids[:40], ids, size)
        assert (ranks % 150 == torch.arange(1, 41)).all(), "i copies lie before copy i"


@pytest.mark.parametrize(
    ("videos", "texts", "owners", "message"),
    [
        ((3, 4), (2, 4), [0, 1], "query 2 and 0 others have no right answer"),
        ((2, 4), (2, 4), [0, 7], "query 1 and 0 others have no right answer"),
        ((2, 4), (2, 5), [0, 1], "of one width D"),
        ((2, 4), (2, 4), [0], "one id per row"),
        ((0, 4), (0, 4), [], "needs queries and a gallery"),
    ],
)
def test_what_does_not_fit_is_refused(videos, texts, owners, message):
    with pytest.raises(DataError, match=message):
        caption_retrieval(torch.ones(videos), torch.ones(texts), torch.tensor(owners).long())


def test_broken_embeddings_are_refused():
    broken = torch.tensor([[1.0, math.nan]])
    with pytest.raises(DataError, match="not finite"):
        caption_retrieval(broken, torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(DataError, match="not finite"):
        multi_instance_retrieval(torch.ones(1, 2), broken, torch.ones(1, 1))


SCRIPT = """
import sys, torch
from pathlib import Path
from onereel.evaluation.retrieval import recall, retrieval_ranks
num_queries, num_items = int(sys.argv[1]), int(sys.argv[2])
items = torch.randn(num_items, 8, generator=torch.Generator().manual_seed(0))
ids = torch.arange(num_items)
retrieval_ranks(items[:10], items[:10], ids[:10], ids[:10])

def peak():  # in KiB; not ru_maxrss, which a process inherits from the one that starts it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

before = peak()
ranks = retrieval_ranks(10 * items[:num_queries], items, ids[:num_queries], ids)
print((peak() - before) / 1024, recall(ranks).median_rank)
"""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("num_queries", "num_items"),
    [(600, 100_000), pytest.param(100_000, 100_000, marks=pytest.mark.slow)],
)
def test_memory_does_not_grow_with_the_number_of_pairs(num_queries, num_items):
    """All scores of 600 x 10^5 would take 720 MB (float64 and float32), of 10^5 x 10^5 120 GB."""
    command = [sys.executable, "-c", SCRIPT, str(num_queries), str(num_items)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(output[0]) < 400
    assert float(output[1]) < num_items / 10


# ------------------------------------------------------------------------------------------------- caption sets


def test_captions_of_one_moment_are_of_one_video():
    table = pa.table(
        {
            "path": ["a", "b", "a", "a"],
            "caption": [["one", "two"], ["three"], ["four"], ["five"]],
            "start": pa.array([0.0, None, 0.0, 2.0]),
        }
    )
    annotations = Annotations(table, "list")
    captions = caption_set(annotations)
    assert captions.texts == ("one", "two", "three", "four", "five")
    assert captions.video_of_text.tolist() == [0, 0, 1, 0, 2]
    assert captions.records.tolist() == [0, 1, 3]
    with pytest.raises(DataError, match="no captions; retrieval needs a column 'caption'"):
        caption_set(Annotations.of_videos(["a"]))


def test_captions24(real_data):
    annotations = read_annotations(str(real_data / "captions24" / "captions.csv"))
    captions = caption_set(annotations)
    assert len(captions.texts) == len(captions.records) == 24


# ---------------------------------------------------------------------------------------------- multi-instance


def slow_precision(scores: list[float], relevancy: list[float]) -> float:
    ranked = [relevancy[j] for j in ranking(scores)]
    places = [k for k, value in enumerate(ranked, 1) if value == 1]
    return sum(sum(ranked[:k]) / k for k in places) / len(places)


def slow_ndcg(scores: list[float], relevancy: list[float]) -> float:
    num_relevant = sum(value > 0 for value in relevancy)

    def gain(values: list[float]) -> float:
        return sum(v / math.log2(k + 1) for k, v in enumerate(values[:num_relevant], 1))

    ideal = sorted(relevancy, reverse=True)
    return gain([relevancy[j] for j in ranking(scores)]) / gain(ideal)


@settings(deadline=None, max_examples=60)
@given(**SIZES, seed=st.integers(0, 10**6), ties=st.booleans(), block=st.integers(1, 40))
def test_multi_instance_equals_brute_force(num_queries, num_items, seed, ties, block):
    videos = random(num_queries, 3, seed=seed, levels=LEVELS if ties else None)
    texts = random(num_items, 3, seed=seed + 1, levels=LEVELS if ties else None)
    relevancy = random(num_queries, num_items, seed=seed, levels=torch.tensor([0, 0.25, 0.5, 1.0]))
    relevancy[:, 0] = relevancy[0] = 1
    scores = (videos.double() @ texts.double().T).float()
    found = multi_instance_retrieval(videos, texts, relevancy, block)
    for matrix, wanted, mean_ap, mean_ndcg in (
        (scores, relevancy, found.map_video_to_text, found.ndcg_video_to_text),
        (scores.T, relevancy.T, found.map_text_to_video, found.ndcg_text_to_video),
    ):
        rows = list(zip(matrix.tolist(), wanted.tolist()))
        assert mean_ap == pytest.approx(np.mean([slow_precision(*row) for row in rows]))
        assert mean_ndcg == pytest.approx(np.mean([slow_ndcg(*row) for row in rows]))
    assert found.mean_map == (found.map_video_to_text + found.map_text_to_video) / 2
    assert found.to_dict()["mean_ndcg"] == found.mean_ndcg


def test_published_toy_cases():
    ranked = in_order(torch.tensor([[0.1, 0.9, 0.3, 0.7]]), torch.tensor([[1, 0.5, 0, 1]]))
    assert ranked.tolist() == [[0.5, 1, 0, 1]]
    assert graded_average_precision(ranked).tolist() == [0.6875]
    assert ndcg(ranked).item() == pytest.approx(0.601261, abs=1e-6)
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.7, 0.6]])
    ranked = in_order(scores, torch.tensor([[1, 0.5, 0], [0, 0.5, 1]]))
    assert graded_average_precision(ranked).tolist() == [1.0, 0.75]
    assert ndcg(ranked).tolist() == pytest.approx([0.760188, 0.859719], abs=1e-6)


def test_a_query_without_an_exact_answer_is_refused():
    with pytest.raises(DataError, match="1 queries have no item of relevancy 1"):
        multi_instance_retrieval(
            torch.ones(2, 1), torch.ones(2, 1), torch.tensor([[1, 0], [0, 0.5]])
        )
    with pytest.raises(DataError, match=r"relevancy \(2, 2\) for 3 videos and 2 texts"):
        multi_instance_retrieval(torch.ones(3, 1), torch.ones(2, 1), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("step", "tolerance"), [(16, 0.6), pytest.param(1, 0.1, marks=pytest.mark.slow)]
)
def test_random_ranking_of_epic_kitchens_scores_as_published(
    real_data: Path, step: int, tolerance: float
) -> None:
    """5.63 % mAP and 10.87 % nDCG for random scores, on every `step`-th query; the oracle scores 1.

    A binary average precision, which is the graded one of binary relevancies, would be 0.31 %.
    """
    annotations = read_annotations(str(real_data / "epic100" / "EPIC_100_retrieval_test.csv"))
    relevancy = torch.from_numpy(annotations.origin.sentences.relevancy())
    figures, binary = [], []
    for wanted in (relevancy[::step], relevancy.T[::step]):
        ranked = in_order(random(*wanted.shape), wanted)
        binary.append(100 * graded_average_precision((ranked == 1).float()).mean().item())
        figures += [graded_average_precision(ranked).mean(), ndcg(ranked).mean()]
    found = [100 * figure.item() for figure in figures]
    assert found == pytest.approx([5.69, 10.79, 5.57, 10.95], abs=tolerance)
    assert (found[0] + found[2]) / 2 == pytest.approx(5.63, abs=tolerance)
    assert (found[1] + found[3]) / 2 == pytest.approx(10.87, abs=tolerance)
    assert sum(binary) / 2 == pytest.approx(0.31, abs=tolerance / 4)
    best = in_order(relevancy[:200], relevancy[:200])
    assert graded_average_precision(best).tolist() == [1.0] * 200
    assert ndcg(best).tolist() == [1.0] * 200


@pytest.mark.gpu
def test_figures_do_not_depend_on_the_device():
    videos, texts = (
        F.normalize(random(300, 64), dim=-1),
        F.normalize(random(500, 64, seed=1), dim=-1),
    )
    texts[100:200] = texts[0]
    owners = torch.arange(500) % 300
    relevancy = random(300, 500, levels=torch.tensor([0, 0.25, 0.5, 1.0]))
    relevancy[:, 0] = relevancy[0] = 1
    found = caption_retrieval(videos.cuda(), texts.cuda(), owners.cuda())
    assert found == caption_retrieval(videos, texts, owners)
    graded = multi_instance_retrieval(videos.cuda(), texts.cuda(), relevancy)
    expected = multi_instance_retrieval(videos, texts, relevancy).to_dict()
    assert graded.to_dict() == pytest.approx(expected, abs=1e-9)
