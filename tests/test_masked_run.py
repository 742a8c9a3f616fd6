"""Masked pre-training from the outside: without labels, interrupted and resumed, and then fine-tuned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import onereel
from onereel import api
from onereel.cli import main
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.errors import ConfigError
from onereel.objectives import MaskedObjective
from onereel.training import NonFiniteError, RunInterrupted, list_checkpoints, load_checkpoint

TINY = RunConfig(
    recipe="tiny-masked",
    data=DataConfig(num_frames=4, size=32, num_workers=0, crop="multi-scale"),
    augment=AugmentConfig(hflip_prob=0.0),
    model=ModelConfig(name="vit_micro_patch8_32"),
    objective=ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.75),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1, betas=(0.9, 0.95)),
    train=TrainConfig(epochs=3, batch_size_per_device=2, log_every=1, save_every=2, num_threads=1),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Six videos; a list of paths alone, one with captions, and one with labels."""
    folder = tmp_path_factory.mktemp("videos")
    names = [f"clip{i}.mp4" for i in range(6)]
    for name in names:
        make_video(folder / name, num_frames=20, height=80, width=96)
    (folder / "paths.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    rows = [f"{name},someone moves\n" for name in names]
    (folder / "captions.csv").write_text("path,caption\n" + "".join(rows))
    rows = [f"{name},{'wave' if i % 2 else 'clap'}\n" for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("path,label\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def pretrained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "masked"
    paths = str(videos / "paths.csv")
    onereel.train(TINY, data=paths, val=paths, out=run)
    return run


def losses(run: Path, kind: str = "train") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == kind]


def test_a_run_without_labels_writes_everything(pretrained: Path) -> None:
    assert len(losses(pretrained)) == 9
    (validation,) = losses(pretrained, "eval")
    assert 0.5 < validation < 2
    assert "top1" not in (pretrained / "metrics.jsonl").read_text()
    entries = json.loads((pretrained / "examples" / "examples.json").read_text())
    assert len(entries) == 6, "one per video where there are no classes"
    assert (entries[0]["num_visible"], entries[0]["num_targets"]) == (8, 24)
    page = (pretrained / "report.html").read_text()
    assert "8 of 32 tokens visible, 24 reconstructed" in page
    assert "Fine-tune its encoder" in page
    assert "onereel predict" not in page


def test_captions_and_labels_change_nothing(videos: Path, pretrained: Path, tmp_path: Path) -> None:
    for name in ("captions", "labels"):
        onereel.train(TINY, data=str(videos / f"{name}.csv"), out=tmp_path / name)
        assert losses(tmp_path / name) == losses(pretrained)


def test_interrupted_and_resumed_it_gives_the_same_losses(
    videos: Path, pretrained: Path, tmp_path: Path, dying: Callable[..., Any]
) -> None:
    """Killed after step 5, of which step 4 was saved; the resumed run has the same bits."""
    run = tmp_path / "broken"
    with (
        dying(MaskedObjective, 6, KeyboardInterrupt),
        pytest.raises((KeyboardInterrupt, RunInterrupted)),
    ):
        onereel.train(TINY, data=str(videos / "paths.csv"), out=run)
    assert len(losses(run)) == 5
    assert api.resume(run).step == 9
    assert losses(run) == losses(pretrained)
    last = [load_checkpoint(list_checkpoints(path)[-1])["model"] for path in (run, pretrained)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])


def test_a_loss_that_is_not_finite_ends_the_run_with_the_samples_named(
    videos: Path, tmp_path: Path
) -> None:
    steep = replace(TINY, optim=replace(TINY.optim, lr=1e30, warmup_epochs=0))
    with pytest.raises(NonFiniteError, match="SampleKey"):
        onereel.train(steep, data=str(videos / "paths.csv"), out=tmp_path / "run")


def test_its_encoder_starts_a_classifier(pretrained: Path, videos: Path, tmp_path: Path) -> None:
    """With and without a norm of its own; the first weights are those that were learned."""
    labels = str(videos / "labels.csv")
    saved = load_checkpoint(list_checkpoints(pretrained)[-1])["model"]
    for fc_norm in (False, True):
        tuned = replace(
            TINY,
            objective=ObjectiveConfig(),
            model=replace(TINY.model, pretrained=str(pretrained), fc_norm=fc_norm),
            optim=replace(TINY.optim, lr=0.0, min_lr=0.0, warmup_lr=0.0),
            train=replace(TINY.train, epochs=1),
        )
        out = tmp_path / f"tuned {fc_norm}"
        assert "top1" in onereel.train(tuned, data=labels, val=labels, out=out).metrics
        encoder = onereel.load(out).model.encoder
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, saved[f"model.encoder.{name}"])
        assert ("norm.weight" in encoder.state_dict()) != fc_norm


def test_a_run_killed_before_its_first_checkpoint_starts_from_its_weights_again(
    pretrained: Path, videos: Path, tmp_path: Path
) -> None:
    config = replace(TINY, model=replace(TINY.model, pretrained=str(pretrained)))
    onereel.train(config, data=str(videos / "paths.csv"), out=tmp_path / "run")
    expected = losses(tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run"):
        checkpoint.unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    api.resume(tmp_path / "run")
    assert losses(tmp_path / "run") == expected


def test_positions_must_be_those_that_the_weights_were_learned_with(
    pretrained: Path, videos: Path, tmp_path: Path
) -> None:
    """They are no part of the weights, so nothing else would tell."""
    other = replace(TINY.model, pretrained=str(pretrained), positions="sincos-1d")
    tuned = replace(TINY, objective=ObjectiveConfig(), model=other)
    with pytest.raises(ConfigError, match=r"set --model\.positions sincos"):
        onereel.train(tuned, data=str(videos / "labels.csv"), out=tmp_path / "run")


def test_run_length_and_redundancy_robust_tokens_pre_train_too(
    videos: Path, tmp_path: Path
) -> None:
    """Ragged and fixed counts; with the run length embedded, and with half of the hidden tokens asked for."""
    for number, tokens in enumerate(
        (
            TokensConfig(kind="run-length", threshold=0.3, length_embedding=True),
            TokensConfig(kind="redundancy", keep_ratio=0.5),
        )
    ):
        config = replace(
            TINY,
            tokens=tokens,
            objective=replace(TINY.objective, mask_ratio=0.6, decode_ratio=0.5),
            train=replace(TINY.train, epochs=1),
        )
        result = onereel.train(config, data=str(videos / "paths.csv"), out=tmp_path / str(number))
        assert result.step == 3


@pytest.mark.parametrize(
    ("tokens", "learned", "message"),
    [
        ({"kind": "redundancy", "budget": "quantile"}, {}, "may keep a single token"),
        ({"kind": "redundancy", "budget": "batch"}, {}, "may keep a single token"),
        ({"kind": "redundancy", "budget": "threshold"}, {}, "may keep a single token"),
        ({"kind": "redundancy", "token_budget": 3}, {}, "shows none of the 3 tokens"),
        ({"kind": "run-length"}, {"mask_ratio": 0.95}, "shows none of the 16 tokens"),
        ({}, {"mask_ratio": 0.99}, "shows none of the 32 tokens"),
        ({"kind": "run-length", "budget": "clip"}, {"mask": "tube"}, "need not be left at"),
    ],
)
def test_masks_that_could_show_nothing_are_refused_before_anything_is_written(
    tokens: dict[str, Any],
    learned: dict[str, Any],
    message: str,
    videos: Path,
    tmp_path: Path,
) -> None:
    """A clip at rest would end the run in its midst."""
    parts = {"tokens": TokensConfig(**tokens), "objective": replace(TINY.objective, **learned)}
    paths = str(videos / "paths.csv")
    with pytest.raises(ConfigError, match=message):
        onereel.train(replace(TINY, **parts), data=paths, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_needs_classes_says_so(
    pretrained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["eval", str(pretrained)],
        ["predict", str(pretrained), str(videos / "clip0.mp4")],
    ):
        assert main(arguments) == 2
        assert "was pre-trained without labels" in capsys.readouterr().err
    mixed = replace(TINY, augment=replace(TINY.augment, mixup_alpha=0.8))
    with pytest.raises(ConfigError, match="mix labels, and this run has none"):
        onereel.train(mixed, data=str(videos / "paths.csv"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
