"""A factorised encoder in two stages as one recipe: what is frozen stays as it was, and any stage can be resumed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import onereel
from onereel import api, build, loading
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
    to_json,
)
from onereel.errors import ConfigError
from onereel.models.factorised import FactorisedEncoder
from onereel.models.video_model import VideoModel
from onereel.objectives.classification import ClassificationObjective
from onereel.recipes import load_recipe
from onereel.recipes.stages import first_stage, stages
from onereel.tokens.packing import pack_all
from onereel.training import (
    RunInterrupted,
    create_optimizer,
    is_done,
    latest_valid,
    list_checkpoints,
)
from onereel.training.ema import Ema
from onereel.training.step import TrainStep
from onereel.types import Batch, SampleKey

FIRST = RunConfig(
    data=DataConfig(num_frames=4, size=32, num_workers=0),
    augment=AugmentConfig(hflip_prob=0.0),
    model=ModelConfig(
        name="vit_micro_patch16_32",
        temporal_depth=2,
        pool="cls",
        positions="learned",
        style="vivit",
        drop_path_rate=0.2,
    ),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=0, clip_grad_norm=1.0),
    train=TrainConfig(epochs=1, batch_size_per_device=2, log_every=1, save_every=2),
)
RECIPE = """
from onereel.config import from_json

def recipe():
    return from_json({text!r})
"""


def second(first: str = "", **model: Any) -> RunConfig:
    """Eight frames, the spatial half frozen, the head kept."""
    settings: dict[str, Any] = {"frozen": "spatial", "adapter": "bottleneck", "keep_head": True}
    if first and not first.endswith(".py"):
        settings["pretrained"] = first
    return replace(
        FIRST,
        after=first if first.endswith(".py") else "",
        data=replace(FIRST.data, num_frames=8),
        model=replace(FIRST.model, **(settings | model)),
        optim=replace(FIRST.optim, ema_decay=0.9),
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        make_video(folder / f"{i}.mp4", num_frames=20, height=48, width=64)
    rows = [f"{i}.mp4,{'wave' if i % 2 else 'clap'}\n" for i in range(6)]
    (folder / "train.csv").write_text("path,label\n" + "".join(rows))
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A file with the first stage."""
    path = tmp_path / "first_recipe.py"
    path.write_text(RECIPE.format(text=to_json(FIRST)))
    return str(path)


@pytest.fixture(scope="module")
def first_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    onereel.train(FIRST, data=str(videos / "train.csv"), out=out)
    return out


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def model_of(config: RunConfig) -> VideoModel:
    model = build.build_model(config, 2)
    loading.load_encoder(model, config, ("clap", "wave"))
    return model


def halves(model: VideoModel) -> FactorisedEncoder:
    assert isinstance(model.encoder, FactorisedEncoder)
    return model.encoder


def batch(frames: int = 8, size: int = 2) -> Batch:
    keys = [SampleKey(0, i) for i in range(size)]
    clips = torch.randn(size, frames, 3, 32, 32)
    return Batch(clips, keys, labels=torch.tensor([0, 1])[:size], num_clips=size)


# --------------------------------------------------------------------------------------------------- freezing


@torch.no_grad()
@pytest.mark.parametrize(
    "adapter", ["none", "bottleneck", "temporal-conv", "attention-pool", "fusion"]
)
def test_step_zero_is_the_first_stage_at_its_own_length(adapter: str, first_run: Path) -> None:
    first = onereel.load(first_run).model
    config = second(str(first_run), adapter=adapter)
    model = model_of(replace(config, data=FIRST.data)).eval()
    clips = torch.randn(3, 4, 3, 32, 32)
    assert first(clips).logits.abs().max() > 1e-3
    assert torch.equal(model(clips).logits, first(clips).logits)


def test_frozen_weights_keep_their_bytes_and_leave_no_trace(first_run: Path) -> None:
    config = second(str(first_run))
    config = replace(config, optim=replace(config.optim, kind="adamw", weight_decay=0.5))
    model = model_of(config)
    objective = build.build_objective(config, model).train()
    assert isinstance(objective, ClassificationObjective)
    spatial = {n for n, _ in objective.named_parameters() if ".spatial." in n}
    before = {n: v.clone() for n, v in objective.state_dict().items()}
    optimizer, ema = create_optimizer(objective, config.optim), Ema(objective, 0.5)
    for _ in range(3):
        objective(batch())["loss"].backward()
        optimizer.step()
        ema.update()
        grads = {n for n, p in objective.named_parameters() if p.grad is not None}
        assert grads == {n for n, _ in objective.named_parameters()} - spatial
        optimizer.zero_grad()
    after = objective.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name in spatial), name
    in_optimizer = {n for group in optimizer.param_groups for n in group["names"]}
    assert in_optimizer == {n for n, _ in objective.named_parameters()} - spatial
    assert len(optimizer.state) == len(in_optimizer)
    assert set(ema.state_dict()) == in_optimizer


def test_a_frozen_half_drawn_at_random_is_a_warning(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onereel.train(second(keep_head=False), data=str(videos / "train.csv"), out=tmp_path / "run")
    assert "what is frozen stays as it was drawn at random" in caplog.text


def test_frozen_frames_draw_nothing_in_training(first_run: Path) -> None:
    encoder = halves(model_of(second(str(first_run)))).train()
    patches = pack_all(torch.randn(2, 16, 1536), encoder.grid)
    seen = encoder.frame_features(patches)  # without generators, which drop path would ask for
    assert torch.equal(encoder.eval().frame_features(patches).values, seen.values)
    with pytest.raises(ValueError, match="drop path draws"):
        encoder.train()(patches)


def summed_gradients(
    config: RunConfig, parts: list[Batch], precision: str = "float32"
) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over the clips of these micro-batches."""
    train = replace(config.train, accum_steps=len(parts), precision=precision)
    config = replace(
        config, train=train, optim=replace(config.optim, kind="sgd", lr=0.0, min_lr=0.0)
    )
    objective = build.build_objective(config, model_of(config)).train()
    take = TrainStep(
        objective,
        create_optimizer(objective, config.optim),
        lambda step: 0.0,
        lambda batch, device: batch,
        config,
        torch.device("cpu"),
    )
    total = sum(part.num_clips for part in parts)
    for part in parts:
        take._forward_backward(part, is_last=False)
    return {n: p.grad / total for n, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_accumulation_and_micro_batches_of_frames_change_nothing(
    precision: str, first_run: Path
) -> None:
    config = second(str(first_run), drop_path_rate=0.0)
    whole = batch()
    assert isinstance(whole.clips, torch.Tensor)
    assert whole.labels is not None
    parts = [
        replace_batch(whole, slice(0, 1)),
        replace_batch(whole, slice(1, 2)),
    ]
    at_once = summed_gradients(config, [whole], precision)
    chunked = replace(config, model=replace(config.model, frames_at_once=3))
    tolerance = 1e-6 if precision == "float32" else 2e-2
    for other in (
        summed_gradients(config, parts, precision),
        summed_gradients(chunked, [whole], precision),
    ):
        assert other.keys() == at_once.keys()
        for name, gradient in other.items():
            assert torch.allclose(gradient, at_once[name], atol=tolerance), name


def replace_batch(whole: Batch, part: slice) -> Batch:
    assert isinstance(whole.clips, torch.Tensor)
    assert whole.labels is not None
    keys = whole.keys[part]
    return Batch(whole.clips[part], keys, labels=whole.labels[part], num_clips=len(keys))


# ----------------------------------------------------------------------------------------- selection in front


@pytest.mark.parametrize(
    "tokens",
    [
        TokensConfig(kind="run-length", threshold=0.1),
        TokensConfig(kind="random", keep_ratio=0.3),
        TokensConfig(kind="tube", keep_ratio=0.5),
        TokensConfig(kind="redundancy", keep_ratio=0.3),
        TokensConfig(kind="group-dynamic", keep_ratio=0.5, groups=4),
        TokensConfig(kind="run-length", frame_selection=1.5),
    ],
    ids=lambda tokens: tokens.kind,
)
def test_any_selector_stands_in_front(tokens: TokensConfig) -> None:
    config = replace(second(keep_head=False), tokens=tokens)
    objective = build.build_objective(config, build.build_model(config, 2)).train()
    given = batch(build.frames_read(config))
    given.clips[:, 1:8] = given.clips[:, :1]  # type: ignore[index]  # still: frames of which run-length keeps nothing
    out = objective(given)
    out["loss"].backward()
    assert torch.isfinite(out["loss"])
    assert 0 < out["stats"]["num_tokens"] < out["stats"]["num_tokens_dense"]


def test_a_still_clip_is_one_frame_to_the_temporal_half() -> None:
    config = replace(second(keep_head=False), tokens=TokensConfig(kind="run-length"))
    model = build.build_model(config, 2).eval()
    still = torch.randn(1, 1, 3, 32, 32).expand(1, 8, -1, -1, -1)
    features = model(still).features
    assert features.lengths == (2,)  # the class token, and the frame at time 0
    assert features.coordinates.tolist() == [[-1, -1, -1], [0, 0, 0]]


# ------------------------------------------------------------------------------------------ two runs as one recipe


def test_one_recipe_trains_both_stages(videos: Path, recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = onereel.train(second(recipe), data=str(videos / "train.csv"), out=run)
    assert result.step == 3
    assert is_done(run)
    assert is_done(run / "first")
    first, own = (latest_valid(folder)[1]["model"] for folder in (run / "first", run))
    spatial = [name for name in first if ".spatial." in name]
    assert spatial
    assert all(torch.equal(first[name], own[name]) for name in spatial)
    assert onereel.load(run).config.data.num_frames == 8
    with pytest.raises(ConfigError, match="already holds a run"):
        onereel.train(second(recipe), data=str(videos / "train.csv"), out=run)
    # By hand in two runs: the same.
    by_hand = tmp_path / "by hand"
    config = second(str(run / "first"))
    onereel.train(config, data=str(videos / "train.csv"), out=by_hand)
    assert losses(by_hand) == losses(run)


def test_resume_goes_on_in_the_stage_that_is_not_done(
    videos: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(videos / "train.csv")
    whole, run = tmp_path / "whole", tmp_path / "run"
    onereel.train(second(recipe), data=data, out=whole)
    stop_after = {"first": 2, "run": 2}
    call = TrainStep.__call__

    def interrupted(self: TrainStep, state: Any, batches: Any, stop: Any) -> Any:
        stage = "first" if halves(state.objective.model).adapter is None else "run"
        if state.step + 1 == stop_after.get(stage):
            del stop_after[stage]
            stop.requested = True
        return call(self, state, batches, stop)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(RunInterrupted, match=f"--resume {run}$"):
        onereel.train(second(recipe), data=data, out=run)
    assert not is_done(run / "first")
    with pytest.raises(RunInterrupted):
        api.resume(run)
    assert is_done(run / "first")
    assert len(list_checkpoints(run)) > 0
    api.resume(run)
    assert losses(run) == losses(whole)
    assert losses(run / "first") == losses(whole / "first")


def test_a_stage_that_was_begun_goes_on_as_it_was(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_run: Path
) -> None:
    """From another folder, and without the recipe's file."""
    monkeypatch.chdir(first_run.parent)
    path = tmp_path / "first_recipe.py"
    started = replace(FIRST, model=replace(FIRST.model, pretrained=first_run.name))
    path.write_text(RECIPE.format(text=to_json(started)))
    call = TrainStep.__call__

    def interrupted(self: TrainStep, state: Any, batches: Any, stop: Any) -> Any:
        stop.requested = True
        return call(self, state, batches, stop)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", interrupted)
        with pytest.raises(RunInterrupted):
            onereel.train(second(str(path)), data=str(videos / "train.csv"), out=run)
    assert api.run_config(run / "first").model.pretrained == str(first_run)
    path.unlink()
    monkeypatch.chdir(tmp_path)
    api.resume(run)
    assert is_done(run / "first")
    assert is_done(run)


def test_stages_that_do_not_fit_are_refused_before_anything_is_trained(
    videos: Path, recipe: str, tmp_path: Path
) -> None:
    config = second(recipe)
    wrong = replace(config, model=replace(config.model, temporal_depth=3))
    with pytest.raises(ConfigError, match=r"first_recipe.*does not fit"):
        onereel.train(wrong, data=str(videos / "train.csv"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_stage_shares_clips_and_model(videos: Path, recipe: str) -> None:
    config = second(recipe)
    config = replace(
        config,
        seed=7,
        data=replace(config.data, train="list.csv", size=48, hold_out_ratio=0.2),
        augment=replace(config.augment, mean=(0.1, 0.2, 0.3), color_jitter=0.1),
        model=replace(config.model, name="vit_micro_patch16_48", pool="mean", checkpointing=True),
        train=replace(config.train, batch_size_per_device=1, accum_steps=4, epochs=9),
        eval=replace(config.eval, batch_size_per_device=2, num_clips=3),
    )
    first = first_stage(config)
    assert (first.train.batch_size_per_device, first.train.accum_steps) == (1, 4)
    assert (first.model.checkpointing, first.eval.batch_size_per_device) == (True, 2)
    assert (first.train.epochs, first.eval.num_clips) == (1, 1)
    assert (first.data.train, first.data.size, first.data.num_frames) == ("list.csv", 48, 4)
    assert first.data.hold_out_ratio == 0.2  # else it would learn what is held out
    assert (first.augment.mean, first.augment.color_jitter) == ((0.1, 0.2, 0.3), 0.0)
    assert (first.model.name, first.model.pool, first.seed) == ("vit_micro_patch16_48", "mean", 7)
    assert (first.model.frozen, first.model.adapter) == ("none", "none")
    assert stages(config) == [first, config]


@pytest.mark.parametrize("name", ["actions_sfa", "sfa_ssv2_vitb_32f"])
def test_the_first_stages_of_our_recipes_are_what_their_own_recipes_say(name: str) -> None:
    config = load_recipe(name)
    assert first_stage(config) == load_recipe(config.after)


def test_weights_to_start_from_are_those_of_the_first_stage(
    videos: Path, recipe: str, tmp_path: Path, first_run: Path
) -> None:
    config, run = second(recipe), tmp_path / "run"
    config = replace(
        config, model=replace(config.model, pretrained=str(first_run), image_class_token=False)
    )
    assert not first_stage(config).model.image_class_token
    onereel.train(config, data=str(videos / "train.csv"), out=run)
    by_hand = tmp_path / "by hand"
    onereel.train(first_stage(config), data=str(videos / "train.csv"), out=by_hand)
    assert losses(by_hand) == losses(run / "first")
    own = latest_valid(run)[1]["model"]
    first = latest_valid(run / "first")[1]["model"]
    assert all(torch.equal(own[n], first[n]) for n in own if ".spatial." in n)


# ------------------------------------------------------------------------------------------------ two processes

OPTIONS = shlex.split(
    "--data.num-workers 0 --data.size 32 --data.num-frames 8 --model.name vit_micro_patch16_32 --train.epochs 2 "
    "--train.log-every 1 --train.precision float32 --optim.ema-decay 0.9"
)


@pytest.mark.slow
def test_two_processes_train_both_stages_as_one(videos: Path, recipe: str, tmp_path: Path) -> None:
    torchrun = shlex.split("-m torch.distributed.run --standalone --nproc-per-node 2 -m")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = []
    for launcher, batch_size, accum_steps in ((["-m"], "1", "2"), (torchrun, "1", "1")):
        run = tmp_path / str(len(runs))
        command = [
            *(sys.executable, *launcher, "onereel.cli", "train", "actions_sfa", *OPTIONS),
            *(f"--data.train={videos / 'train.csv'}", "--after", recipe, "--out", str(run)),
            *("--train.batch-size-per-device", batch_size, "--train.accum-steps", accum_steps),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        runs.append(run)
    for stage in ("first", "."):
        one, two = (losses(run / stage) for run in runs)
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    first, own = (latest_valid(runs[1] / stage)[1]["model"] for stage in ("first", "."))
    for name in first:
        if ".spatial." in name:
            assert torch.equal(first[name], own[name])
