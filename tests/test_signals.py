"""A scheduler ends a job with SIGTERM to every process of it: the run saves itself and says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onereel.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from onereel.training import list_checkpoints

# A step takes ten batches, of which the worker reads one ahead: the step that the signal meets needs the worker.
CONFIG = RunConfig(
    data=DataConfig(num_frames=4, size=32, num_workers=1, prefetch=1),
    model=ModelConfig(name="vit_micro_patch16_32"),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0),
    train=TrainConfig(epochs=100, batch_size_per_device=2, accum_steps=10, log_every=1),
)


@pytest.fixture
def arguments(
    tmp_path: Path, make_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """`onereel train` into tmp_path / "run", of steps that take a moment."""
    monkeypatch.setenv("ONEREEL_CACHE", str(tmp_path / "cache"))
    make_video(tmp_path / "a.mp4", num_frames=60)
    (tmp_path / "train.csv").write_text("path,label\n" + "a.mp4,clap\na.mp4,wave\n" * 40)
    (tmp_path / "recipe.py").write_text(
        f"from onereel.config import *\ndef recipe():\n    return {CONFIG!r}\n"
    )
    data = str(tmp_path / "train.csv")
    return [
        "train",
        str(tmp_path / "recipe.py"),
        "--data.train",
        data,
        "--out",
        str(tmp_path / "run"),
    ]


@contextmanager
def group(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process group of its own, of which nothing is left after the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "onereel.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_alive(process_group: int) -> bool:
    try:
        os.killpg(process_group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_to_the_whole_group_saves_the_run(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"
    with group(arguments) as process:
        wait_until(
            lambda: process.poll() is not None or (metrics.exists() and metrics.stat().st_size), 120
        )
        os.killpg(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130, error
        assert f"Resume: onereel train --resume {run}" in error
        assert "Traceback" not in error
        assert len(list_checkpoints(run)) == 1
        wait_until(lambda: not is_alive(process.pid), 10)
