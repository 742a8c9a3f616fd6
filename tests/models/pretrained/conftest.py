"""`foreign`: the module `foreign.py`, small models of transformers and ours to match."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def foreign() -> ModuleType:
    path = Path(__file__).parent / "foreign.py"
    spec = importlib.util.spec_from_file_location("foreign", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["foreign"] = module
    spec.loader.exec_module(module)
    return module
