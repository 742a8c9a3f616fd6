"""Prediction on real rooms: tiny videos, a tiny model; broken files among good ones; the files written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onereel.config import AugmentConfig
from onereel.data.annotations import read_annotations
from onereel.data.augment import BatchAugment
from onereel.data.dataset import ClipDataset
from onereel.data.loader import ClipLoader
from onereel.errors import ConfigError
from onereel.evaluation.classification import evaluate_classification, top_predictions
from onereel.evaluation.predict import exit_code, predict, write_predictions
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.tokens.scored import random_tokens
from onereel.types import Prediction, Quarantined
from onereel.video.library import RawVideos

NAMES = ("clap", "throw", "wave")


@pytest.fixture(scope="module")
def model() -> VideoModel:
    torch.manual_seed(0)
    encoder = create_encoder("vit_tiny_patch16_224", num_frames=4, size=32, tubelet_size=2)
    head = ClassificationHead(encoder.embed_dim, len(NAMES), encoder.pool)
    torch.nn.init.normal_(head.fc.weight)
    return VideoModel(encoder, head, random_tokens(0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    path = tmp_path_factory.mktemp("videos")
    make_video(path / "a.mp4", num_frames=12)
    make_video(path / "b.mp4", num_frames=20, height=64, width=64)
    (path / "broken.mp4").write_bytes(b"this is no video")
    return path


def answers_for(model: VideoModel, folder: Path, videos: list[str], **options: object) -> list:
    library = RawVideos(str(folder), cache=str(folder / "cache"))
    answers = predict(model, library, videos, class_names=NAMES, num_frames=4, size=32, **options)
    return list(answers)


def test_a_broken_video_is_answered_and_the_others_go_on(model: VideoModel, folder: Path) -> None:
    answers = answers_for(model, folder, ["a.mp4", "broken.mp4", "absent.mp4", "b.mp4"], top_k=2)
    assert [type(a) for a in answers] == [Prediction, Quarantined, Quarantined, Prediction]
    assert answers[1].path.endswith("broken.mp4")
    assert exit_code(answers) == 1
    assert exit_code(answers[:1]) == 0
    first = answers[0]
    assert first.video == "a.mp4"
    assert len(first.labels) == 2
    assert first.probabilities[0] >= first.probabilities[1]
    assert sum(answers_for(model, folder, ["a.mp4"], top_k=9)[0].probabilities) == pytest.approx(1)


def test_an_answer_does_not_depend_on_the_other_videos_batches_or_runs(
    model: VideoModel, folder: Path
) -> None:
    views = {"num_clips": 2, "num_crops": 3}
    together = answers_for(model, folder, ["a.mp4", "b.mp4"], **views)
    again = answers_for(model, folder, ["a.mp4", "b.mp4"], **views)
    assert together == again
    small = answers_for(model, folder, ["a.mp4", "b.mp4"], batch_size=1, **views)
    for one, other in zip(together, small):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_answers_of_workers_are_those_of_one_process(model: VideoModel, folder: Path) -> None:
    videos = ["b.mp4", "broken.mp4", "a.mp4", "absent.mp4", "b.mp4"]
    options = {"num_clips": 2, "num_crops": 3, "batch_size": 4}
    alone = answers_for(model, folder, videos, **options)
    assert [type(one) for one in alone] == [
        *(Prediction, Quarantined, Prediction, Quarantined, Prediction)
    ]
    assert answers_for(model, folder, videos, num_workers=2, **options) == alone


def test_bf16_is_close_and_another_precision_is_refused(model: VideoModel, folder: Path) -> None:
    exact = answers_for(model, folder, ["a.mp4"], top_k=3)[0]
    half = answers_for(model, folder, ["a.mp4"], top_k=3, precision="bf16")[0]
    assert half.labels == exact.labels
    assert half.probabilities == pytest.approx(exact.probabilities, abs=0.05)
    assert half.probabilities != exact.probabilities
    with pytest.raises(ConfigError, match="allowed: auto, float32, bf16"):
        answers_for(model, folder, ["a.mp4"], precision="fp16")


def test_equals_evaluation_of_the_same_videos(
    model: VideoModel, folder: Path, tmp_path: Path
) -> None:
    listing = tmp_path / "val.csv"
    listing.write_text("path,label\na.mp4,wave\nb.mp4,clap\n")
    dataset = ClipDataset(
        read_annotations(str(listing), str(folder)),
        RawVideos(str(folder), cache=str(folder / "cache")),
        num_frames=4,
        size=32,
        crop="center",
        seed=0,
        training=False,
        label_names=NAMES,
        num_clips=2,
        num_crops=3,
    )
    loader = ClipLoader(dataset, batch_size=4, seed=0, shuffle=False, drop_last=False, strict=True)
    result = evaluate_classification(
        model,
        loader,
        BatchAugment(AugmentConfig(), len(NAMES), 0, training=False),
        class_names=NAMES,
        device="cpu",
        num_views=dataset.num_views,
    )
    assert (result.num_videos, result.num_views, result.kept_ratio) == (2, 6, 0.5)
    assert result.macs_per_view == model.macs((4,))
    direct = answers_for(model, folder, ["a.mp4", "b.mp4"], num_clips=2, num_crops=3)
    for one, row in zip(direct, result.scores.probabilities):
        other = top_predictions("", row, NAMES, 5)
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


ANSWERS = [
    Prediction("a, b.mp4", ("wave", "clap"), (0.75, 0.25)),
    Quarantined("c.mp4", "truncated", 7),
]


def test_json_file(tmp_path: Path) -> None:
    write_predictions(ANSWERS, tmp_path / "new" / "out.JSON")
    good, bad = json.loads((tmp_path / "new" / "out.JSON").read_text())
    assert good == {
        "video": "a, b.mp4",
        "labels": ["wave", "clap"],
        "probabilities": [0.75, 0.25],
        "error": None,
    }
    assert (bad["video"], bad["labels"], bad["error"]) == ("c.mp4", [], "frame 7: truncated")


def test_csv_file(tmp_path: Path) -> None:
    write_predictions(ANSWERS, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        good, bad = csv.DictReader(file)
    assert (good["video"], good["label_1"], good["probability_2"]) == ("a, b.mp4", "wave", "0.25")
    assert good["error"] == ""
    assert (bad["label_1"], bad["error"]) == ("", "frame 7: truncated")
    write_predictions([], tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "video,error\n"


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.json or \.csv, not '\.txt'"):
        write_predictions(ANSWERS, tmp_path / "out.txt")
    assert not list(tmp_path.iterdir())
