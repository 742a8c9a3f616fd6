"""Tokenizers: any text can be said, its end is never cut off, and a file holds all of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onereel.errors import ConfigError, DataError
from onereel.models.text import END, START, TextTower, Tokenizer

CAPTIONS = ["a red square moves right", "a blue disc moves left", "a red ring grows"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS * 5, vocab_size=320, context_length=10)


@settings(max_examples=50, deadline=None)
@example(f"says {END} and {START}")
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_every_text_starts_and_ends_and_fits(text):
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=280, context_length=10)
    (ids,) = tokenizer([text]).tolist()
    start, end = (tokenizer.backend.token_to_id(token) for token in (START, END))
    assert ids[0] == start
    assert ids[-1] == end
    assert ids.count(end) == ids.count(start) == 1
    assert len(ids) <= 10


def test_case_and_spaces_do_not_matter(tokenizer):
    texts = ["a red square", "  A  Red\tsquare\n"]
    first, second = tokenizer(texts).tolist()
    assert first == second


def test_frequent_words_become_single_tokens(tokenizer):
    assert tokenizer(["a red square moves right"]).shape == (1, 7)
    assert tokenizer.vocab_size <= 320


def test_texts_are_padded_to_the_longest_with_their_end(tokenizer):
    ids = tokenizer(["a", "a red square"])
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 5)
    assert ids[0, 2:].tolist() == [tokenizer.end_id] * 3


def test_a_file_holds_everything(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    loaded = Tokenizer.load(path, 10)
    assert torch.equal(loaded(CAPTIONS), tokenizer(CAPTIONS))
    assert (loaded.vocab_size, loaded.end_id) == (tokenizer.vocab_size, tokenizer.end_id)
    with pytest.raises(DataError, match=r"tokenizer"):
        Tokenizer.load(tmp_path / "none.json", 10)


def test_training_is_reproducible(tokenizer):
    again = Tokenizer.train(CAPTIONS * 5, vocab_size=320, context_length=10)
    assert again.to_json() == tokenizer.to_json()


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ConfigError, match="base"):
        TextTower("bse", vocab_size=300, context_length=8, out_dim=8, end_id=1)
