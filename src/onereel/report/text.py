"""How pages write numbers and names; a missing number is a dash, and none parts from its sign at a line's end."""

from __future__ import annotations

MISSING = "–"


def short_number(value: float) -> str:
    """Three significant digits, thousands grouped: 1,250,000; 0.0312; 1e-06."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2g}"


def short_percent(share: float) -> str:
    """As `short_number`, of a share: 12.5 %."""
    return f"{100 * share:.3g}\N{NO-BREAK SPACE}%"


def percent(share: float | None, digits: int = 1) -> str:
    """A share with a fixed number of decimals, so that columns line up."""
    return MISSING if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def decimals(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def printable(name: str) -> str:
    """A file's name with a question mark for each byte that is not UTF-8, which no page or terminal could show."""
    return name.encode(errors="replace").decode()
