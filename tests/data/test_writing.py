"""A part of a list, written and read again, has the records that were chosen, and they name the same videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from onereel.data.annotations import Annotations, Origin, Record, read_annotations
from onereel.data.relevancy import SentencePool
from onereel.data.writing import check_list_path, write_records
from onereel.errors import ConfigError

LIST = """path,label,caption,start,end,camera
a b.mp4,x,"says ""no"", loudly",0.00001,12.5,left
deep/c.mp4,007,two
lines,,3,right
/far/d.mp4,x,x,1,,left
"""


def records(annotations: Annotations) -> list[Record]:
    return [annotations.record(index) for index in range(len(annotations))]


@pytest.fixture
def listed(tmp_path: Path) -> Annotations:
    (tmp_path / "list.csv").write_text(LIST.replace("two\nlines", '"two\nlines"'))
    return read_annotations(str(tmp_path / "list.csv"))


@pytest.mark.parametrize("in_store", [False, True])
def test_chosen_records_come_back(listed: Annotations, tmp_path: Path, in_store: bool) -> None:
    out = tmp_path / "new" / "usable.csv"
    write_records(listed, [0, 2], out, in_store=in_store)
    again = records(read_annotations(str(out)))
    root = "" if in_store else str(tmp_path)
    expected = [listed.record(0), replace(listed.record(2), index=1)]
    assert again == [
        replace(one, path=one.path if in_store else str(Path(root, one.path))) for one in expected
    ]
    assert again[0].start == 0.00001


def test_all_captions_of_a_record_come_back(tmp_path: Path) -> None:
    entries = [
        {"path": "a.mp4", "caption": ["one", "two"]},
        {"path": "b\u2028.mp4", "caption": ["three"], "start": 1.5, "end": 2},
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    listed, out = read_annotations(str(tmp_path / "list.json")), tmp_path / "part.jsonl"
    write_records(listed, [0, 1], out, in_store=True)
    assert records(read_annotations(str(out))) == records(listed)
    with pytest.raises(ConfigError, match=r"part\.csv: records with several captions .* \.jsonl"):
        check_list_path(tmp_path / "part.csv", listed)


def test_another_suffix_and_a_part_of_a_test_are_refused(
    listed: Annotations, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"are written as \.csv, not '\.tsv'"):
        write_records(listed, [0], tmp_path / "part.tsv", in_store=True)
    pool = SentencePool.__new__(SentencePool)  # what it holds is not asked
    asked = Annotations(pa.table({"path": ["a"]}), "test.csv", origin=Origin(sentences=pool))
    with pytest.raises(ConfigError, match="a part of it is another test"):
        check_list_path(tmp_path / "part.csv", asked)
