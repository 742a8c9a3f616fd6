"""Line charts as geometry: a template draws them as SVG, a style sheet gives them the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onereel.report.text import short_number

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 14, 46
MAX_POINTS = 240
"""Longer curves are drawn as means of neighbouring records."""


@dataclass(frozen=True)
class Series:
    """One curve: (x, y) in data units; points that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    """Mark each point (evaluations), not only the line."""
    line: bool = True
    """Join the points."""


@dataclass(frozen=True)
class Tick:
    position: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A series in pixels: the polyline's `points` attribute (empty: no line), and the dots as (x, y, text)."""

    name: str
    line: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """What the template needs; `summary` says in words what the picture shows."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]
    summary: str
    note: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    y_range: tuple[float, float] | None = None,
    number: Callable[[float], str] | None = None,
) -> Chart | None:
    """A chart of the series that have points, or None where none has.

    Args:
        y_range: both ends of the y axis; default: those of the data, from zero where that wastes little.
        number: how values are written; default: `short_number`.
    """
    number = number or short_number
    full = [replace(s, points=_finite(s.points)) for s in series]
    full = [s for s in full if s.points]
    if not full:
        return None
    longest = max(len(s.points) for s in full)
    summary = "; ".join(_in_words(s, number) for s in full)
    drawn = [s if s.dots else replace(s, points=thin(s.points)) for s in full]
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    x_low, x_high, x_values = _axis(min(xs), max(xs), tight=True)
    y_low, y_high, y_values = _axis(*(y_range or _with_zero(min(ys), max(ys))))

    def place(x: float, y: float) -> tuple[float, float]:
        right, down = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        across = LEFT + right * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - down * (HEIGHT - TOP - BOTTOM), 1)

    curves = []
    for s in drawn:
        dots = [(*place(x, y), f"{x_label} {short_number(x)}: {number(y)}") for x, y in s.points]
        line = " ".join(f"{x},{y}" for x, y, _ in dots) if s.line else ""
        curves.append(Curve(s.name, line, dots if s.dots or len(dots) == 1 else []))
    return Chart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[Tick(place(x, y_low)[0], short_number(x)) for x in x_values],
        y_ticks=[Tick(place(x_low, y)[1], number(y)) for y in y_values],
        curves=curves,
        summary=f"{title}. {summary}.",
        note=f"Each point is the mean of {math.ceil(longest / MAX_POINTS)} records."
        if longest > MAX_POINTS
        else "",
    )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points, each the mean of its neighbours."""
    step = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + step] for i in range(0, len(points), step)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def nice_step(span: float, count: int) -> float:
    """The 1, 2 or 5 times a power of ten that cuts `span` into about `count` parts."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _with_zero(low: float, high: float) -> tuple[float, float]:
    return (0.0, high) if 0 <= low < 0.5 * high else (low, high)


def _axis(low: float, high: float, tight: bool = False) -> tuple[float, float, list[float]]:
    """Ends of an axis and the values marked on it; `tight` ends where the data end."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    step = nice_step(high - low, 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [round(k * step, 12) for k in range(first, last + 1)]
    if tight:
        return low, high, [v for v in values if low <= v <= high]
    return values[0], values[-1], values


def _in_words(series: Series, number: Callable[[float], str]) -> str:
    if not series.line:
        values = [y for _, y in series.points]
        return f"{series.name}: {len(values)}, from {number(min(values))} to {number(max(values))}"
    (x0, y0), (x1, y1) = series.points[0], series.points[-1]
    if len(series.points) == 1:
        return f"{series.name}: {number(y0)} at {short_number(x0)}"
    return f"{series.name}: from {number(y0)} at {short_number(x0)} to {number(y1)} at {short_number(x1)}"
