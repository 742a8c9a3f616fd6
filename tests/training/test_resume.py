"""kill -9, resume, and the curve is that of the run that was never killed: the same numbers, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LEARNED = ("step", "epoch", "loss", "top1", "lr", "grad_norm")
SCRIPT = Path(__file__).parent / "toy_run.py"
SECTIONS = {"train": {"accum_steps": 2, "epochs": 4}, "optim": {"ema_decay": 0.9}}

# 3 steps per epoch, 12 in all, a checkpoint after every third.
KILLS = {
    "before the first checkpoint": {"step": 1},
    "in mid-epoch": {"step": 7},
    "while saving": {"save": 9},
}
MORE_KILLS = {f"at step {step}": {"step": step} for step in range(12)}


def start_and_kill(runs, kills, **train):
    """Start a run for each of `kills` in a process of its own, which dies."""
    sections = {**SECTIONS, "train": {**SECTIONS["train"], **train}}
    jobs = [
        {"run": str(runs / name), "sections": {**sections, "kill": kill}}
        for name, kill in kills.items()
    ]
    command = [sys.executable, str(SCRIPT), json.dumps(jobs), str(runs / "codes.json")]
    subprocess.run(command, check=True, timeout=200)
    assert json.loads((runs / "codes.json").read_text()) == [-signal.SIGKILL] * len(kills)


def curve(toy, run):
    return [{k: record[k] for k in LEARNED} for record in toy.read_metrics(run)]


def check(toy, tmp_path, kills, **train):
    sections = {**SECTIONS, "train": {**SECTIONS["train"], **train}}
    toy.train(tmp_path / "unbroken", toy.toy_config(**sections))
    expected = curve(toy, tmp_path / "unbroken")
    start_and_kill(tmp_path, kills, **train)
    for name in kills:
        assert curve(toy, tmp_path / name) == expected[: len(curve(toy, tmp_path / name))]
        toy.train(tmp_path / name, toy.toy_config(), resume=True)
        assert curve(toy, tmp_path / name) == expected, name
        assert not list((tmp_path / name / "checkpoints").glob(".*"))


def test_a_killed_run_continues_bit_for_bit(toy, tmp_path):
    check(toy, tmp_path, KILLS)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"log_every": 2}, {"log_every": 5, "save_every": 2}])
def test_a_run_killed_at_any_step_continues_bit_for_bit(toy, tmp_path, settings):
    check(toy, tmp_path, MORE_KILLS, **settings)


@pytest.mark.parametrize("log_every", [2, 5])
def test_windows_that_a_checkpoint_cuts_are_logged_whole(toy, tmp_path, log_every):
    config = toy.toy_config(train={"log_every": log_every})
    toy.train(tmp_path / "unbroken", config)

    class StopError(Exception):
        pass

    def stop(epoch, batch):
        if (epoch, batch) == (1, 2):
            raise StopError

    with pytest.raises(StopError):
        toy.train(tmp_path / "broken", config, loader=toy.ToyLoader(4, on_batch=stop))
    toy.train(tmp_path / "broken", config, resume=True)
    assert curve(toy, tmp_path / "broken") == curve(toy, tmp_path / "unbroken")


def test_a_checkpoint_cut_in_half_is_passed_over_and_said(toy, tmp_path, caplog):
    toy.train(tmp_path, toy.toy_config())
    expected = curve(toy, tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000012.pt"
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    toy.train(tmp_path, toy.toy_config(), resume=True)
    assert "step_00000012.pt cannot be read" in caplog.text
    assert "using the one before it" in caplog.text
    assert curve(toy, tmp_path) == expected
