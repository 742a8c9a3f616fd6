"""`pair_toy`: the module `pair_toy.py`, which is also a script."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def pair_toy() -> ModuleType:
    path = Path(__file__).parent / "pair_toy.py"
    spec = importlib.util.spec_from_file_location("pair_toy", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pair_toy"] = module
    spec.loader.exec_module(module)
    return module
