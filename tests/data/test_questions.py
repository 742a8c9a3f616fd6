"""EgoMCQ's file: clips as records, and what is asked of them."""

import json

import pytest

from onereel.data.annotations import Record, read_annotations
from onereel.errors import DataError


def clip(video: str, start: float) -> dict[str, object]:
    return {"video_uid": video, "clip_start": start, "clip_end": start + 1, "clip_text": "#C C x"}


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
    clips = read_annotations(str(tmp_path / "egomcq.json"))
    questions = clips.origin.questions
    assert questions.texts == ("#C C cuts", "#C C reads")
    assert questions.answers == (1, 0)
    assert questions.kinds == ("inter", "intra")
    assert [clips.record(i) for i in range(4)] == [
        Record(0, "a", caption="#C C x", start=0.0, end=0.5),
        Record(1, "b", caption="#C C x", start=4.0, end=5.0),
        Record(2, "a", caption="#C C x", start=7.0, end=8.0),
        Record(3, "a", caption="#C C x", start=9.0, end=10.0),
    ]
    assert clips.located(["full/b.mp4"]).record(1).path == "full/b.mp4"
    assert clips.root == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, "as many clips, and one of them must be right"),
        ({"choices": {"0": clip("a", 0)}}, "as many clips"),
        ({"query": {}}, "KeyError: 'clip_text'"),
        ({"choices": None}, "an entry is not as the others"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    path = tmp_path / "egomcq.json"
    path.write_text(json.dumps({**QUESTIONS, "0": {**QUESTIONS["0"], **change}}))
    with pytest.raises(DataError, match=message):
        read_annotations(str(path))
