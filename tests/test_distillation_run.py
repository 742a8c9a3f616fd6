"""Distillation from the outside: from a teacher trained before, interrupted and resumed, and then fine-tuned."""

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
    DistillConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.errors import ConfigError
from onereel.objectives import DistillationObjective
from onereel.teaching import load_teacher
from onereel.training import RunInterrupted, list_checkpoints, load_checkpoint

TINY = RunConfig(
    recipe="tiny",
    data=DataConfig(num_frames=4, size=32, num_workers=0),
    augment=AugmentConfig(hflip_prob=0.5),
    model=ModelConfig(name="vit_micro_patch8_32", drop_path_rate=0.1),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(epochs=1, batch_size_per_device=2, log_every=1, save_every=2, num_threads=1),
)
STUDENT = replace(
    TINY,
    tokens=TokensConfig(kind="group-dynamic"),
    objective=ObjectiveConfig(kind="distillation", budgets=(16, 8)),
    distill=DistillConfig(num_layers=2, pool_budget=24),
    train=replace(TINY.train, epochs=3),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Six videos; a list of paths alone, one with captions, and one with labels."""
    folder = tmp_path_factory.mktemp("videos")
    names = [f"clip{i}.mp4" for i in range(6)]
    for i, name in enumerate(names):
        make_video(folder / name, num_frames=20 + i, height=80, width=96)
    (folder / "paths.csv").write_text("path\n" + "".join(f"{name}\n" for name in names))
    rows = [f"{name},someone moves {i}\n" for i, name in enumerate(names)]
    (folder / "captions.csv").write_text("path,caption\n" + "".join(rows))
    rows = [f"{name},{'wave' if i % 2 else 'clap'}\n" for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("path,label\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def teachers(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of each family: a classifier, masked pre-training, a video-language model."""
    runs = tmp_path_factory.mktemp("teachers")
    other = replace(TINY, data=replace(TINY.data, num_frames=8), seed=3)
    masked = ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.75)
    pairs = replace(
        other,
        objective=ObjectiveConfig(kind="contrastive"),
        text=TextConfig(size="micro", context_length=8, vocab_size=300, embed_dim=16),
    )
    for name, config, rows in (
        ("classifier", replace(other, model=replace(TINY.model, pool="cls")), "labels"),
        ("masked", replace(other, objective=masked), "paths"),
        ("pairs", pairs, "captions"),
    ):
        onereel.train(config, data=str(videos / f"{rows}.csv"), out=runs / name)
    return {path.name: path for path in runs.iterdir()}


@pytest.fixture(scope="module")
def student(teachers: dict[str, Path]) -> RunConfig:
    return replace(STUDENT, distill=replace(STUDENT.distill, teacher=str(teachers["classifier"])))


@pytest.fixture(scope="module")
def distilled(videos: Path, student: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "distilled"
    paths = str(videos / "paths.csv")
    onereel.train(student, data=paths, val=paths, out=run)
    return run


def losses(run: Path, kind: str = "train") -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == kind]


def test_a_run_writes_everything_but_its_teacher(
    distilled: Path, teachers: dict[str, Path]
) -> None:
    assert len(losses(distilled)) == 9
    (validation,) = losses(distilled, "eval")
    assert 0 < validation < 8
    state = load_checkpoint(list_checkpoints(distilled)[-1])
    teacher = load_teacher(
        replace(STUDENT, distill=replace(STUDENT.distill, teacher=str(teachers["classifier"])))
    )
    assert teacher is not None
    assert bytes(state["model"]["teacher_hash"].tolist()).hex() == teacher.fingerprint()
    parts = {name.split(".")[0] for name in state["model"]}
    assert parts == {"model", "projections", "final", "teacher_hash"}
    entries = json.loads((distilled / "examples" / "examples.json").read_text())
    assert len(entries) == 6
    page = (distilled / "report.html").read_text()
    assert "16 of 32 tokens kept" in page
    assert "Fine-tune its encoder" in page
    assert "onereel predict" not in page


def test_interrupted_and_resumed_it_gives_the_same_losses(
    videos: Path,
    student: RunConfig,
    distilled: Path,
    tmp_path: Path,
    dying: Callable[..., Any],
) -> None:
    run = tmp_path / "broken"
    with (
        dying(DistillationObjective, 6, KeyboardInterrupt),
        pytest.raises((KeyboardInterrupt, RunInterrupted)),
    ):
        onereel.train(student, data=str(videos / "paths.csv"), out=run)
    assert len(losses(run)) == 5
    assert api.resume(run).step == 9
    assert losses(run) == losses(distilled)
    last = [load_checkpoint(list_checkpoints(path)[-1])["model"] for path in (run, distilled)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[1])


def test_every_family_of_ours_teaches(
    teachers: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    """Also a distilled student, and one whose clips are longer than the student's."""
    for name, path in teachers.items():
        distill = replace(STUDENT.distill, teacher=str(path))
        config = replace(STUDENT, distill=distill, train=TINY.train)
        result = onereel.train(config, data=str(videos / "paths.csv"), out=tmp_path / name)
        assert result.step == 3
        teacher = load_teacher(config)
        assert teacher is not None
        assert teacher.view.num_frames == 8
        assert teacher.final_dim == (16 if name == "pairs" else 96)


def test_a_student_teaches_and_its_encoder_starts_a_classifier(
    distilled: Path, videos: Path, tmp_path: Path
) -> None:
    again = replace(
        STUDENT, train=TINY.train, distill=replace(STUDENT.distill, teacher=str(distilled))
    )
    assert onereel.train(again, data=str(videos / "paths.csv"), out=tmp_path / "again").step == 3
    saved = load_checkpoint(list_checkpoints(distilled)[-1])["model"]
    for fc_norm in (False, True):
        tuned = replace(
            TINY,
            model=replace(TINY.model, pretrained=str(distilled), fc_norm=fc_norm),
            optim=replace(TINY.optim, lr=0.0, min_lr=0.0, warmup_lr=0.0),
        )
        out = tmp_path / f"tuned {fc_norm}"
        labels = str(videos / "labels.csv")
        assert "top1" in onereel.train(tuned, data=labels, val=labels, out=out).metrics
        for name, value in onereel.load(out).model.encoder.state_dict().items():
            assert torch.equal(value, saved[f"model.encoder.{name}"])


def test_a_run_says_what_its_teacher_lacks(
    teachers: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    paths = str(videos / "paths.csv")
    by_attention = replace(
        STUDENT.distill, teacher=str(teachers["masked"]), choose="attention", pool_budget=24
    )
    with pytest.raises(ConfigError, match="no class token"):
        onereel.train(replace(STUDENT, distill=by_attention), data=paths, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"give --distill\.teacher"):
        onereel.train(STUDENT, data=paths, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_needs_classes_says_so(
    distilled: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["eval", str(distilled)],
        ["predict", str(distilled), str(videos / "clip0.mp4")],
        ["convert", str(distilled), "--to", "videomae", "--out", str(videos / "out")],
    ):
        assert main(arguments) == 2
        assert "without labels" in capsys.readouterr().err


def test_a_fluxvits_attention_pool_goes_to_each_head_of_a_budgeted_classifier(
    student: RunConfig, videos: Path, tmp_path: Path
) -> None:
    """Flux-UMT's pre-training and Flux's fine-tuning with three heads; one that pools otherwise leaves it out."""
    flux = ModelConfig.named("fluxvit_micro_patch8_32")
    config = replace(student, model=flux, train=TINY.train)
    onereel.train(config, data=str(videos / "paths.csv"), out=tmp_path / "flux")
    saved = load_checkpoint(list_checkpoints(tmp_path / "flux")[-1])["model"]
    pooler = saved["model.head.pooler.proj.weight"]
    for pool in ("attention", "cls"):
        tuned = replace(
            TINY,
            tokens=STUDENT.tokens,
            objective=ObjectiveConfig(budgets=(16, 8)),
            model=replace(flux, pretrained=str(tmp_path / "flux"), pool=pool),
            optim=replace(TINY.optim, lr=0.0, min_lr=0.0, warmup_lr=0.0),
        )
        out = tmp_path / pool
        onereel.train(tuned, data=str(videos / "labels.csv"), out=out)
        weights = onereel.load(out).model.state_dict()
        found = [value for name, value in weights.items() if name.endswith("pooler.proj.weight")]
        assert len(found) == (2 if pool == "attention" else 0)
        assert all(torch.equal(value, pooler) for value in found)
