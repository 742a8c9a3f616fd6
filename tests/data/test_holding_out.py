"""Videos kept out of training: whole ones, the same ever after, none of them lost."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.config import DataConfig, ObjectiveConfig, RunConfig
from onereel.data.annotations import Annotations, read_annotations
from onereel.data.holding_out import hold_out
from onereel.errors import ConfigError, DataError


def of_paths(paths: list[str]) -> Annotations:
    numbers = pa.array([str(i) for i in range(len(paths))])
    return Annotations(pa.table({"path": pa.array(paths), "label": numbers}), "list")


def rows(annotations: Annotations) -> list[tuple[str, str]]:
    records = map(annotations.record, range(len(annotations)))
    return [(record.path, str(record.label)) for record in records]


@given(
    st.lists(st.sampled_from([f"{i}.mp4" for i in range(9)]), min_size=2, max_size=30).filter(
        lambda paths: len(set(paths)) > 1
    ),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
)
def test_every_record_is_on_one_side_and_every_video_too(
    paths: list[str], ratio: float, seed: int
) -> None:
    whole = of_paths(paths)
    rest, held = hold_out(whole, ratio, seed)
    assert sorted(rows(rest) + rows(held)) == sorted(rows(whole))
    videos = [{path for path, _ in rows(part)} for part in (rest, held)]
    assert not videos[0] & videos[1]
    assert len(videos[1]) == max(1, round(ratio * len(set(paths))))
    # The order of the list doesn't matter, nor do other videos' records.
    again = hold_out(of_paths(sorted(paths)), ratio, seed)[1]
    assert {path for path, _ in rows(again)} == videos[1]


def test_another_seed_holds_out_other_videos() -> None:
    paths = [f"{i}.mp4" for i in range(40)]
    held = [{path for path, _ in rows(hold_out(of_paths(paths), 0.25, seed)[1])} for seed in (0, 1)]
    assert held[0] != held[1]


def test_messages_still_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,a\n" for i in range(6)))
    for part in hold_out(read_annotations(str(tmp_path / "train.csv")), 0.3, 0):
        for index in range(len(part)):
            number = int(part.record(index).path.removesuffix(".mp4"))
            assert part.where(index).endswith(f"train.csv, line {number + 2}")


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match=r"list has 1 video: .* leaves none to train on"):
        hold_out(of_paths(["a.mp4", "a.mp4"]), 0.5, 0)
    with pytest.raises(ConfigError, match=r"hold_out_ratio is 1.0; allowed: 0 or more, below 1"):
        DataConfig(hold_out_ratio=1.0)
    with pytest.raises(ConfigError, match="budgets are chosen for classifiers"):
        RunConfig(
            data=DataConfig(hold_out_ratio=0.1), objective=ObjectiveConfig(kind="contrastive")
        )
