"""onereel: train a large video model on one machine, in a day, and deploy it at any compute budget."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [
    *("create_model", "evaluate", "inspect", "load", "load_dual_encoder", "predict", "prepare"),
    *("train", "tune_budget"),
]


def __getattr__(name: str) -> Any:
    # Looked up on first use, so that `import onereel` and `onereel --help` do not load PyTorch.
    if name in __all__:
        return getattr(import_module("onereel.api"), name)
    raise AttributeError(f"module 'onereel' has no attribute {name!r}")


def __dir__() -> list[str]:
    # So that a notebook completes them.
    return sorted({*globals(), *__all__})
