"""Tokens selected by the loader's workers: the same tokens, logits, losses and results as when the model selects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import onereel
from onereel import api, build
from onereel.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from onereel.data.annotations import Annotations
from onereel.errors import ConfigError
from onereel.evaluation.classification import evaluate_classification
from onereel.seeding import clip_generators
from onereel.tokens.frames import FrameSelection
from onereel.tokens.packing import kept_tokens
from onereel.tokens.run_length import RunLength
from onereel.training import World
from onereel.types import Batch, Packed, SampleKey

CPU = World(0, 1, torch.device("cpu"))
RUN = RunConfig(
    seed=3,
    data=DataConfig(num_frames=4, size=32, num_workers=0, max_bad_ratio=0.5),
    augment=AugmentConfig(hflip_prob=0.5, erase_prob=0.5),
    tokens=TokensConfig(kind="run-length", threshold=0.3, length_embedding=True),
    model=ModelConfig(name="vit_micro_patch16_32", drop_path_rate=0.2, head_dropout=0.1),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(
        epochs=2, batch_size_per_device=4, log_every=1, save_every=1, device="cpu", num_threads=1
    ),
    eval=EvalConfig(num_clips=2),
)


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """`config` with other values, by section."""
    values = to_dict(config)
    for name, section in sections.items():
        values[name] |= section
    return from_dict(RunConfig, values)


def in_loader(config: RunConfig) -> RunConfig:
    return changed(config, tokens={"where": "loader"})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Eight videos of two classes, one of them broken, in train.csv; the good ones in val.csv."""
    folder = tmp_path_factory.mktemp("videos")
    rows = []
    for i in range(8):
        path = folder / f"{i}.mp4"
        make_video(path, num_frames=10 + i, height=48, width=64)
        rows.append(f"{path.name},{'ab'[i % 2]}\n")
    (folder / "4.mp4").write_bytes(b"no video")
    (folder / "train.csv").write_text("path,label\n" + "".join(rows))
    (folder / "val.csv").write_text("path,label\n" + "".join(rows[:4]))
    return folder


def outputs(config: RunConfig, videos: Path, epoch: int = 1) -> list[dict[str, Any]]:
    """What the objective says of each training batch of an epoch."""
    annotations = build.build_annotations(config, str(videos / "train.csv"))
    dataset = build.build_dataset(config, annotations, ("a", "b"), training=True)
    loader = build.build_train_loader(config, dataset, world=CPU, run=videos)
    augment = build.build_augment(config, 2, training=True)
    objective = build.build_objective(config, build.build_model(config, 2))
    torch.manual_seed(0)
    torch.nn.init.normal_(objective.model.encoder.length_embed)
    found = []
    for batch in loader.batches(epoch):
        assert isinstance(batch.clips, Packed) == (config.tokens.where == "loader")
        assert batch.clips.device == CPU.device
        found.append(objective(augment(batch, CPU.device)) | {"keys": batch.keys})
    return found


@pytest.mark.parametrize(
    "tokens",
    [
        {"kind": "all"},
        {"kind": "random"},
        {"kind": "tube"},
        {"kind": "run-length"},
        {"kind": "run-length", "budget": "clip"},
        {"kind": "run-length", "budget": "batch"},
        {"kind": "run-length", "frame_selection": 2.0},
        {"kind": "random", "frame_selection": 1.5},
    ],
    ids=str,
)
def test_losses_are_the_same_bits(videos: Path, tokens: dict[str, Any]) -> None:
    config = changed(RUN, tokens=tokens)
    device, loader = outputs(config, videos), outputs(in_loader(config), videos)
    assert len(device) == 2
    for a, b in zip(device, loader, strict=True):
        assert a["keys"] == b["keys"]
        assert a["stats"] == b["stats"]
        assert torch.equal(a["loss"], b["loss"])


@pytest.mark.parametrize(
    "tokens",
    [
        {},
        {"reference": "anchor"},
        {"budget": "clip", "keep_ratio": 0.3},
        {"frame_selection": 1.5},
    ],
    ids=str,
)
def test_uint8_keeps_the_tokens_that_floats_keep_on_real_videos(
    real_data: Path, tokens: dict[str, Any]
) -> None:
    config = in_loader(
        changed(
            RUN,
            data={"num_frames": 16, "size": 112, "sampling": "dense"},
            tokens={"threshold": 0.1, **tokens},
            model={"name": "vit_micro_patch16_112"},
        )
    )
    paths = sorted(map(str, (real_data / "long").glob("*static*")))[:2]
    dataset = build.build_dataset(config, Annotations.of_videos(paths), None, training=True)
    keys = [SampleKey(0, i) for i in range(len(paths))]
    clips = torch.stack([dataset[key].clip for key in keys])
    picker = build.build_picker(config, training=True)
    picked = kept_tokens(picker(clips, keys))
    augment = build.build_augment(config, 2, training=False)
    floats = augment(Batch(clips, keys, num_clips=len(keys)), CPU.device).clips
    model = build.build_model(config, 2).train()
    with torch.no_grad():
        seen = model(floats, generators=clip_generators(config.seed, keys))
    assert torch.equal(kept_tokens(seen.features), picked)
    assert 0.1 < picked.float().mean() < 0.9


def learned(run: Path, kind: str = "train") -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rates = ("clips_per_second", "seconds", "data_wait", "tokens_per_second", "mfu", "eta", "peak")
    return [
        {k: v for k, v in line.items() if not k.startswith((*rates, "time"))}
        for line in lines
        if line["kind"] == kind
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_is_the_same_with_workers_bad_files_resume_and_evaluation(
    videos: Path, tmp_path: Path
) -> None:
    config = changed(RUN, tokens={"frame_selection": 1.5})
    lists = {"data": str(videos / "train.csv"), "val": str(videos / "val.csv")}
    onereel.train(config, **lists, out=tmp_path / "device")
    workers = in_loader(changed(config, data={"num_workers": 2}))
    onereel.train(workers, **lists, out=tmp_path / "loader")
    expected = learned(tmp_path / "device")
    assert len(expected) == 4
    assert sum(line["num_failed"] for line in expected) == 2
    assert 0 < expected[0]["kept_ratio"] < 1
    assert learned(tmp_path / "loader") == expected
    assert learned(tmp_path / "loader", "eval") == learned(tmp_path / "device", "eval")

    checkpoints = sorted((tmp_path / "loader" / "checkpoints").iterdir())
    for late in checkpoints[-2:]:
        late.unlink()
    api.resume(tmp_path / "loader")
    assert learned(tmp_path / "loader") == expected

    on_device = replace(api.run_config(tmp_path / "loader"), tokens=config.tokens)
    again = api.evaluate(tmp_path / "loader", config=on_device, name="on-device")
    own = json.loads((tmp_path / "loader" / "eval" / "val.json").read_text())
    for name in ("confusion", "kept_ratio", "macs_per_view", "top1"):
        assert again.to_dict()[name] == own[name], name
    (answer,) = api.predict(tmp_path / "loader", [videos / "0.mp4"], num_clips=2)
    assert answer.labels


def test_evaluation_takes_the_frames_with_most_tokens(videos: Path) -> None:
    """The same for every seed, and as frame selection without draws does it by hand."""
    config = in_loader(changed(RUN, tokens={"frame_selection": 2.0}))
    model = build.build_model(config, 2)
    results = []
    for seed in (0, 1):
        config = replace(config, seed=seed)
        annotations = build.build_annotations(config, str(videos / "val.csv"))
        dataset = build.build_dataset(config, annotations, ("a", "b"), training=False)
        loader = build.build_eval_loader(config, dataset, world=CPU)
        batch = next(loader.batches(0))
        clips = torch.stack([dataset[key].clip for key in batch.keys])
        augment = build.build_augment(config, 2, training=False)
        seen = augment(replace(batch, clips=clips), CPU.device).clips
        grid = batch.clips.grid
        by_hand = (
            FrameSelection(2).select(RunLength(0.3), seen, None, grid, None, draws=False).keep_mask
        )
        assert batch.clips.lengths == tuple(by_hand.sum(1).tolist())
        results.append(
            evaluate_classification(
                model, loader, augment, class_names=("a", "b"), device="cpu", num_views=2
            )
        )
    assert torch.equal(results[0].scores.probabilities, results[1].scores.probabilities)
    assert results[0].kept_ratio <= 1


@pytest.mark.parametrize(
    "augment",
    [
        {"randaugment_num_ops": 2},
        {"color_jitter": 0.4},
        {"mixup_alpha": 0.8},
        {"cutmix_alpha": 1.0},
    ],
    ids=str,
)
def test_augmentation_that_needs_whole_clips_is_refused_before_anything_is_written(
    videos: Path, tmp_path: Path, augment: dict[str, Any]
) -> None:
    config = in_loader(changed(RUN, augment=augment))
    with pytest.raises(ConfigError, match=r"augment\..* to 0, or tokens\.where to 'device'"):
        onereel.train(config, data=str(videos / "train.csv"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert build.build_augment(config, 2, training=False) is not None  # evaluation mixes nothing


@pytest.mark.parametrize("kind", ["redundancy", "group-dynamic"])
def test_selectors_of_embeddings_are_refused(kind: str) -> None:
    config = changed(RUN, tokens={"kind": kind, "where": "loader"})
    with pytest.raises(ConfigError, match=rf"'{kind}' looks at patch embeddings.*'device'"):
        build.build_picker(config, training=True)


def test_frames_that_do_not_divide_are_refused_with_frame_selection_too() -> None:
    config = changed(RUN, data={"num_frames": 5}, tokens={"frame_selection": 1.5})
    with pytest.raises(ConfigError, match="num_frames 5 is not a multiple of tubelet_size 2"):
        build.build_model(config, 2)
    with pytest.raises(ConfigError, match=r"tokens\.frame_selection is 0\.5; allowed: 0, or 1"):
        changed(RUN, tokens={"frame_selection": 0.5})


@pytest.mark.parametrize(
    ("factor", "frames"), [(0.0, 16), (1.0, 16), (1.5, 24), (1.6, 26), (2.0, 32)]
)
def test_frames_read(factor: float, frames: int) -> None:
    config = changed(RUN, data={"num_frames": 16}, tokens={"frame_selection": factor})
    assert build.frames_read(config) == frames
    model = build.build_model(config, 2)
    assert model.encoder.grid.gt == frames // 2
    assert model.frames == (FrameSelection(8) if factor > 1 else None)


# ------------------------------------------------------------------------------------------------------- token caps


def test_a_capped_run_has_the_losses_of_the_run_without(videos: Path, tmp_path: Path) -> None:
    config = in_loader(changed(RUN, optim={"kind": "sgd"}))
    lists = {"data": str(videos / "train.csv")}
    onereel.train(config, **lists, out=tmp_path / "whole")
    capped = changed(config, train={"max_tokens_per_device": 13})  # a clip has up to 8
    onereel.train(capped, **lists, out=tmp_path / "capped")
    for a, b in zip(learned(tmp_path / "whole"), learned(tmp_path / "capped"), strict=True):
        for name in ("loss", "top1", "grad_norm", "kept_ratio", "num_failed"):
            assert b[name] == pytest.approx(a[name], rel=0, abs=1e-6), name


def test_caps_need_lengths_that_are_known_and_fit() -> None:
    with pytest.raises(
        ConfigError, match=r"tokens\.where is 'device'.*Set tokens\.where to 'loader'"
    ):
        build.build_picker(changed(RUN, train={"max_tokens_per_device": 100}), training=True)
    low = in_loader(changed(RUN, train={"max_tokens_per_device": 7}))
    with pytest.raises(ConfigError, match="one clip may keep 8 tokens; allowed: 8 or more"):
        build.build_picker(low, training=True)
    assert build.build_picker(changed(low, tokens={"kind": "random"}), training=True) is not None
    assert build.build_picker(low, training=False) is not None
