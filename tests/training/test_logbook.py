"""metrics.jsonl holds each step once, whatever happens to the run."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from rich.console import Console

from onereel.training import logbook as logbook_module
from onereel.training.logbook import Logbook, cut_metrics


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_record_goes_to_the_file_tensorboard_and_the_terminal(tmp_path, capsys):
    with Logbook(tmp_path, total_steps=10) as log:
        log.write("train", 5, 0.123456, {"loss": 1.5, "lr": 0.1, "eta_seconds": 61})
        log.write("eval", 5, 0.5, {"top1": 0.25})
    assert lines(tmp_path) == [
        {"kind": "train", "step": 5, "epoch": 0.1235, "loss": 1.5, "lr": 0.1, "eta_seconds": 61},
        {"kind": "eval", "step": 5, "epoch": 0.5, "top1": 0.25},
    ]
    shown = capsys.readouterr().out
    assert "step 5/10  epoch 0.12  loss 1.5000  lr 1.00e-01  0:01:01 left" in shown
    assert "eval at step 5/10  epoch 0.50  top1 0.25" in shown
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"eval/top1" in events.read_bytes()


def test_processes_that_are_not_the_main_one_write_nothing(tmp_path, capsys):
    with Logbook(tmp_path, total_steps=10, enabled=False) as log:
        log.note("hello")
        log.advance(1)
        log.write("train", 1, 0.1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=200)
    monkeypatch.setattr(logbook_module, "Console", lambda: terminal)
    with Logbook(tmp_path, total_steps=10) as log:
        log.note("4 clips [per] step")
        log.write("train", 5, 0.5, {"loss": 1.5})
        log.advance(5)
    assert "4 clips [per] step" in screen.getvalue()
    assert "loss 1.5000" in screen.getvalue()
    assert "━" in screen.getvalue()


def test_what_lies_beyond_the_resumed_step_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = [{"kind": "train", "step": s} for s in (1, 2, 3)]
    kept.insert(1, {"kind": "eval", "step": 2})
    beyond = [{"kind": "eval", "step": 3}, {"kind": "train", "step": 4}]
    text = "".join(json.dumps(record) + "\n" for record in kept + beyond)
    path.write_text(text + '{"kind": "train", "st')
    cut_metrics(path, 3)
    assert lines(tmp_path) == kept
    cut_metrics(path, 0)
    assert lines(tmp_path) == []
    cut_metrics(tmp_path / "missing.jsonl", 3)
    assert not (tmp_path / "missing.jsonl").exists()


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: while it holds True, no file can be opened for appending."""
    full = [True]
    opener = Path.open

    def fail(path, mode="r", *args, **kwargs):
        if full[0] and mode == "a":
            raise OSError(28, "No space left on device")
        return opener(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    return full


def test_lines_that_a_full_disk_refused_are_written_later(tmp_path, full_disk, caplog):
    with caplog.at_level(logging.WARNING), Logbook(tmp_path, total_steps=10) as log:
        log.write("train", 1, 0.1, {"loss": 1.0})
        full_disk[0] = False
        log.write("train", 2, 0.2, {"loss": 2.0})
    assert "No space left" in caplog.text
    assert [record["step"] for record in lines(tmp_path)] == [1, 2]
