import csv
import io
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onereel.data.annotations import Annotations, Record, read_annotations
from onereel.errors import DataError
from onereel.video.sources import list_sources

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.sampled_from(' ,"'))
CELL = TEXT.map(str.strip).filter(bool)


def write(folder: Path, text: str, name: str = "train.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


# ------------------------------------------------------------------------------------------------------------- CSV


@given(rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_gives_back_what_was_written(tmp_path, rows):
    text = io.StringIO()
    csv.writer(text).writerows([("label", "path", "camera"), *rows])
    annotations = read_annotations(write(tmp_path, text.getvalue()))
    assert [(r.label, r.path) for r in records(annotations)] == [row[:2] for row in rows]
    assert annotations.table["camera"].to_pylist() == [row[2] for row in rows]


def records(annotations: Annotations) -> list[Record]:
    return [annotations.record(i) for i in range(len(annotations))]


def test_csv_with_captions_and_seconds(tmp_path):
    text = (
        "\ufeffpath, caption ,start,end,note\r\n"
        'a.mp4,"takes a cup, slowly",00:00:01.89,00:01:02.5,x\r\n'
        "\r\n"
        "b.mp4,puts it down,2,,\r\n"
        "c.mp4,leaves,,01:30,\r\n"
        "d.mp4,waits,,,\r\n"
    )
    annotations = read_annotations(write(tmp_path, text))
    assert records(annotations) == [
        Record(0, "a.mp4", None, "takes a cup, slowly", 1.89, 62.5),
        Record(1, "b.mp4", None, "puts it down", 2.0, None),
        Record(2, "c.mp4", None, "leaves", None, 90.0),
        Record(3, "d.mp4", None, "waits", None, None),
    ]
    assert annotations.root == str(tmp_path)
    assert annotations.label_names() == ()
    assert annotations.has_captions
    assert not annotations.has_labels
    assert annotations.where(1).endswith("train.csv, line 4")


def test_a_list_may_say_nothing_but_which_videos(tmp_path):
    """What masked pre-training needs; the message where a class is needed is the run's, not the list's."""
    annotations = read_annotations(write(tmp_path, "path,start\na b.mp4,1\nc.mp4,\n"))
    assert (annotations.record(0).path, annotations.record(0).start) == ("a b.mp4", 1.0)
    assert not annotations.has_labels
    assert not annotations.has_captions


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.txt"])
def test_cells_may_be_separated_by_tabs(tmp_path, name):
    text = 'path\tcaption\tstart\na b.mp4\ttakes a cup, slowly\t1.5\nc.mp4\t"two\nlines"\t\n'
    annotations = read_annotations(write(tmp_path, text, name))
    assert records(annotations) == [
        Record(0, "a b.mp4", None, "takes a cup, slowly", 1.5),
        Record(1, "c.mp4", None, "two\nlines"),
    ]
    assert annotations.where(1).endswith(f"{name}, line 4")
    with pytest.raises(DataError, match=r"line 2: 3 cells, but the header names 2.* holds a tab"):
        read_annotations(write(tmp_path, "path\tlabel\na.mp4\tb\tc\n"))


@pytest.mark.parametrize("header", ["Path;Label;Start", '"path";"label";"start"'])
def test_a_spreadsheets_export_is_read_as_it_is(tmp_path, header):
    text = f"\ufeff{header}\r\na b.mp4;takes, cup;1.5\r\nc.mp4;leaves;\r\n"
    annotations = read_annotations(write(tmp_path, text))
    assert records(annotations) == [
        Record(0, "a b.mp4", "takes, cup", start=1.5),
        Record(1, "c.mp4", "leaves"),
    ]
    with pytest.raises(DataError, match=r"line 2: 3 cells, but the header names 2.*a semicolon"):
        read_annotations(write(tmp_path, "path;label\na.mp4;b;c\n"))


def test_empty_rows_and_columns_of_a_spreadsheet_are_left_out(tmp_path):
    text = "path,label,,,start\n,,,,\na.mp4,x,,,1\n , ,,,\nb.mp4,y,, ,late\n,,,,\n,,,,\n"
    with pytest.raises(DataError, match=r"train\.csv, line 5: 'late'"):
        read_annotations(write(tmp_path, text))
    annotations = read_annotations(write(tmp_path, text.replace("late", "2")))
    assert records(annotations) == [
        Record(0, "a.mp4", "x", start=1.0),
        Record(1, "b.mp4", "y", start=2.0),
    ]
    assert annotations.table.column_names == ["path", "label", "start"]
    assert annotations.where(1).endswith("train.csv, line 5")
    assert len(read_annotations(write(tmp_path, "path,\na.mp4,\n,\n"))) == 1


def test_a_column_without_a_name_that_says_something_is_kept(tmp_path):
    """As the first one of a table that pandas wrote; where nothing else is said, it may be the label."""
    annotations = read_annotations(write(tmp_path, ",path,label,\n0,a,x,note\n1,b,y,\n"))
    assert annotations.table.column_names == ["column_1", "path", "label", "column_4"]
    with pytest.raises(DataError, match=r"neither a column 'label' nor .* among path, column_2"):
        read_annotations(write(tmp_path, "path,\na.mp4,x\n"))


def test_columns_that_are_only_kept_keep_their_capitals(tmp_path):
    annotations = read_annotations(write(tmp_path, "path,label,Path,Camera\na,x,y,z\n"))
    assert annotations.table.column_names == ["path", "label", "Path", "Camera"]


def test_columns_that_look_like_seconds_are_named(tmp_path, caplog):
    """A record's seconds that are passed over would make it one about the whole video."""
    read_annotations(write(tmp_path, "path,label,start,end,end_frame\na,x,0,1,9\n"))
    assert not caplog.text
    read_annotations(write(tmp_path, "path,label,start_time,stop\na,x,0,1\n"))
    assert "columns start_time, stop are not read as seconds" in caplog.text


@pytest.mark.parametrize("header", ["path label", "path caption start", "Path  num_frames  Label"])
@pytest.mark.parametrize("name", ["train.csv", "train.txt"])
def test_a_header_without_commas_is_no_record(tmp_path, header, name):
    with pytest.raises(DataError, match=rf"line 1: '{header}' names columns; .*by commas, tabs or"):
        read_annotations(write(tmp_path, f"{header}\na.mp4 1\n", name))
    assert records(read_annotations(write(tmp_path, "path 1\npath.mp4 x\n"))) == [
        Record(0, "path", "1"),
        Record(1, "path.mp4", "x"),
    ]


def test_line_numbers_count_line_breaks_inside_quotes(tmp_path):
    text = 'path,caption,start,end\na.mp4,"two\nlines",0,1\nb.mp4,x,5,5\n'
    with pytest.raises(DataError, match=r"train\.csv, line 4: end must be after start"):
        read_annotations(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", "no records"),
        ("file,label\na.mp4,x\n", "line 1: no column 'path' among file, label"),
        ("paths,label\na.mp4,x\n", "If 'paths' is it, name it 'path'"),
        ("path,lable\na.mp4,x\n", "If 'lable' is it, name it 'label'"),
        ("path,text\na.mp4,x\n", "neither a column 'label' nor 'caption'"),
        ("path,label,label\na.mp4,x,y\n", "'label' occurs twice"),
        ("path,label\na.mp4,x\nb.mp4,y,z\n", "line 3: 3 cells, but the header names 2"),
        ("path,label\na.mp4,x\n,y\n", "line 3: the path is empty"),
        ("path,label\na.mp4,\n", "line 2: the label is empty"),
        ("path,caption,start,end\na,x,one,2\n", "line 2: 'one': start must be seconds"),
        ("path,caption,start,end\na,x,-1,2\n", "line 2: '-1': start must be seconds"),
        ("path,caption,start,end\na,x,1,nan\n", "'nan': end must be seconds"),
        ("path,caption,start,end\na,x,0,1\nb,x,2,1.5\n", "line 3: end must be after start"),
    ],
)
def test_bad_csv_is_refused_with_file_line_and_remedy(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        read_annotations(write(tmp_path, text))
    assert message in str(error.value)
    assert "train.csv" in str(error.value)


def test_text_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes("path,label\ncafé.mp4,x\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.csv: not UTF-8 text"):
        read_annotations(str(path))
    path.write_bytes("path\tlabel\na.mp4\tx\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"train\.csv: UTF-16 text; save it as UTF-8"):
        read_annotations(str(path))


def test_missing_source_says_what_is_allowed():
    with pytest.raises(DataError, match=r"no such file or folder; give a CSV with path,label"):
        read_annotations("nowhere.csv")


# ----------------------------------------------------------------------------------------------------------- lists


def test_list_paths_may_hold_spaces_and_commas(tmp_path):
    text = "abseiling/my video, part 2.mp4 0\n\n  b 12.mp4\t11 \n"
    for name in ("train.txt", "train.csv"):
        annotations = read_annotations(write(tmp_path, text, name))
        assert [(r.path, r.label) for r in records(annotations)] == [
            ("abseiling/my video, part 2.mp4", "0"),
            ("b 12.mp4", "11"),
        ]
        assert annotations.where(1).endswith(f"{name}, line 3")


def test_list_with_frame_counts_keeps_them_apart(tmp_path):
    annotations = read_annotations(write(tmp_path, "a b.mp4 300 7\nc.webm 250 12\n", "k400.txt"))
    assert [(r.path, r.label) for r in records(annotations)] == [("a b.mp4", "7"), ("c.webm", "12")]
    assert annotations.table["num_frames"].to_pylist() == [300, 250]


def test_a_number_is_part_of_the_path_unless_every_line_has_one(tmp_path):
    annotations = read_annotations(write(tmp_path, "take.mp4 3 7\nother take 4 8\n", "list.txt"))
    assert [r.path for r in records(annotations)] == ["take.mp4 3", "other take 4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.mp4 1\nb.mp4\n", "line 2: 'b.mp4' has no label"), ("\n \n", "no records")],
)
def test_bad_lists_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_annotations(write(tmp_path, text, "list.txt"))


# --------------------------------------------------------------------------------------------------------- folders


def test_folder_per_class(tmp_path):
    for name in (
        "jump/b.mp4",
        "jump/deep/a.AVI",
        "climb a tree/c.mkv",
        "jump/notes.txt",
        ".x/d.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    annotations = read_annotations(str(tmp_path))
    assert [(r.path, r.label) for r in records(annotations)] == [
        ("climb a tree/c.mkv", "climb a tree"),
        ("jump/b.mp4", "jump"),
        ("jump/deep/a.AVI", "jump"),
    ]
    assert annotations.root == str(tmp_path)
    (tmp_path / "stray.mp4").touch()
    with pytest.raises(DataError, match=r"stray\.mp4: a video beside the class folders"):
        read_annotations(str(tmp_path))


def test_a_folder_per_class_has_the_videos_that_prepare_takes(tmp_path):
    for name in ("a/1.mp4", "a b/2.mp4", "a/deep/3.mp4", "a/.hidden/4.mp4", "a/.5.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "6.mp4").touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    found = [record.path for record in records(read_annotations(str(tmp_path / "in")))]
    assert found == ["a/1.mp4", "a/deep/3.mp4", "a b/2.mp4", "linked/6.mp4"]
    assert sorted(found) == sorted(source.name for source in list_sources(tmp_path / "in")[1])


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/a.mp4", "wb"):
        pass
    with pytest.raises(
        DataError, match=r"the name of caf\\udce9/a\.mp4 is not valid UTF-8; rename it"
    ):
        read_annotations(str(tmp_path))


def test_folder_without_videos_is_refused(tmp_path):
    (tmp_path / "jump").mkdir()
    with pytest.raises(DataError, match="no video in any class folder"):
        read_annotations(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------- labels


def test_label_names_sort_by_value_if_all_are_integers(annotations_of):
    assert annotations_of("abc", ["10", "9", "-1"]).label_names() == ("-1", "9", "10")
    assert annotations_of("abc", ["10", "9", "x"]).label_names() == ("10", "9", "x")


def test_label_that_training_lacks_is_named_with_its_line(tmp_path):
    annotations = read_annotations(write(tmp_path, "path,label\na,clap\nb,claps\n", "val.csv"))
    with pytest.raises(DataError) as error:
        annotations.check_labels(("clap", "wave"))
    for part in ("val.csv, line 3", "'claps'", "Did you mean 'clap'", "Known: clap, wave"):
        assert part in str(error.value)


def test_labels_are_checked_in_one_pass_over_the_known(annotations_of):
    class Names(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    names = Names(map(str, range(100)))
    annotations_of("a" * 100, list(names)).check_labels(names)
    assert names.passes <= 2


def test_labels_are_required_where_classes_are_wanted(annotations_of):
    with pytest.raises(DataError, match="no labels; add a column 'label'"):
        annotations_of(["a"]).check_labels(("x",))


def test_of_videos():
    annotations = Annotations.of_videos(["a.mp4", "b.mp4"])
    assert annotations.record(1) == Record(1, "b.mp4")


def test_many_rows_stay_cheap(tmp_path):
    text = "path,label\n" + "".join(f"folder/video{i:07d}.mp4,{i % 400}\n" for i in range(200_000))
    source = write(tmp_path, text)
    start = time.process_time()
    annotations = read_annotations(source)
    assert len(annotations.label_names()) == 400
    assert time.process_time() - start < 5
    assert annotations.table.nbytes < 1.5 * len(text)
    assert annotations.record(199_999) == Record(199_999, "folder/video0199999.mp4", "399")


def test_real_lists(real_data):
    annotations = read_annotations(str(real_data / "actions5" / "train.csv"))
    assert annotations.label_names() == ("clap", "swipe_left", "swipe_right", "throw", "wave")
    folder = read_annotations(str(real_data / "actions5"))
    assert folder.label_names() == annotations.label_names()
    assert {r.path for r in records(annotations)} < {r.path for r in records(folder)}
    captions = read_annotations(str(real_data / "captions24" / "captions.csv"))
    assert len(captions) == 24
    assert captions.record(0).caption == "beginning tech show"
