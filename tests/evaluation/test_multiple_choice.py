"""EgoMCQ's questions and their figures, against a loop."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.data.annotations import Record
from onereel.errors import DataError
from onereel.evaluation.multiple_choice import multiple_choice, read_questions


def clip(video: str, start: float) -> dict[str, object]:
    return {"video_uid": video, "clip_start": start, "clip_end": start + 1, "clip_text": "x"}


QUESTIONS = {
    "0": {
        "answer": 1,
        "types": 1,
        "query": {"clip_text": "#C C cuts", "video_uid": "b"},
        "choices": {"0": clip("a", -0.5), "1": clip("b", 4)},
    },
    "1": {
        "answer": 0,
        "types": 2,
        "query": {"clip_text": "#C C reads", "video_uid": "a"},
        "choices": {"0": clip("a", 7), "1": clip("a", 9)},
    },
}


def test_questions_are_read(tmp_path):
    (tmp_path / "egomcq.json").write_text(json.dumps(QUESTIONS))
    questions = read_questions(tmp_path / "egomcq.json")
    assert questions.texts == ("#C C cuts", "#C C reads")
    assert questions.answers.tolist() == [1, 0]
    assert questions.kinds == ("inter", "intra")
    assert [questions.clips.record(i) for i in range(4)] == [
        Record(0, "a", start=0.0, end=0.5),
        Record(1, "b", start=4.0, end=5.0),
        Record(2, "a", start=7.0, end=8.0),
        Record(3, "a", start=9.0, end=10.0),
    ]
    assert questions.clips.located(["full/b.mp4"]).record(1).path == "full/b.mp4"
    assert questions.clips.root == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "as many clips, and one of them right"),
        ({"choices": {"0": clip("a", 0)}}, "as many clips"),
        ({"query": {}}, "KeyError: 'clip_text'"),
        ({"choices": None}, "not a file of questions"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    path = tmp_path / "egomcq.json"
    path.write_text(json.dumps({**QUESTIONS, "0": {**QUESTIONS["0"], **change}}))
    with pytest.raises(DataError, match=message):
        read_questions(path)
    path.write_text("[")
    with pytest.raises(DataError, match="not a file of questions"):
        read_questions(path)


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
