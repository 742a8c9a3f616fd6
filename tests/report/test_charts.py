"""Charts as geometry: inside the frame, in order, axes that contain the data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.report.charts import MAX_POINTS, Series, line_chart, nice_step, thin
from onereel.report.text import decimals, percent, short_number, short_percent

values = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)
curves = st.lists(st.tuples(st.integers(0, 10**7), values), min_size=1, max_size=30)


@given(curves)
def test_everything_lies_inside_the_frame(points: list[tuple[int, float]]) -> None:
    chart = line_chart("Loss", "step", "loss", [Series("training", sorted(points))])
    assert chart is not None
    for pair in chart.curves[0].line.split():
        x, y = (float(number) for number in pair.split(","))
        assert chart.left - 0.1 <= x <= chart.right + 0.1
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1
    for tick in chart.x_ticks:
        assert chart.left - 0.1 <= tick.position <= chart.right + 0.1
    assert len(chart.y_ticks) >= 2
    assert chart.y_ticks[0].position == pytest.approx(chart.bottom)
    assert chart.y_ticks[-1].position == pytest.approx(chart.top)


@given(st.floats(1e-6, 1e9), st.integers(1, 10))
def test_steps_are_round_and_cut_the_span_about_as_asked(span: float, count: int) -> None:
    step = nice_step(span, count)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert any(mantissa == pytest.approx(one) for one in (1, 2, 5, 10))
    assert count / 3 < span / step < count * 1.01


def test_points_that_are_not_finite_are_left_out() -> None:
    points = [(1, float("nan")), (2, 3.0), (3, float("inf")), (4, 1.0)]
    chart = line_chart("Loss", "step", "loss", [Series("training", points)])
    assert chart is not None
    assert len(chart.curves[0].line.split()) == 2
    assert chart.summary == "Loss. training: from 3 at 2 to 1 at 4."


def test_no_points_no_chart_and_a_single_point_is_a_dot() -> None:
    assert line_chart("Loss", "step", "loss", [Series("training", [])]) is None
    assert line_chart("Loss", "step", "loss", [Series("training", [(1, math.nan)])]) is None
    chart = line_chart("Loss", "step", "loss", [Series("training", [(5, 2.0)])])
    assert chart is not None
    assert len(chart.curves[0].dots) == 1


def test_long_curves_are_thinned_to_means_that_keep_the_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(10 * MAX_POINTS)]
    assert len(thin(points)) == MAX_POINTS
    assert sum(y for _, y in thin(points)) / MAX_POINTS == pytest.approx(
        sum(y for _, y in points) / len(points)
    )
    chart = line_chart("Loss", "step", "loss", [Series("training", points)])
    assert chart is not None
    assert chart.note == "Each point is the mean of 10 records."
    assert thin(points[:MAX_POINTS]) == points[:MAX_POINTS]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.03125, "0.0312"), (1250000, "1,250,000"), (1e-6, "1e-06"), (-12.5, "-12.5")],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


def test_missing_numbers_are_dashes() -> None:
    assert (percent(None), decimals(None)) == ("–", "–")
    assert percent(0.80952) == "81.0\N{NO-BREAK SPACE}%"
    assert short_percent(0.125) == "12.5\N{NO-BREAK SPACE}%"
    assert decimals(1234.5) == "1,234.50"
