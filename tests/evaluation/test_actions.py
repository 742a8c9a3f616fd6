"""Verb and noun accuracy from action probabilities, against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.evaluation.actions import action_parts, marginalise, part_accuracies

NAMES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 12)), min_size=1, max_size=12, unique=True
).map(lambda pairs: sorted(f"{verb}:{noun}" for verb, noun in pairs))


def test_parts_are_numbered_by_value():
    parts = action_parts(["10:2", "2:11", "2:2"])
    assert parts.verb_names == ("2", "10")
    assert parts.noun_names == ("2", "11")
    assert parts.verbs.tolist() == [1, 0, 0]
    assert parts.nouns.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="verb class:noun class"):
        action_parts(["10:2", "take cup"])


@settings(deadline=None, max_examples=50)
@given(names=NAMES, num_videos=st.integers(1, 6), seed=st.integers(0, 1000))
def test_equals_brute_force(names, num_videos, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(num_videos, len(names), generator=generator).softmax(-1)
    labels = torch.randint(len(names), (num_videos,), generator=generator)
    found = part_accuracies(probabilities, labels, names)
    for place, figure in ((0, "verb_top1"), (1, "noun_top1")):
        part = [int(name.split(":")[place]) for name in names]
        right = 0
        for row, label in zip(probabilities.double().tolist(), labels.tolist()):
            sums = {p: sum(v for v, q in zip(row, part) if q == p) for p in sorted(set(part))}
            right += max(sums, key=sums.__getitem__) == part[label]
        assert found[figure] == pytest.approx(right / num_videos)


@settings(deadline=None)
@given(names=NAMES, seed=st.integers(0, 1000))
def test_marginals_sum_to_one(names, seed):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randn(3, len(names), generator=generator).softmax(-1)
    parts = action_parts(names)
    for part, part_names in ((parts.verbs, parts.verb_names), (parts.nouns, parts.noun_names)):
        sums = marginalise(probabilities, part, len(part_names))
        assert sums.shape == (3, len(part_names))
        torch.testing.assert_close(sums.sum(1), torch.ones(3).double(), atol=1e-6, rtol=0)


def test_many_weak_actions_of_a_verb_outvote_one_strong_action():
    found = part_accuracies(
        torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([1]), ["0:0", "1:0", "1:1"]
    )
    assert found == {"verb_top1": 1.0, "noun_top1": 1.0}
