"""Multiple choice against a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.errors import DataError
from onereel.evaluation.multiple_choice import multiple_choice


@settings(deadline=None, max_examples=40)
@given(
    num_questions=st.integers(1, 8),
    num_choices=st.integers(1, 5),
    seed=st.integers(0, 1000),
    ties=st.booleans(),
)
def test_equals_brute_force(num_questions, num_choices, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(num_questions, 4, generator=generator)
    clips = torch.randn(num_questions * num_choices, 4, generator=generator)
    if ties:
        texts, clips = texts.sign(), clips.sign()
    answers = torch.randint(num_choices, (num_questions,), generator=generator)
    kinds = [("intra", "inter")[i % 2] for i in range(num_questions)]
    right: dict[str, list[bool]] = {}
    for i, (text, kind) in enumerate(zip(texts, kinds)):
        scores = [float(text @ clips[i * num_choices + k]) for k in range(num_choices)]
        right.setdefault(kind, []).append(scores.index(max(scores)) == int(answers[i]))
    found = multiple_choice(texts, clips, answers, kinds)
    assert found.accuracy == pytest.approx(sum(map(sum, right.values())) / num_questions)
    assert found.accuracy_by_kind == pytest.approx({k: sum(v) / len(v) for k, v in right.items()})
    assert f"of {num_questions} questions" in str(found)


@pytest.mark.parametrize(
    ("texts", "clips", "answers", "kinds"),
    [
        ((2, 3), (5, 3), 2, "ab"),
        ((2, 3), (4, 3), 1, "ab"),
        ((2, 3), (4, 3), 2, "a"),
        ((0, 3), (0, 3), 0, ""),
    ],
)
def test_shapes_are_checked(texts, clips, answers, kinds):
    with pytest.raises(DataError, match="not those of Q questions"):
        multiple_choice(torch.ones(texts), torch.ones(clips), torch.zeros(answers).long(), kinds)


def test_broken_embeddings_are_refused():
    with pytest.raises(DataError, match="not finite"):
        multiple_choice(torch.ones(1, 1) / 0, torch.ones(2, 1), torch.tensor([0]), ["intra"])
