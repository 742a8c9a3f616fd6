"""Clips that travel as decoded and are finished on the device: the same records, and the same run but for rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import onereel
from onereel import build
from onereel.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.data.yuv import to_rgb
from onereel.errors import ConfigError
from onereel.training import World
from onereel.types import Batch, YuvClips

CPU = World(0, 1, torch.device("cpu"))
RUN = RunConfig(
    seed=3,
    data=DataConfig(num_frames=4, size=32, num_workers=0, max_bad_ratio=0.5, crop_scale=(0.5, 1.0)),
    augment=AugmentConfig(hflip_prob=0.5),
    tokens=TokensConfig(kind="run-length", threshold=0.3),
    model=ModelConfig(name="vit_micro_patch16_32"),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(
        epochs=2, batch_size_per_device=4, log_every=1, save_every=1, device="cpu", num_threads=1
    ),
    eval=EvalConfig(num_clips=2, num_crops=3),
)


def on_device(config: RunConfig) -> RunConfig:
    return replace(config, data=replace(config.data, scaling="device"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Eight videos of two classes and two sizes, one of them broken, in train.csv; the good ones in val.csv."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for i in range(8):
        make_video(folder / f"{i}.mp4", num_frames=10 + i, height=48 + 16 * (i % 2), width=80)
        rows.append(f"{i}.mp4,{'ab'[i // 2 % 2]}\n")
    (folder / "4.mp4").write_bytes(b"no video")
    (folder / "train.csv").write_text("path,label\n" + "".join(rows))
    (folder / "val.csv").write_text("path,label\n" + "".join(rows[:4]))
    return folder


def train_batches(config: RunConfig, videos: Path, run: Path) -> list[Batch]:
    annotations = build.build_annotations(config, str(videos / "train.csv"))
    dataset = build.build_dataset(config, annotations, ("a", "b"), training=True)
    return list(build.build_train_loader(config, dataset, world=CPU, run=run).batches(epoch=1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", [1, 2])
def test_batches_hold_the_same_clips(
    videos: Path, tmp_path: Path, repeats: int, workers: int
) -> None:
    config = replace(RUN, data=replace(RUN.data, repeats=repeats, num_workers=workers))
    given = train_batches(config, videos, tmp_path)
    coded = train_batches(on_device(config), videos, tmp_path)
    for a, b in zip(given, coded, strict=True):
        assert a.keys == b.keys
        assert a.num_failed == b.num_failed
        assert isinstance(b.clips, YuvClips)
        assert isinstance(a.clips, torch.Tensor)
        difference = (to_rgb(b.clips).float() - a.clips.float()).abs()
        assert difference.mean() < 2  # bars with sharp edges, scaled in another order
    assert sum(batch.num_failed for batch in coded) == 1


def test_a_batch_of_which_nothing_could_be_read_is_black(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_text(
        f"path,label\n{videos / '4.mp4'},a\n{videos / '4.mp4'},b\n"
    )
    data = replace(RUN.data, max_bad_ratio=1.0, root=str(videos))
    train = replace(RUN.train, batch_size_per_device=2)
    config = on_device(replace(RUN, data=data, train=train))
    annotations = build.build_annotations(config, str(tmp_path / "broken.csv"))
    dataset = build.build_dataset(config, annotations, ("a", "b"), training=True)
    loader = build.build_train_loader(config, dataset, world=CPU, run=tmp_path)
    (batch,) = loader.batches(epoch=0)
    assert (batch.num_clips, batch.num_failed) == (0, 2)
    assert isinstance(batch.clips, YuvClips)
    assert not to_rgb(batch.clips).any()


@pytest.mark.parametrize("kind", ["classification", "masked"])
def test_runs_agree_but_for_rounding(videos: Path, tmp_path: Path, kind: str) -> None:
    """Train, test, report and predict, with a flexible shape on the way."""
    objective = ObjectiveConfig(kind=kind, mask="random", mask_ratio=0.5)  # type: ignore[arg-type]
    tokens = RUN.tokens if kind == "classification" else TokensConfig()
    config = replace(RUN, objective=objective, tokens=tokens)
    val = str(videos / "val.csv") if kind == "classification" else ""
    losses = []
    for name, each in (("loader", config), ("device", on_device(config))):
        run = tmp_path / name
        onereel.train(each, data=str(videos / "train.csv"), val=val, out=run)
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
        assert (run / "report.html").exists()
        assert list((run / "examples").iterdir())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    if kind == "classification":
        for name in ("loader", "device"):
            (answer,) = onereel.predict(tmp_path / name, [str(videos / "0.mp4")], top_k=1)
            assert sum(answer.probabilities) > 0.4


def test_flexible_shapes_are_drawn_as_ever(videos: Path, tmp_path: Path) -> None:
    data = replace(RUN.data, num_frames_choices=(2, 4), size_choices=(32, 48))
    config = on_device(replace(RUN, data=data))
    shapes = set()
    for epoch_batch in train_batches(config, videos, tmp_path):
        assert isinstance(epoch_batch.clips, YuvClips)
        clips = to_rgb(epoch_batch.clips)
        shapes.add((clips.shape[1], *clips.shape[-2:]))
    expected = train_batches(replace(RUN, data=data), videos, tmp_path)
    assert shapes == {(b.clips.shape[1], *b.clips.shape[-2:]) for b in expected}  # type: ignore[union-attr]


def test_selection_in_the_loader_needs_finished_clips() -> None:
    with pytest.raises(ConfigError, match=r"tokens.where is 'loader'.*data.scaling is 'device'"):
        replace(on_device(RUN), tokens=replace(RUN.tokens, where="loader"))
