"""Relevancy against its formula on sets, and captions drawn by it."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.data import relevancy
from onereel.data.relevancy import Actions, SentencePool, relevancy_matrix
from onereel.errors import DataError
from onereel.seeding import numpy_generator

ACTION = st.tuples(st.integers(0, 3), st.sets(st.integers(0, 5), max_size=4))
LIST = st.lists(ACTION, min_size=1, max_size=6)


def actions(pairs: list[tuple[int, set[int]]]) -> Actions:
    """As narrow as the classes that occur, as a reader makes them."""
    nouns = np.zeros(
        (len(pairs), 1 + max((max(n, default=-1) for _, n in pairs), default=-1)), bool
    )
    for row, (_, classes) in enumerate(pairs):
        nouns[row, sorted(classes)] = True
    return Actions(np.array([verb for verb, _ in pairs]), nouns)


def slow(video: tuple[int, set[int]], sentence: tuple[int, set[int]]) -> float:
    union = video[1] | sentence[1]
    iou = len(video[1] & sentence[1]) / len(union) if union else 0.0
    return (video[0] == sentence[0]) / 2 + iou / 2


@given(videos=LIST, sentences=LIST)
def test_equals_the_formula_on_sets(videos, sentences):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevancy, "ROWS_AT_ONCE", 4)
        matrix = relevancy_matrix(actions(videos), actions(sentences))
    expected = [[slow(video, sentence) for sentence in sentences] for video in videos]
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)
    same = [[v == s and bool(v[1]) for s in sentences] for v in videos]
    assert ((matrix == 1) == same).all(), "exactly 1 for the same verb and the same nouns"
    backwards = relevancy_matrix(actions(sentences), actions(videos))
    assert (matrix == backwards.T).all()


@given(videos=LIST, sentences=LIST)
def test_one_row_is_the_row_of_the_matrix(videos, sentences):
    pool = SentencePool(("x",) * len(sentences), actions(sentences), actions(videos))
    rows = np.stack([pool.relevancy_of(i) for i in range(len(videos))])
    assert rows.dtype == np.float32
    assert (rows == pool.relevancy()).all()


@given(videos=LIST)
def test_pool_remembers_what_happens_in_each_record(videos):
    original = actions(videos)
    kept = SentencePool(("x",), original[:1], original).videos
    assert (kept.verbs == original.verbs).all()
    assert (kept.nouns == original.nouns).all()


def test_draws_are_uniform_over_the_relevant_sentences_and_reproducible():
    videos = actions([(0, {1}), (2, {1, 2, 3, 4, 5})])
    texts = ("exact", "same verb", "same noun", "nothing", "one noun of six")
    sentences = actions([(0, {1}), (0, {4}), (9, {1}), (5, {7}), (8, {1, 7, 8})])
    pool = SentencePool(texts, sentences, videos)
    draws = Counter(pool.draw(0, numpy_generator(0, 0, i, "caption")) for i in range(3000))
    assert set(draws) == {"exact", "same verb", "same noun", "one noun of six"}
    assert max(draws.values()) - min(draws.values()) < 150
    assert pool.relevancy()[1, 4] == pytest.approx(1 / 14)
    one, two = (pool.draw(0, numpy_generator(0, 3, 1, "caption")) for _ in range(2))
    assert one == two


def test_a_record_without_a_sentence_is_named():
    pool = SentencePool(("x",), actions([(0, {1})]), actions([(0, {1}), (1, {2})]))
    with pytest.raises(DataError, match=r"record 1 has no sentence of relevance above 0\.1"):
        pool.draw(1, numpy_generator(0))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="don't match"):
        Actions(np.zeros(3, int), np.zeros((2, 5), bool))
    one = actions([(0, {1})])
    with pytest.raises(ValueError, match="2 texts, but 1"):
        SentencePool(("a", "b"), one, one)
