"""The check that every section of a configuration makes of its values."""

from __future__ import annotations

from onereel.errors import ConfigError


def require(condition: bool, name: str, given: object, allowed: str) -> None:
    """Raise ConfigError, which says what was given and what is allowed, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{name} is {given!r}; allowed: {allowed}")
