"""EPIC-KITCHENS-100's own tables as records, by hand and by the published validation list."""

import numpy as np
import pytest

from onereel.data.annotations import Record, read_annotations
from onereel.data.sources.epic import are_actions
from onereel.errors import DataError

HEADER = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
ROWS = (
    "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]\n"
    "P02_03_7,P02,P02_03,00:01:01.700,00:01:00.56,00:01:02.45,93,147,put cup in bin,put,1,bin,36,"
    "\"['bin', 'cup']\",\"[36, 13]\"\n"
)


def write(folder, text, name="EPIC_100_train.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_row_is_an_action_and_a_caption(tmp_path):
    annotations = read_annotations(write(tmp_path, HEADER + ROWS))
    assert [annotations.record(i) for i in range(2)] == [
        Record(0, "P01_11", "0:2", "take plate", 0.0, 1.89),
        Record(1, "P02_03", "1:36", "put cup in bin", 60.56, 62.45),
    ]
    assert annotations.table["all_noun_classes"].to_pylist() == [[2], [36, 13]]
    assert annotations.origin.by_id
    assert annotations.where(1).endswith("EPIC_100_train.csv, line 3")
    assert are_actions(annotations.label_names())
    assert not are_actions(("0:2", "cup"))
    assert not are_actions(())


def test_ids_become_the_names_of_files_wherever_they_lie(tmp_path):
    annotations = read_annotations(write(tmp_path, HEADER + ROWS))
    located = annotations.located(["P02/P02_03.MP4", "P01/videos/P01_11.mp4", "P01/P01_1.MP4"])
    assert [located.record(i).path for i in range(2)] == [
        "P01/videos/P01_11.mp4",
        "P02/P02_03.MP4",
    ]
    assert located.located([]) is located
    assert annotations.located(["P01_11.mp4"]).record(1).path == "P02_03", "missing, and said so"
    with pytest.raises(
        DataError, match=r"a/P01_11\.mp4 and b/P01_11\.mp4 may both be .*data\.root"
    ):
        annotations.located(["a/P01_11.mp4", "b/P01_11.mp4"])
    annotations.located(["a/P07_01.mp4", "b/P07_01.mp4"])  # nobody asks for these


def test_a_csv_of_ones_own_may_have_the_columns_too(tmp_path):
    header, row = HEADER.strip() + ",path\n", ROWS.split("\n")[0] + ",my/clip.mp4\n"
    with pytest.raises(DataError, match="neither a column 'label' nor 'caption'"):
        read_annotations(write(tmp_path, header + row))
    named = header.replace(",narration,", ",caption,")
    assert read_annotations(write(tmp_path, named + row)).record(0).path == "my/clip.mp4"


def test_a_table_without_labels(tmp_path):
    text = "narration_id,video_id,start_timestamp,stop_timestamp\na,P01_11,00:00:01,00:00:02\n"
    assert read_annotations(write(tmp_path, text)).record(0) == Record(0, "P01_11", start=1, end=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[2]\n", "two\n", "line 2: 'two': all_noun_classes must be a list such as"),
        (",take,0,", ",take,x,", "line 2: 'x': verb_class must be a class number"),
        ("00:01:02.45", "00:00:02.45", "line 3: stop must be after start"),
        ("00:01:02.45", "soon", "line 3: 'soon': stop_timestamp must be seconds"),
    ],
)
def test_bad_tables_are_refused_with_file_and_line(tmp_path, old, new, message):
    with pytest.raises(DataError) as error:
        read_annotations(write(tmp_path, HEADER + ROWS.replace(old, new)))
    assert message in str(error.value)


def test_sentences_beside_a_retrieval_list(tmp_path):
    path = write(tmp_path, HEADER + ROWS, "EPIC_100_retrieval_test.csv")
    assert read_annotations(path).origin.sentences is None
    sentences = "narration_id,narration\nP02_03_7,bin the cup\nP01_11_0,take plate\n"
    write(tmp_path, sentences, "EPIC_100_retrieval_test_sentence.csv")
    pool = read_annotations(path).origin.sentences
    assert pool.texts == ("bin the cup", "take plate")
    assert pool.relevancy().tolist() == [[0, 1], [1, 0]]
    with_classes = (
        "narration_id,narration,verb_class,all_noun_classes\nx_1,take a cup,0,[13]\n"
        'y_2,put it down,1,"[36, 13, 13]"\n'
    )
    write(tmp_path, with_classes, "EPIC_100_retrieval_test_sentence.csv")
    assert read_annotations(path).origin.sentences.relevancy().tolist() == [[0.5, 0], [0.25, 1]]
    write(tmp_path, sentences + "Z,none\n", "EPIC_100_retrieval_test_sentence.csv")
    with pytest.raises(DataError, match=r"sentence\.csv, line 4: 'Z': no such narration_id"):
        read_annotations(path)
    write(tmp_path, "id,text\n1,x\n", "EPIC_100_retrieval_test_sentence.csv")
    with pytest.raises(DataError, match="missing: narration, narration_id"):
        read_annotations(path)


def test_published_retrieval_list(real_data):
    annotations = read_annotations(str(real_data / "epic100" / "EPIC_100_retrieval_test.csv"))
    assert len(annotations) == 9668
    assert annotations.record(2) == Record(2, "P01_11", "0:49", "take paper", 49.15, 50.95)
    pool = annotations.origin.sentences
    assert len(pool.texts) == 3842
    assert len(set(pool.texts)) == 3835
    relevancy = pool.relevancy()
    assert relevancy.shape == (9668, 3842)
    exact = relevancy == 1
    assert exact.sum() == 62_535
    assert exact.sum(1).mean() == pytest.approx(6.468, abs=5e-4)
    assert exact.sum(0).mean() == pytest.approx(16.276679, abs=1e-6)
    assert min(exact.sum(0).min(), exact.sum(1).min()) == 1
    assert np.count_nonzero(relevancy) == 4_224_956
    assert (relevancy > 0).mean() == pytest.approx(0.11374392, abs=1e-8)
    assert np.count_nonzero(relevancy) / 9668 == pytest.approx(437.004, abs=1e-3)
