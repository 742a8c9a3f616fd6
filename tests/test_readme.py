"""Every command that the README prints runs as printed (training for one epoch), and every file it names exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# What a test adds to a printed command so that it ends in seconds; the command itself is not changed.
SMALL = "--train.batch-size-per-device 2 --data.num-workers 0 --data.size 32 --model.name vit_micro_patch16_112"
SHORTER = {"train": f"--train.epochs 1 {SMALL}", "plan": SMALL, "eval": "--data.num-workers 0"}
SHORTER["tune-budget"] = "--sizes 32 --budgets 16"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = [words[1] for words in commands() if words[0] == "make"]
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.M), f"make {target}"


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """A folder with what the README's reader has: videos, and lists of them."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "videos").mkdir()
    for i in range(4):
        make_video(folder / "videos" / f"{i}.mp4", num_frames=24, height=64, width=96)
    rows = "".join(f"{i}.mp4,{'wave' if i % 2 else 'clap'}\n" for i in range(4))
    for name in ("train.csv", "val.csv", "tune.csv"):
        (folder / "videos" / name).write_text("path,label\n" + rows)
    make_video(folder / "holiday.mp4", num_frames=24, height=64, width=96)
    return folder


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "ONEREEL_CACHE": str(folder / "cache"), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_onereel_command_runs_in_order(workplace: Path) -> None:
    ours = [words for words in commands() if words[0] == "onereel"]
    assert {"prepare", "train", "eval", "predict", "tune-budget"} <= {words[1] for words in ours}
    for words in ours:
        extra = shlex.split(SHORTER.get(words[1], "")) if "--resume" not in words else []
        run([sys.executable, "-m", "onereel.cli", *words[1:], *extra], workplace)
    assert (workplace / "runs/first/report.html").exists()


def test_python_example_runs(workplace: Path) -> None:
    for code in blocks("python"):
        run([sys.executable, "-c", code], workplace)
