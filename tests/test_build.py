"""What only the wiring knows: ids of videos find their files, and actions of the validation list are classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from onereel import build
from onereel.config import DataConfig, RunConfig
from onereel.video.prepare import prepare

EPIC = "narration_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class,all_noun_classes\n"


def epic_row(video: str, verb: int, noun: int) -> str:
    return f"{video}_0,{video},00:00:00.00,00:00:01.00,do,{verb},{noun},[{noun}]\n"


def config(**data: str) -> RunConfig:
    return RunConfig(data=DataConfig(**data))


def test_ids_find_raw_files_and_files_of_a_store(tmp_path: Path, make_video) -> None:
    (tmp_path / "videos" / "P01").mkdir(parents=True)
    make_video(tmp_path / "videos" / "P01" / "P01_11.mp4", num_frames=12)
    (tmp_path / "train.csv").write_text(EPIC + epic_row("P01_11", 0, 2))
    listing = str(tmp_path / "train.csv")
    prepare(str(tmp_path / "videos"), str(tmp_path / "store"), num_workers=1)
    for settings, name in (
        (config(), "videos/P01/P01_11.mp4"),
        (config(root=str(tmp_path / "videos")), "P01/P01_11.mp4"),
        (config(store=str(tmp_path / "store")), "P01/P01_11.mp4"),
    ):
        annotations = build.build_annotations(settings, listing)
        assert annotations.record(0).path == name
        assert name in build.build_library(settings, annotations)


def test_captions_of_a_video_may_become_a_paragraph(tmp_path: Path) -> None:
    said = {"v_a": {"timestamps": [[0, 1], [1, 2]], "sentences": ["One.", "Two."]}}
    (tmp_path / "val.json").write_text(json.dumps(said))
    settings = config()
    assert len(build.build_annotations(settings, str(tmp_path / "val.json"))) == 2
    settings = replace(settings, data=replace(settings.data, captions="paragraph"))
    annotations = build.build_annotations(settings, str(tmp_path / "val.json"))
    assert [annotations.record(i).caption for i in range(len(annotations))] == ["One. Two."]


def test_actions_of_both_lists_are_classes_in_the_order_of_their_text(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text(EPIC + epic_row("a", 10, 2) + epic_row("b", 2, 30))
    val = tmp_path / "val.csv"
    val.write_text(EPIC + epic_row("a", 2, 3) + epic_row("b", 2, 30))
    annotations = build.build_annotations(config(), str(train))
    assert build.class_names(config(), annotations) == ("10:2", "2:30")
    assert build.class_names(config(val=str(val)), annotations) == ("10:2", "2:3", "2:30")


def test_other_labels_are_those_of_the_training_list(tmp_path: Path) -> None:
    for name, label in (("train.csv", "clap"), ("val.csv", "wave")):
        (tmp_path / name).write_text(f"path,label\na.mp4,{label}\n")
    annotations = build.build_annotations(config(), str(tmp_path / "train.csv"))
    assert build.class_names(config(val=str(tmp_path / "val.csv")), annotations) == ("clap",)
