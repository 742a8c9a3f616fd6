"""Libraries of onereel[text], which few runs need and which take seconds to import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from onereel.errors import ConfigError


def library(name: str, user: str) -> Any:
    """The module `name`, which `user` needs. Raises ConfigError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{user} needs the library {name}: pip install 'onereel[text]'"
        ) from error
