"""Answers that were kept are found again, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from onereel.evaluation.answer_journal import AnswerJournal, journal_beside
from onereel.types import Prediction


@pytest.fixture
def answers(tmp_path: Path) -> list[Prediction]:
    paths = [tmp_path / name for name in ("a.mp4", "b\u2028 \u00e9.mp4", "c.mp4")]
    for path in paths:
        path.write_bytes(b"video")
    return [
        Prediction(str(path), ("wave", "clap"), (0.75, 1 / 3), index_ms=1.5, wall_ms=2.0)
        for path in paths
    ]


@pytest.fixture
def journal(tmp_path: Path, answers: list[Prediction]) -> AnswerJournal:
    journal = AnswerJournal(tmp_path / "new" / "labels.partial.jsonl", "key")
    assert journal.read([]) == {}
    for answer in answers:
        journal.add(answer)
    return journal


def found(journal: AnswerJournal, answers: list[Prediction], key: str = "key") -> list[Prediction]:
    videos = [answer.video for answer in answers]
    return list(AnswerJournal(journal.path, key).read(videos).values())


def test_all_of_an_answer_is_found(journal: AnswerJournal, answers: list[Prediction]) -> None:
    again = found(journal, answers)
    assert again == answers
    assert [one.wall_ms for one in again] == [2.0, 2.0, 2.0]
    assert found(journal, answers[1:2]) == answers[1:2]


def test_a_file_that_has_changed_or_is_gone_is_not_found(
    journal: AnswerJournal, answers: list[Prediction]
) -> None:
    Path(answers[0].video).write_bytes(b"another video")
    Path(answers[1].video).unlink()
    assert found(journal, answers) == answers[2:]


def test_the_last_answer_counts(journal: AnswerJournal, answers: list[Prediction]) -> None:
    other = replace(answers[0], labels=("clap", "wave"))
    journal.add(other)
    assert found(journal, answers)[0].labels == ("clap", "wave")


def test_damaged_lines_are_left_out(journal: AnswerJournal, answers: list[Prediction]) -> None:
    with journal.path.open("ab") as file:
        file.write(b'{"vid\n{"video": "d.m')
    assert found(journal, answers) == answers
    journal.add(answers[0])
    assert found(journal, answers) == answers


@pytest.mark.parametrize("content", [b"", b"half a li", b"something else\n"])
def test_another_model_or_file_begins_anew(
    journal: AnswerJournal, answers: list[Prediction], content: bytes
) -> None:
    assert found(journal, answers, "other key") == []
    assert found(journal, answers) == []  # it is the other's now
    journal.path.write_bytes(content)
    assert found(journal, answers) == []
    journal.add(answers[2])
    assert found(journal, answers) == answers[2:]


def test_its_place(tmp_path: Path) -> None:
    assert journal_beside(tmp_path / "labels.csv") == tmp_path / "labels.partial.jsonl"
