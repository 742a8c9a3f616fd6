"""Flexible sampling and several budgets from the outside: trained, interrupted, resumed, on two processes, tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
    to_json,
)
from onereel.errors import ConfigError
from onereel.fitting import to_start_from
from onereel.models.pretrained import load_converted
from onereel.objectives import MultiBudgetObjective
from onereel.training import RunInterrupted, list_checkpoints, load_checkpoint

FLUX = RunConfig(
    recipe="tiny-flux",
    data=DataConfig(
        num_frames=8,
        size=32,
        num_workers=0,
        num_frames_choices=(4, 8, 12),
        size_choices=(16, 32, 48),
        token_window=(12, 64),
    ),
    augment=AugmentConfig(hflip_prob=0.5, erase_prob=0.5),
    tokens=TokensConfig(kind="group-dynamic", token_budget=16),
    model=ModelConfig(name="vit_micro_patch8_32", drop_path_rate=0.1),
    objective=ObjectiveConfig(budgets=(32, 16, 8), budgets_per_step=2),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(
        epochs=3,
        batch_size_per_device=2,
        log_every=1,
        save_every=2,
        num_threads=1,
        device="cpu",
    ),
    eval=EvalConfig(batch_size_per_device=4),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Eight videos, and lists of them with labels and with captions."""
    folder = tmp_path_factory.mktemp("videos")
    names = [f"clip{i}.mp4" for i in range(8)]
    for name in names:
        make_video(folder / name, num_frames=16, height=64, width=80)
    rows = [f"{name},{'wave' if i % 2 else 'clap'}\n" for i, name in enumerate(names)]
    (folder / "labels.csv").write_text("path,label\n" + "".join(rows))
    rows = [f"{name},hand number {i} moves\n" for i, name in enumerate(names)]
    (folder / "captions.csv").write_text("path,caption\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "flux"
    labels = str(videos / "labels.csv")
    onereel.train(FLUX, data=labels, val=labels, out=run)
    return run


def numbers(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    names = ("loss", "top1", "top1_smallest", "alignment", "kept_ratio", "grad_norm")
    return [{n: line[n] for n in names} for line in lines if line["kind"] == "train"]


def test_a_run_logs_every_budgets_figures(trained: Path) -> None:
    steps = numbers(trained)
    assert len(steps) == 12
    assert all(step["loss"] > 0 and step["alignment"] > -1e-5 for step in steps)
    assert len({step["kept_ratio"] for step in steps}) > 3, "shapes and budgets differ"
    assert (trained / "report.html").exists()


def test_interrupted_and_resumed_it_is_the_same_to_the_bit(
    videos: Path, trained: Path, tmp_path: Path, dying: Callable[..., Any]
) -> None:
    """Killed after step 7, of which step 6 was saved: shapes, budgets and weights go on as they would have."""
    with (
        dying(MultiBudgetObjective, 8, KeyboardInterrupt),
        pytest.raises((KeyboardInterrupt, RunInterrupted)),
    ):
        onereel.train(FLUX, data=str(videos / "labels.csv"), out=tmp_path / "run")
    api.resume(tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(trained)
    ends = [load_checkpoint(list_checkpoints(r)[-1])["model"] for r in (tmp_path / "run", trained)]
    assert all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_it_is_tested_at_any_budget_with_the_nearest_head(videos: Path, trained: Path) -> None:
    """Each budget has its own head; all tokens, and a share of a larger grid, take the nearest."""
    model = onereel.load(trained).model.eval()
    clips = torch.randn(2, 8, 3, 32, 32)
    for budget, number in ((16, 1), (8, 2), (32, 0)):
        output = model(clips, budget=budget)
        assert torch.equal(output.logits, model.head.heads[number](output.features))
    config = api.run_config(trained)
    for tokens, frames in (
        (TokensConfig(kind="group-dynamic", token_budget=8), 8),
        (TokensConfig(kind="random", token_budget=16), 12),
        (TokensConfig(kind="all"), 8),
    ):
        data = replace(config.data, num_frames=frames)
        tested = replace(config, tokens=tokens, data=data)
        result = api.evaluate(trained, name="other", config=tested, device="cpu")
        assert result.num_videos == 8


def test_one_head_starts_several_and_several_start_one(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    labels = str(videos / "labels.csv")
    still = replace(FLUX.optim, lr=0.0, min_lr=0.0, warmup_lr=0.0)
    once = replace(FLUX.train, epochs=1)

    def tuned(start: Path, name: str, **more: Any) -> Any:
        model = replace(FLUX.model, pretrained=str(start), fc_norm=True, keep_head=True)
        config = replace(FLUX, model=model, optim=still, train=once, **more)
        onereel.train(config, data=labels, out=tmp_path / name)
        return onereel.load(tmp_path / name).model

    many = onereel.load(trained).model.head.heads
    one = tuned(trained, "one", objective=ObjectiveConfig())
    assert torch.equal(one.head.fc.weight, many[0].fc.weight)
    three = tuned(tmp_path / "one", "three")
    for head in three.head.heads:
        assert torch.equal(head.fc.weight, one.head.fc.weight)
        assert torch.equal(head.norm.weight, one.head.norm.weight)


@pytest.mark.parametrize("count", [2, 4])
def test_heads_go_to_those_of_the_same_place_from_the_largest_on(count: int) -> None:
    def model(budgets: tuple[int, ...]) -> Any:
        learned = replace(FLUX.objective, budgets=budgets, budgets_per_step=0)
        return build.build_model(replace(FLUX, objective=learned), 3)

    start, target = model((8, 6, 4)), model((8, 6, 4, 2)[:count])
    tensors = start.state_dict()
    for number, head in enumerate(start.head.heads):
        torch.nn.init.constant_(head.fc.weight, number)
    found = to_start_from(start.state_dict(), target)
    report = load_converted(target, found, source="there", keep_head=True)
    assert [head.fc.weight.unique().tolist() for head in target.head.heads] == [
        [float(min(number, 2))] for number in range(count)
    ]
    left_out = {name for name in tensors if name.startswith("head.heads.2.")}
    assert set(report.left_out) == (left_out if count == 2 else set())


@pytest.mark.parametrize("kind", ["masked", "contrastive"])
def test_pretraining_takes_flexible_clips_and_budgets(
    kind: str, videos: Path, tmp_path: Path
) -> None:
    """One budget per micro-batch, and several micro-batches of other shapes in a step."""
    learned = {
        "masked": ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.5, budgets=(24, 12)),
        "contrastive": ObjectiveConfig(kind="contrastive", budgets=(24, 12)),
    }
    config = replace(
        FLUX,
        augment=AugmentConfig(hflip_prob=0.0),
        objective=learned[kind],
        text=TextConfig(size="micro", context_length=16, vocab_size=258, embed_dim=32),
        train=replace(FLUX.train, epochs=2, accum_steps=2),
    )
    lists = str(videos / "captions.csv")
    result = onereel.train(config, data=lists, val=lists, out=tmp_path / "run")
    assert result.step == 4
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert all(line["loss"] > 0 for line in lines if line["kind"] == "train")


def test_run_length_in_the_loader_meets_flexible_clips_and_a_token_cap(
    videos: Path, tmp_path: Path
) -> None:
    config = replace(
        FLUX,
        augment=AugmentConfig(hflip_prob=0.5),
        tokens=TokensConfig(kind="run-length", threshold=0.3, where="loader"),
        objective=ObjectiveConfig(),
        train=replace(FLUX.train, epochs=1, max_tokens_per_device=80),
    )
    labels = str(videos / "labels.csv")
    assert onereel.train(config, data=labels, out=tmp_path / "run").step == 4
    short = replace(config, train=replace(config.train, max_tokens_per_device=40))
    with pytest.raises(ConfigError, match="one clip may keep 64 tokens"):
        onereel.train(short, data=labels, out=tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"token_window": (65, 70)}}, "widen the window"),
        ({"data": {"num_frames_choices": (7, 8)}}, "num_frames 7 is not a multiple"),
        ({"data": {"size_choices": (36,)}}, "36 is not a multiple of patch_size 8"),
        ({"tokens": {"budget": "quantile"}}, "exact counts"),
        ({"tokens": {"kind": "all"}}, "doesn't rank"),
        (
            {
                "data": {"num_frames_choices": (4,), "size_choices": (32,), "token_window": (0, 0)},
                "objective": {"budgets": (64, 32, 16)},
            },
            "begin with 64 and 32 tokens, and clips have 32 at most",
        ),
        (
            {
                "objective": {
                    "kind": "masked",
                    "mask": "random",
                    "budgets": (32, 4),
                    "budgets_per_step": 0,
                }
            },
            "shows none of the 4 tokens",
        ),
        (
            {
                "data": {"token_window": (0, 64)},
                "objective": {"budgets": (), "budgets_per_step": 0},
            },
            "token_budget is 16, but a clip of .* has 8",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_read(
    changes: dict[str, Any], message: str, videos: Path, tmp_path: Path
) -> None:
    config = FLUX
    for section, values in changes.items():
        config = replace(config, **{section: replace(getattr(config, section), **values)})
    with pytest.raises(ConfigError, match=message):
        onereel.train(config, data=str(videos / "labels.csv"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_switched_off_it_is_not_there() -> None:
    """One shape and one budget of all tokens are a run without either, weights and first loss to the bit."""
    plain = RunConfig(data=DataConfig(num_frames=8, size=32), model=FLUX.model)
    one = replace(
        plain,
        data=replace(plain.data, num_frames_choices=(8,), size_choices=(32,)),
        objective=ObjectiveConfig(budgets=(64,)),
        tokens=TokensConfig(kind="group-dynamic", token_budget=64),
    )
    assert build.train_shapes(plain) == build.train_shapes(one)
    models = [build.build_model(config, 4) for config in (plain, one)]
    clips = torch.randn(2, 8, 3, 32, 32)
    outputs = [model.eval()(clips).logits for model in models]
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_clips(videos: Path, tmp_path: Path) -> None:
    """Heads rest on all processes at once; one process with the whole batch takes the same steps."""
    train = replace(FLUX.train, precision="float32")
    lists = replace(FLUX.data, train=str(videos / "labels.csv"))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher, batch in (("one", [], 4), ("two", torchrun, 2)):
        config = replace(FLUX, data=lists, train=replace(train, batch_size_per_device=batch))
        recipe = tmp_path / f"{name}.py"
        recipe.write_text(
            "from onereel.config import from_json\n\n\ndef recipe():\n"
            f"    return from_json({to_json(config)!r})\n"
        )
        arguments = ["-m", "onereel.cli", "train", str(recipe), "--out", str(tmp_path / name)]
        done = subprocess.run(
            [sys.executable, *launcher, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert len(one) == 6
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
