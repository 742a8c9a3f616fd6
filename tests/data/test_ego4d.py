"""Ego4D's narrations, EgoVLP's and LaViLa's lists, from small files in their forms."""

import json
import pickle
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.data.annotations import read_annotations
from onereel.data.sources.ego4d import SCALE_SECONDS, narration_spans
from onereel.errors import DataError


def narration(time: float, text: str) -> dict[str, object]:
    return {"timestamp_sec": time, "timestamp_frame": round(time * 30), "narration_text": text}


@given(st.lists(st.floats(0, 4000, width=32), min_size=2, max_size=20).map(sorted))
def test_spans_are_centred_and_as_long_as_narrations_are_dense(times):
    spans = list(narration_spans(times))
    mean = sum(b - a for a, b in pairwise(times)) / (len(times) - 1)
    length = mean / SCALE_SECONDS if mean else 1.0
    for time, (start, end) in zip(times, spans):
        assert end - time == pytest.approx(length / 2, abs=1e-6)
        assert start == pytest.approx(max(0.0, time - length / 2), abs=1e-6)


def test_a_moment_alone_lasts_a_second():
    assert list(narration_spans([5.0])) == [(4.5, 5.5)]
    assert list(narration_spans([0.2])) == [(0.0, 0.7)]


def test_narration_file(tmp_path):
    first = [
        narration(9.8, "#C C picks a cup"),
        narration(0.0, "#C C opens a drawer "),
        narration(4.9, "#unsure C moves something"),
        narration(14.7, "#C C"),
        narration(19.6, " "),
        {"narration_text": "#C C has no time"},
    ]
    second = [narration(2.0, "#O A man  talks")]
    videos = {
        "uid-1": {
            "status": "complete",
            "narration_pass_1": {"narrations": first, "summaries": []},
            "narration_pass_2": {"narrations": second, "summaries": []},
        },
        "uid-2": {"status": "redacted"},
    }
    (tmp_path / "narration.json").write_text(json.dumps(videos))
    annotations = read_annotations(str(tmp_path / "narration.json"))
    assert annotations.table.to_pylist() == [
        {"path": "uid-1", "caption": "#C C opens a drawer", "start": 0.0, "end": 0.5},
        {"path": "uid-1", "caption": "#C C picks a cup", "start": 9.3, "end": 10.3},
        {"path": "uid-1", "caption": "#O A man talks", "start": 1.5, "end": 2.5},
    ]
    assert annotations.origin.left_out == {
        "without a time": 1,
        "marked #unsure": 1,
        "of fewer than 3 words": 1,
        "without text": 1,
    }
    located = annotations.located(["v2/full_scale/uid-1.mp4"])
    assert located.record(0).path == "v2/full_scale/uid-1.mp4"
    assert located.origin.left_out == annotations.origin.left_out


def test_egoclip_table(tmp_path):
    header = "clip_idx\tvideo_uid\tvideo_dur\tnarration_time\tclip_start\tclip_end\tclip_text\ttag_verb\n"
    rows = (
        '0\tuid-1\t128.0\t3.3445\t2.967651\t3.721266\t#C C picks "a bag, of clothes\t[93]\n'
        "1\tuid-1\t128.0\t0.1\t-0.3\t0.5\t#C C waits\t[1]\n"
        "2\tuid-2\t128.0\n"
        "3\tuid-2\t128.0\t9\t9.0\t9.0\t#C C stands\t[1]\n"
    )
    (tmp_path / "egoclip.csv").write_text(header + rows)
    annotations = read_annotations(str(tmp_path / "egoclip.csv"))
    assert annotations.table.select(["path", "caption", "start", "end"]).to_pylist() == [
        {
            "path": "uid-1",
            "caption": '#C C picks "a bag, of clothes',
            "start": 2.967651,
            "end": 3.721266,
        },
        {"path": "uid-1", "caption": "#C C waits", "start": 0.0, "end": 0.5},
    ]
    assert annotations.origin.left_out == {
        "that are not lines of the table": 1,
        "without text, or that do not end after they start": 1,
    }


def test_a_damaged_egoclip_table_is_named(tmp_path):
    path = tmp_path / "egoclip.csv"
    path.write_text("video_uid\tclip_start\tclip_end\tclip_text\nuid\tsoon\t2.0\t#C C waits\n")
    with pytest.raises(DataError, match=r"egoclip\.csv: not a table of EgoClip: .*soon"):
        read_annotations(str(path))


def test_lavila_pickle_with_several_captions(tmp_path):
    path = tmp_path / "ego4d_train.rephraser.pkl"
    entries = [
        ("uid-1", -0.25, 1.0, ["#C C opens a drawer", "#C C pulls a drawer"], [0.5, 0.75]),
        ("uid-2", 3.0, 4.0, "#C C waits"),
        ("uid-2", 5.0, 4.0, "#C C waits"),
    ]
    path.write_bytes(pickle.dumps(entries))
    annotations = read_annotations(str(path))
    assert annotations.origin.left_out == {"that do not end after they start": 1}
    record = annotations.record(0)
    assert (record.path, record.start, record.end) == ("uid-1", 0.0, 1.0)
    assert record.caption == "#C C opens a drawer"
    assert record.captions == ("#C C opens a drawer", "#C C pulls a drawer")
    assert annotations.record(1).captions == ("#C C waits",)


@pytest.mark.parametrize("value", [[("uid", 0, 1, date(2020, 1, 1))], 7, [("uid", 1)], [[{}]]])
def test_other_pickles_are_refused_and_run_nothing(tmp_path, value):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=r"x\.pkl: not a pickled list of \(video uid, start"):
        read_annotations(str(path))
    path.write_bytes(b"no pickle")
    with pytest.raises(DataError, match=r"x\.pkl: not a pickled list"):
        read_annotations(str(path))
