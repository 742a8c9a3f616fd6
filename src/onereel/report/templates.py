"""The pages' templates: HTML in which everything that is filled in is escaped, and every name must exist."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from onereel.report import text


@cache
def environment() -> Environment:
    """Where the templates beside this file are found, with the filters that they use."""
    found = Environment(
        loader=PackageLoader("onereel.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = text.percent
    found.filters["decimals"] = text.decimals
    return found
