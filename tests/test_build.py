"""What only the wiring knows: ids of videos find their files, and actions of the validation list are classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onereel import build
from onereel.build.features import _clip_key
from onereel.build.selection import check_given
from onereel.config import DataConfig, RunConfig, TokensConfig
from onereel.data.annotations import Annotations
from onereel.data.dataset import ClipDataset
from onereel.errors import ConfigError, DataError
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


class CountingLibrary:
    """Has the videos whose names begin with "there", and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __contains__(self, video: str) -> bool:
        self.asked += 1
        return video.startswith("there")


@pytest.mark.parametrize(
    ("there", "missing", "ratio", "good"),
    [
        (99, 1, 0.01, True),
        (20, 1, 0.01, True),  # one may be missing of any list, as when they are read
        (20, 1, 0.0, False),
        (98, 2, 0.01, False),
        (90, 10, 0.2, True),
        (20_000, 0, 0.01, True),
        (19_900, 100, 0.01, True),
        (19_000, 1000, 0.01, False),
    ],
)
def test_a_training_list_may_lack_as_many_videos_as_may_be_broken(
    there: int, missing: int, ratio: float, good: bool
) -> None:
    paths = [f"there{i}" for i in range(there)] + [f"gone{i}" for i in range(missing)]
    library: Any = CountingLibrary()
    dataset = ClipDataset(
        Annotations.of_videos(paths),
        library,
        num_frames=2,
        size=16,
        seed=0,
        training=True,
        label_names=None,
    )
    if good:
        build.check_mostly_present(dataset, ratio)
        assert library.asked <= 2 * build.data.NUM_PROBED
        return
    with pytest.raises(DataError, match=f"{missing} of {len(paths)} .* data.max_bad_ratio"):
        build.check_mostly_present(dataset, ratio)


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


@pytest.mark.parametrize(
    ("before", "given", "message"),
    [
        ({}, {"kind": "redundancy", "threshold": 0.3}, "add --tokens.budget threshold"),
        ({}, {"kind": "tube", "threshold": 0.3}, "no threshold; leave it out"),
        ({"kind": "run-length"}, {"kind": "random", "threshold": 0.3}, "no threshold; leave it"),
        ({"kind": "random", "token_budget": 64}, {"keep_ratio": 0.3}, "counts in its place"),
        ({}, {"kind": "random", "token_budget": 64, "keep_ratio": 0.3}, "the one or the other"),
        (
            {},
            {"keep_ratio": 0.3},
            "keeps every token; add a selector, such as --tokens.kind random",
        ),
        ({}, {"token_budget": 64}, "--tokens.kind random, or leave it out"),
        ({}, {"threshold": 0.3}, "--tokens.kind run-length, or leave it out"),
    ],
)
def test_a_setting_that_was_given_must_count(
    before: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    tokens = TokensConfig(**before)
    with pytest.raises(ConfigError, match=message):
        check_given(replace(tokens, **given), tokens)


@pytest.mark.parametrize(
    ("before", "given"),
    [
        ({"kind": "run-length", "threshold": 0.3}, {"kind": "random", "keep_ratio": 0.3}),
        ({"kind": "run-length"}, {"threshold": 0.3}),
        ({"kind": "redundancy", "keep_ratio": 0.3}, {"token_budget": 64}),
        ({"kind": "redundancy"}, {"budget": "threshold", "threshold": 0.3}),
        ({"kind": "random", "token_budget": 64}, {"keep_ratio": 0.3, "token_budget": 0}),
        ({"kind": "run-length", "threshold": 0.3}, {"kind": "all", "keep_ratio": 0.3}),
    ],
)
def test_what_is_left_over_from_another_selector_does_no_harm(
    before: dict[str, Any], given: dict[str, Any]
) -> None:
    tokens = TokensConfig(**before)
    check_given(replace(tokens, **given), tokens)


def test_frame_selection_must_have_frames_to_choose_from() -> None:
    settings = RunConfig(tokens=TokensConfig(frame_selection=1.05))
    with pytest.raises(ConfigError, match=r"1\.05, which adds no frame .* 8 tubelets.* 1\.12 or"):
        build.build_picker(settings, training=True)
    build.build_picker(settings, training=False)  # other frames than those of training
    for enough in (1.12, 1.125, 1.5):
        settings = RunConfig(tokens=TokensConfig(frame_selection=enough))
        assert build.build_picker(settings, training=True) is None


def test_features_depend_on_the_chunks_of_the_lists_videos_alone(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(videos / name, num_frames=12)

    def key(*paths: str) -> str:
        prepare(str(videos), str(store), num_workers=1, progress=False)
        annotations = Annotations.of_videos(paths)
        return str(_clip_key(config(store=str(store)), annotations, torch.device("cpu"))["store"])

    both, alone, linked = key("a.mp4", "b.mp4"), key("a.mp4"), key("a.mp4", "elsewhere.mp4")
    assert alone != both == linked  # what has no such name may be a link
    assert alone.startswith("1 chunks, ")
    assert key("./a.mp4") == key(str(videos / "a.mp4")) == key("a.mp4", "a.mp4") == alone
    make_video(videos / "another.mp4", num_frames=12)
    make_video(videos / "b.mp4", num_frames=15)
    assert key("a.mp4") == alone
    assert key("a.mp4", "b.mp4") != both
    assert key("a.mp4", "elsewhere.mp4") != linked
    make_video(videos / "a.mp4", num_frames=15)
    assert key("a.mp4") != alone
