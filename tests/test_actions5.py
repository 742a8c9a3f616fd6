"""The main job on real video, three seeds: the claims of benchmarks/actions.py. A quarter of an hour on two cores."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_actions5_from_scratch(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setenv("ONEREEL_TEST_DATA", str(real_data))
    benchmark = importlib.import_module("actions")
    rows, claims = benchmark.measure("cpu", "full", tmp_path, every_selector=False)
    failed = [claim for claim in claims if not claim.holds]
    assert not failed, (failed, rows)
