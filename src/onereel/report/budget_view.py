"""From `budgets.json` to what the report shows of it: accuracy against cost, and the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onereel.fronts import pareto_front
from onereel.report.charts import Chart, Series, line_chart
from onereel.report.text import short_percent

NEEDED = {
    *("num_frames", "size", "token_budget", "num_tokens", "accuracy", "standard_error"),
    *("random_accuracy", "macs_per_clip", "video_ms", "video_p95_ms", "clips_per_second"),
}
"""Of every row."""


@dataclass(frozen=True)
class BudgetLine:
    """One line of the table of budgets.

    Attributes:
        latency_ms, p95_ms: per video, a new file's index included.
        gflops: 2 x MACs of a clip, in billions.
        all_kept: there was nothing to select.
        best: no other row is both quicker and more accurate.
    """

    values: dict[str, Any]
    latency_ms: float
    p95_ms: float
    gflops: float
    all_kept: bool
    best: bool


def budget_lines(budgets: dict[str, Any]) -> list[BudgetLine]:
    """All rows, in the order of the file; none where nothing was measured."""
    rows: list[dict[str, Any]] = budgets.get("rows", [])
    best = pareto_front(rows, lambda row: row["video_ms"], lambda row: row["accuracy"])
    front = [id(row) for row in best]
    index = budgets.get("index_ms", 0.0)
    return [
        BudgetLine(
            values=row,
            latency_ms=index + row["video_ms"],
            p95_ms=index + row["video_p95_ms"],
            gflops=2 * row["macs_per_clip"] / 1e9,
            all_kept=row["token_budget"] == row["num_tokens"],
            best=id(row) in front,
        )
        for row in rows
    ]


def promises_latency(budgets: dict[str, Any]) -> bool:
    """Whether `onereel predict --latency-ms` answers from the table: files were on the clock, and no chunk store."""
    timed_from = budgets.get("conditions", {}).get("timed_from")
    return bool(budgets.get("rows")) and timed_from != "chunk store"


def budget_charts(budgets: dict[str, Any]) -> list[Chart]:
    """Accuracy against latency, and against arithmetic."""
    lines = budget_lines(budgets)
    found = [
        _chart("Accuracy against latency", "ms per video", lines, lambda one: one.latency_ms),
        _chart("Accuracy against arithmetic", "GFLOPs per clip", lines, lambda one: one.gflops),
    ]
    return [chart for chart in found if chart is not None]


def _chart(
    title: str, x_label: str, lines: Sequence[BudgetLine], cost: Callable[[BudgetLine], float]
) -> Chart | None:
    def points(found: Sequence[BudgetLine], name: str) -> list[tuple[float, float]]:
        return [(cost(one), one.values[name]) for one in found]

    best = pareto_front(lines, cost, lambda one: one.values["accuracy"])
    best_random = pareto_front(lines, cost, lambda one: one.values["random_accuracy"])
    others = [one for one in lines if one not in best]
    series = [
        Series("best at its cost", points(best, "accuracy"), dots=True),
        Series("best with random tokens", points(best_random, "random_accuracy"), dots=True),
        Series("other settings", points(others, "accuracy"), dots=True, line=False),
    ]
    return line_chart(title, x_label, "top-1 (%)", series, number=short_percent)
