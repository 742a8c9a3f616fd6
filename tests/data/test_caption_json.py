"""Caption files of the usual forms, from small files."""

import json

import pytest

from onereel.data.annotations import Record, paragraphs, read_annotations
from onereel.errors import DataError

MSRVTT = {
    "videos": [
        {"video_id": "video0", "split": "train", "start time": 137.7, "end time": 149.4},
        {"video_id": "video1", "split": "validate"},
        {"video_id": "video2", "split": "train"},
    ],
    "sentences": [
        {"video_id": "video0", "sen_id": 0, "caption": "a car is shown"},
        {"video_id": "video1", "sen_id": 1, "caption": "a man sings"},
        {"video_id": "video0", "sen_id": 2, "caption": "a red  car "},
    ],
}
DIDEMO = [
    {"video": "1@N00_2_3.avi", "description": "a dog runs", "times": [[0, 0], [1, 2], [1, 2]]},
    {"video": "1@N00_2_3.avi", "description": "it sits", "times": [[5, 5], [4, 4]]},
]
ACTIVITYNET = {
    "v_abc": {
        "duration": 82.73,
        "timestamps": [[17.37, 90.0], [0.83, 19.86], [82.73, 82.73]],
        "sentences": ["He falls.", "A man sits. ", "The end."],
    }
}


def read(folder, values, name="captions.json", split=""):
    (folder / name).write_text(json.dumps(values))
    return read_annotations(str(folder / name) + split)


def records(annotations):
    return [annotations.record(i) for i in range(len(annotations))]


def test_msrvtt_has_one_record_per_video_with_all_captions(tmp_path):
    annotations = read(tmp_path, MSRVTT)
    assert records(annotations) == [
        Record(0, "video0", caption="a car is shown", captions=("a car is shown", "a red car")),
        Record(1, "video1", caption="a man sings", captions=("a man sings",)),
    ]
    assert annotations.origin.left_out == {"without text": 1}
    assert annotations.located(["all/video0.mp4"]).record(0).path == "all/video0.mp4"


def test_msrvtt_split(tmp_path):
    annotations = read(tmp_path, MSRVTT, split="#validate")
    assert records(annotations) == [Record(0, "video1", caption="a man sings")]
    with pytest.raises(DataError, match=r"no split 'val'\. Did you mean 'validate'"):
        read(tmp_path, MSRVTT, split="#val")
    with pytest.raises(DataError, match="only MSR-VTT's files name splits"):
        read(tmp_path, DIDEMO, split="#val")


def test_msrvtt_split_by_a_list_of_ids(tmp_path):
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo1\nvideo0\n")
    annotations = read(tmp_path, MSRVTT, split="#MSRVTT_train.9k.csv")
    assert [record.path for record in records(annotations)] == ["video0", "video1"]
    assert annotations.record(0).captions == ("a car is shown", "a red car")
    (tmp_path / "other.csv").write_text("video_id\nvideo1\nvideo7\n")
    with pytest.raises(DataError, match=r"other\.csv: 1 videos are not in .*json: video7"):
        read(tmp_path, MSRVTT, split="#other.csv")
    (tmp_path / "other.csv").write_text("key,sentence,video_id\nret0,a man,video1\n")
    with pytest.raises(DataError, match="columns key, sentence, video_id; give that file alone"):
        read(tmp_path, MSRVTT, split="#other.csv")


def test_msrvtt_test_sentences_are_one_for_each_video(tmp_path):
    path = tmp_path / "MSRVTT_JSFUSION_test.csv"
    path.write_text(
        "key,vid_key,video_id,sentence\n"
        "ret0,msr9770,video9770,a person is connecting something to system\n"
        'ret1,msr9771,video9771,"a little girl, and a  dog"\nret2,msr9772,video9772, \n'
    )
    annotations = read_annotations(str(path))
    assert records(annotations) == [
        Record(0, "video9770", caption="a person is connecting something to system"),
        Record(1, "video9771", caption="a little girl, and a dog"),
    ]
    assert annotations.origin.left_out == {"without text": 1}
    assert annotations.located(["all/video9770.mp4"]).record(0).path == "all/video9770.mp4"


def test_didemo_takes_the_time_that_most_gave(tmp_path):
    annotations = read(tmp_path, DIDEMO)
    assert records(annotations) == [
        Record(0, "1@N00_2_3.avi", caption="a dog runs", start=5.0, end=15.0),
        Record(1, "1@N00_2_3.avi", caption="it sits", start=25.0, end=30.0),
    ]
    assert annotations.located(["1@N00_2_3.mp4"]).record(0).path == "1@N00_2_3.mp4"
    both = annotations.located(["x/1@N00_2_3.mp4", "x/1@N00_2_3.avi"])
    assert both.record(0).path == "x/1@N00_2_3.avi", "the very file wins"


def test_activitynet_is_cut_at_the_duration(tmp_path):
    annotations = read(tmp_path, ACTIVITYNET)
    assert records(annotations) == [
        Record(0, "v_abc", caption="He falls.", start=17.37, end=82.73),
        Record(1, "v_abc", caption="A man sits.", start=0.83, end=19.86),
    ]
    assert annotations.origin.left_out == {"that do not end after they start": 1}


def test_paragraphs_join_the_captions_of_a_video_by_time(tmp_path):
    annotations = paragraphs(read(tmp_path, ACTIVITYNET))
    assert records(annotations) == [Record(0, "v_abc", caption="A man sits. He falls.")]
    assert annotations.origin.by_id
    joined = paragraphs(read(tmp_path, DIDEMO))
    assert records(joined) == [Record(0, "1@N00_2_3.avi", caption="a dog runs it sits")]


def test_lists_that_hold_no_paragraphs_stay_as_they_are(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.mp4,wave\na.mp4,clap\n")
    labels = read_annotations(str(tmp_path / "labels.csv"))
    assert paragraphs(labels) is labels
    clip = {"video_uid": "a", "clip_start": 0, "clip_end": 1, "clip_text": "x y z"}
    question = {"answer": 1, "query": {"clip_text": "cuts"}, "choices": {"0": clip, "1": clip}}
    asked = read(tmp_path, {"0": question})
    assert paragraphs(asked) is asked


def test_plain_records(tmp_path):
    entries = [
        {"path": "a.mp4", "caption": ["one", "two"], "start": 1, "end": 2.5},
        {"path": "b.mp4", "caption": "three"},
    ]
    annotations = read(tmp_path, entries)
    assert records(annotations) == [
        Record(0, "a.mp4", caption="one", start=1.0, end=2.5, captions=("one", "two")),
        Record(1, "b.mp4", caption="three", captions=("three",)),
    ]
    assert annotations.located(["x/a.mp4"]) is annotations, "paths are paths"
    lines = "\n".join(json.dumps(entry) for entry in entries) + "\n"
    (tmp_path / "captions.jsonl").write_text(lines)
    assert records(read_annotations(str(tmp_path / "captions.jsonl"))) == records(annotations)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "not a caption file that is known"),
        ([], "not a caption file that is known"),
        ({"a": 1}, "not a caption file that is known"),
        ([{"file": "a.mp4", "caption": "x"}], "an entry is not as the others (KeyError: 'path')"),
        ([{"path": "a.mp4", "caption": 3}], "an entry is not as the others"),
        ([{"path": "a.mp4", "caption": ""}], "no records"),
        ({"v": {"timestamps": [[0, 1]], "sentences": []}}, "an entry is not as the others"),
    ],
)
def test_other_files_are_refused_with_what_is_allowed(tmp_path, values, message):
    with pytest.raises(DataError) as error:
        read(tmp_path, values)
    assert message in str(error.value)
    assert "captions.json" in str(error.value)


def test_broken_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match=r"x\.json: not JSON"):
        read_annotations(str(tmp_path / "x.json"))
