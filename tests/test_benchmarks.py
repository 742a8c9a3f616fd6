"""Every benchmark imports and answers --help in the shared form; what they measure is not run here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SHARED = {"common.py", "baselines.py"}
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.name not in SHARED)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_form_is_shared(script: Path) -> None:
    answer = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    for option in ("--size {small,full}", "--device", "--json"):
        assert option in answer.stdout
