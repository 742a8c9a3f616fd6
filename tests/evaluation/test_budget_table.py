"""The table of budgets: nothing beats its front, what is picked fits, and every accuracy is of the same records."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.errors import ConfigError, DataError
from onereel.evaluation.budget_table import (
    BudgetRow,
    BudgetTable,
    Setting,
    Wanted,
    differences,
    percentile,
    score,
)


def make_row(
    accuracy: float = 0.5, video_ms: float = 10.0, token_budget: int = 8, correct: str = "1010"
) -> BudgetRow:
    return BudgetRow(
        num_frames=4,
        size=32,
        token_budget=token_budget,
        num_tokens=16,
        accuracy=accuracy,
        standard_error=0.1,
        random_accuracy=0.25,
        macs_per_clip=1000,
        clip_ms=1.0,
        clip_p95_ms=2.0,
        video_ms=video_ms,
        video_p95_ms=2 * video_ms,
        clips_per_second=100.0,
        peak_memory_bytes=None,
        correct=correct,
        random_correct=correct,
    )


def table_of(*rows: BudgetRow, index_ms: float = 3.0) -> BudgetTable:
    return BudgetTable(
        conditions={"weights": "step 8", "num_clips": 2, "num_crops": 3},
        versions={"torch": "2"},
        date="2025-01-01",
        own=Setting(4, 32, 16),
        index_ms=index_ms,
        left_out={"3": "a.mp4: cut short"},
        caveats=("a caveat",),
        complete=True,
        rows=rows,
    )


ROWS = st.lists(
    st.builds(
        make_row,
        accuracy=st.integers(0, 10).map(lambda n: n / 10),
        video_ms=st.integers(1, 20).map(float),
        token_budget=st.integers(1, 16),
    ),
    min_size=1,
    max_size=12,
)


@given(ROWS)
def test_nothing_beats_the_front_and_the_front_beats_all_else(rows: list[BudgetRow]) -> None:
    front = table_of(*rows).front()
    assert [row.video_ms for row in front] == sorted(row.video_ms for row in front)
    for row in rows:
        assert any(f.video_ms <= row.video_ms and f.accuracy >= row.accuracy for f in front)
    for one in front:
        assert not any(r.video_ms <= one.video_ms and r.accuracy > one.accuracy for r in rows)


@given(ROWS, st.integers(1, 25), st.integers(1, 20), st.integers(1, 10))
def test_what_is_picked_fits_and_nothing_that_fits_is_better(
    rows: list[BudgetRow], limit: int, budget: int, tenths: int
) -> None:
    table = table_of(*rows)
    fits = {
        Wanted(latency_ms=limit): [r for r in rows if r.video_ms + 3.0 <= limit],
        Wanted(budget=budget): [r for r in rows if r.token_budget <= budget],
        Wanted(target_accuracy=tenths / 10): [r for r in rows if r.accuracy >= tenths / 10],
    }
    for wanted, good in fits.items():
        if not good:
            with pytest.raises(ConfigError, match="nothing in the table"):
                table.pick(wanted)
            continue
        row = table.pick(wanted)
        assert row in good
        if wanted.target_accuracy is None:
            assert row.accuracy == max(r.accuracy for r in good)
        else:
            assert row.video_ms == min(r.video_ms for r in good)


def test_errors_say_what_there_is() -> None:
    table = table_of(make_row(0.5, 10.0, 4), make_row(0.75, 20.0, 8))
    with pytest.raises(ConfigError, match=r"within 5 ms; the fastest there is takes 13\.0 ms"):
        table.pick(Wanted(latency_ms=5))
    with pytest.raises(ConfigError, match=r"reaches 90\.0%; the most accurate there is: .* 75\.0%"):
        table.pick(Wanted(target_accuracy=0.9))
    with pytest.raises(ConfigError, match=r"3 tokens or fewer; .*--budget 4 or more"):
        table.pick(Wanted(budget=3))
    with pytest.raises(ConfigError, match="exactly 5 tokens; measured are 4, 8"):
        table.with_exactly(5)
    assert table.with_exactly(8).accuracy == 0.75


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({}, "given are none; allowed: exactly one"),
        ({"budget": 4, "latency_ms": 5.0}, "given are budget, latency_ms"),
        ({"latency_ms": -1.0}, "latency_ms is -1.0; allowed: above 0"),
        ({"latency_ms": math.nan}, "allowed: above 0"),
        ({"target_accuracy": 90.0}, r"up to 1 \(0.9 is 90 %\)"),
    ],
)
def test_a_wish_is_exactly_one_number_that_can_be_met(wish: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Wanted(**wish)  # type: ignore[arg-type]


def test_a_record_that_one_row_could_not_read_counts_for_none() -> None:
    whole, broken = (
        make_row(correct="1110"),
        replace(make_row(correct="1-10"), random_correct="0-11"),
    )
    alone = score([whole])[0]
    assert (alone.accuracy, alone.standard_error) == (0.75, math.sqrt(0.75 * 0.25 / 4))
    both = score([whole, broken])
    assert [row.accuracy for row in both] == [2 / 3, 2 / 3]
    assert both[1].random_accuracy == 2 / 3
    assert both[0].correct == "1110"  # what was found stays, whatever else is measured later
    with pytest.raises(DataError, match="no video of the list"):
        score([make_row(correct="1-"), make_row(correct="-1")])


def test_a_table_goes_through_its_file_unchanged(tmp_path: Path) -> None:
    table = table_of(make_row(1 / 3, 1 / 7))
    table.save(tmp_path / "budgets.json")
    assert BudgetTable.load(tmp_path / "budgets.json") == table
    assert table.num_videos == 3
    assert table.latency_ms(table.rows[0]) == 3 + 1 / 7


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"a": 1}]}', '{"rows": 3}'])
def test_another_file_is_refused_with_the_remedy(text: str, tmp_path: Path) -> None:
    (tmp_path / "budgets.json").write_text(text)
    with pytest.raises(DataError, match=r"is no table of budgets.*--overwrite"):
        BudgetTable.load(tmp_path / "budgets.json")


def test_differences_are_named() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ["b was 2, is 3"]
    assert differences({"a": 1}, {"a": 1}) == []
    assert differences({"a": {"b": 1, "c": {"d": 2}}}, {"a": {"b": 1, "c": {"d": 3}}}) == [
        "a.c.d was 2, is 3"
    ]


@given(st.lists(st.integers(0, 99), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[int], hundredths: int
) -> None:
    found = percentile(values, hundredths / 100)
    assert found in values
    assert sum(v <= found for v in values) >= hundredths / 100 * len(values) - 1e-9
    assert all(
        sum(v <= s for v in values) < hundredths / 100 * len(values) for s in values if s < found
    )
