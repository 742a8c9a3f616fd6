"""What `onereel predict` has answered is kept, however it ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onereel import api
from onereel.cli import INTERRUPTED, main
from onereel.evaluation.answer_journal import AnswerJournal
from onereel.types import Prediction

VIDEOS = ["a.mp4", "b.mp4", "c.mp4"]


def predicts(until: int) -> Callable[..., list[Prediction]]:
    """In place of `api.predict`: answers, and is interrupted after `until`."""

    def predict(
        run: str, videos: list[str], *, on_answer: Callable, journal: Path, **_: Any
    ) -> list[Prediction]:
        kept = AnswerJournal(journal, run)
        kept.read(videos)
        answers = [Prediction(video, ("wave",), (1.0,)) for video in videos]
        for number, answer in enumerate(answers):
            if number == until:
                raise KeyboardInterrupt
            kept.add(answer)
            on_answer(answer)
        return answers

    return predict


def test_answers_until_an_interrupt_are_kept_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, partial = tmp_path / "new" / "labels.csv", tmp_path / "new" / "labels.partial.jsonl"
    words = ["predict", "run", *VIDEOS, "--out", str(out)]
    monkeypatch.setattr(api, "predict", predicts(2))
    assert main(words) == INTERRUPTED
    assert len(partial.read_text().splitlines()) == 3
    assert not out.exists()
    said = capsys.readouterr()
    assert said.out.index("a.mp4") < said.out.index("b.mp4")
    assert f"2 answers until then: {partial}; the same command goes on from there" in said.err
    monkeypatch.setattr(api, "predict", predicts(9))
    assert main(words) == 0
    with out.open(newline="") as file:
        assert [row["video"] for row in csv.DictReader(file)] == VIDEOS
    assert not partial.exists()
