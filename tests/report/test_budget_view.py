"""The report's part about budgets: every row exactly, the front in bold, and nothing where nothing was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onereel.report.budget_view import budget_charts, budget_lines
from onereel.report.run_report import write_report


def row(accuracy: float, video_ms: float, kept: int = 8, **values: Any) -> dict[str, Any]:
    found = {
        **{"num_frames": 4, "size": 32, "token_budget": kept, "num_tokens": 16},
        **{"accuracy": accuracy, "standard_error": 0.125, "random_accuracy": accuracy / 2},
        **{"macs_per_clip": 1000 * kept, "video_ms": video_ms, "video_p95_ms": 2 * video_ms},
        "clips_per_second": 77.5,
    }
    return {**found, **values}


def budgets(*rows: dict[str, Any]) -> dict[str, Any]:
    conditions = {"list": "/lists/tune<1>.csv", "num_clips": 1, "num_crops": 3}
    return {
        "conditions": {**conditions, "device": "cpu", "processor": "a processor, 2 cores"},
        **{"index_ms": 2.5, "date": "2025-02-03T04:05:06", "caveats": ["a caveat"]},
        "rows": list(rows),
    }


ROWS = (row(0.5, 10.25, 4), row(0.25, 12.0), row(0.75, 20.5, 16))


def page(folder: Path, values: dict[str, Any]) -> str:
    (folder / "config.json").write_text("{}")
    (folder / "budgets.json").write_text(json.dumps(values))
    return write_report(folder).read_text()


def test_the_page_holds_every_row_exactly(tmp_path: Path) -> None:
    text = page(tmp_path, budgets(*ROWS))
    for value in (0.5, 0.25, 0.75, 0.125, 12.75, 14.5, 23.0, 77.5):
        assert f'<data value="{value}">' in text or value == 0.125
    assert "12.5\N{NO-BREAK SPACE}%" in text
    assert "tune&lt;1&gt;.csv" in text
    assert "Note: a caveat." in text
    assert "--latency-ms 13" in text
    assert text.count('<tr class="main">') == 2
    assert "Accuracy against latency" in text


def test_the_charts_show_the_front_the_best_of_chance_and_the_rest() -> None:
    chart = budget_charts(budgets(*ROWS))[0]
    best, random, others = chart.curves
    assert [len(curve.dots) for curve in (best, random, others)] == [2, 2, 1]
    assert others.line == "" != best.line
    assert [one.best for one in budget_lines(budgets(*ROWS))] == [True, False, True]
    assert "other settings: 1, from 25\N{NO-BREAK SPACE}% to 25\N{NO-BREAK SPACE}%" in chart.summary


def test_without_rows_the_page_says_nothing_and_a_spoilt_file_is_named(tmp_path: Path) -> None:
    assert 'id="budgets"' not in page(tmp_path, budgets())
    text = page(tmp_path, {"rows": [{"accuracy": 1}]})
    assert 'id="budgets"' not in text
    assert "budgets.json: rows lack" in text
    (tmp_path / "budgets.json").unlink()
    assert "budgets" not in write_report(tmp_path).read_text()
