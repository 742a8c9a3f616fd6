"""What `onereel predict` has answered is kept, however it ends."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onereel import api, deploying
from onereel.cli import INTERRUPTED, main
from onereel.types import Prediction

VIDEOS = ["a.mp4", "b.mp4", "c.mp4"]


def predicts(until: int) -> Callable[..., list[Prediction]]:
    """In place of `api.predict`: answers, and is interrupted after `until`."""

    def predict(run: str, videos: list[str], *, on_answer: Callable, **_: Any) -> list[Prediction]:
        answers = [Prediction(video, ("wave",), (1.0,)) for video in videos]
        for number, answer in enumerate(answers):
            if number == until:
                raise KeyboardInterrupt
            on_answer(answer)
        return answers

    return predict


def listed(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["video"] for row in csv.DictReader(file)]


def test_answers_until_an_interrupt_are_kept_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, partial = tmp_path / "labels.csv", tmp_path / "labels.partial.csv"
    words = ["predict", "run", *VIDEOS, "--out", str(out)]
    monkeypatch.setattr(api, "predict", predicts(2))
    assert main(words) == INTERRUPTED
    assert listed(partial) == VIDEOS[:2]
    assert not out.exists()
    said = capsys.readouterr()
    assert said.out.index("a.mp4") < said.out.index("b.mp4")
    assert f"2 answers until then: {partial}" in said.err
    monkeypatch.setattr(api, "predict", predicts(9))
    assert main(words) == 0
    assert listed(out) == VIDEOS
    assert not partial.exists()


def test_answers_are_written_as_time_goes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploying, "SECONDS_BETWEEN", -1.0)
    kept = deploying._Kept(str(tmp_path / "labels.csv"))
    for number, video in enumerate(VIDEOS, 1):
        kept.add(Prediction(video, ("wave",), (1.0,)))
        assert listed(tmp_path / "labels.partial.csv") == VIDEOS[:number]
