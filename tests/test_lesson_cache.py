"""What a teacher says is asked once and read ever after: the same bits, and refused where it could be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import onereel
from onereel import api, caching
from onereel.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.doctor import plan_run
from onereel.doctor.arithmetic import Workload
from onereel.errors import ConfigError
from onereel.models.teachers import FeatureRow, OwnTeacher, TeacherFeatures
from onereel.types import SampleKey, TubeletGrid

TINY = RunConfig(
    recipe="tiny",
    # Clips and pictures of other sizes than the teacher's, and every augmentation of single clips.
    data=DataConfig(num_frames=4, size=32, num_workers=0, cache_dtype="float32", cache_views=2),
    augment=AugmentConfig(hflip_prob=0.5, color_jitter=0.2, erase_prob=0.5, randaugment_num_ops=1),
    tokens=TokensConfig(kind="group-dynamic"),
    model=ModelConfig(name="vit_micro_patch8_32", drop_path_rate=0.1),
    objective=ObjectiveConfig(kind="distillation", budgets=(16, 8)),
    distill=DistillConfig(num_layers=2),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(epochs=2, batch_size_per_device=2, log_every=1, save_every=2, num_threads=1),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(6):
        make_video(folder / f"clip{i}.mp4", num_frames=20 + i, height=80, width=96)
    (folder / "labels.csv").write_text(
        "path,label\n" + "".join(f"clip{i}.mp4,{'ab'[i % 2]}\n" for i in range(6))
    )
    return folder


@pytest.fixture(scope="module")
def config(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """With a classifier of other clips for a teacher."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    teacher = RunConfig(
        seed=3,
        data=DataConfig(num_frames=8, size=48, num_workers=0),
        model=ModelConfig(name="vit_micro_patch16_48", pool="cls"),
        train=TrainConfig(epochs=1, batch_size_per_device=2, num_threads=1),
    )
    labels = str(videos / "labels.csv")
    onereel.train(teacher, data=labels, out=run)
    return replace(
        TINY,
        data=replace(TINY.data, train=labels),
        distill=replace(TINY.distill, teacher=str(run)),
    )


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips the teacher is asked about, call by call."""
    calls: list[int] = []
    see = OwnTeacher.see

    def counted(self: OwnTeacher, clips: torch.Tensor, *rest: Any) -> TeacherFeatures:
        calls.append(len(clips))
        return see(self, clips, *rest)

    monkeypatch.setattr(OwnTeacher, "see", counted)
    return calls


@pytest.mark.parametrize("choose", ["ranking", "attention"])
def test_cached_is_online_bit_for_bit(choose: Any, config: RunConfig, tmp_path: Path) -> None:
    tokens = TokensConfig() if choose == "attention" else config.tokens
    distill = replace(config.distill, choose=choose)
    config = replace(config, distill=distill, tokens=tokens)
    onereel.train(config, out=tmp_path / "cached")
    data = replace(config.data, cache_views=0, cache_dtype="float16")
    onereel.train(replace(config, data=data), out=tmp_path / "online")
    assert losses(tmp_path / "cached") == losses(tmp_path / "online")


def test_a_plan_asks_the_teacher_once_per_view(config: RunConfig, tmp_path: Path) -> None:
    """And reads clips in every epoch, with what it said beside them."""
    plan = plan_run(replace(config, train=replace(config.train, epochs=5)))
    assert plan.making is not None
    assert plan.making.workload == Workload(6, 2, 2, 1)
    assert plan.training.workload == Workload(6, 5, 2, 1)
    onereel.train(config, out=tmp_path / "run")
    shards = (tmp_path / "run" / "features").glob("view000-*.safetensors")
    stored = sum(load_file(shard)["values"].nbytes for shard in shards) / 6
    clip = plan.decode.bytes_per_clip or 0
    assert plan.training.rates.bytes_per_clip == pytest.approx(clip + stored)
    assert plan.training.forecast.cpu == plan.making.forecast.cpu
    data = replace(config.data, cache_views=0, cache_dtype="float16")
    online = plan_run(replace(config, data=data))
    assert plan.model.flops_per_clip < online.model.flops_per_clip


def test_later_epochs_see_the_same_views_and_ask_nobody(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, train=replace(config.train, epochs=5))
    with monkeypatch.context() as patch:
        calls = asked(patch)
        onereel.train(config, out=tmp_path / "cached")
    assert sum(calls) == 1 + 2 * 6, "a blank one for the layout, and each view of each clip once"
    with monkeypatch.context() as patch:
        patch.setattr(api, "cached_lessons", lambda *_, **__: None)
        onereel.train(config, out=tmp_path / "online")
    # From epoch K on clips come in other company than when they were asked about, and may round otherwise.
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "online"), abs=1e-4)


def test_in_half_precision_it_is_nearly_the_same(config: RunConfig, tmp_path: Path) -> None:
    onereel.train(config, out=tmp_path / "float32")
    half = replace(config, data=replace(config.data, cache_dtype="float16"))
    onereel.train(half, out=tmp_path / "float16")
    first, second = losses(tmp_path / "float32"), losses(tmp_path / "float16")
    assert first[0] == pytest.approx(second[0], abs=1e-3)
    shards = list((tmp_path / "float16" / "features").glob("*.safetensors"))
    values = [load_file(shard)["values"] for shard in shards]
    layers, final = 2 * (4 * 3 * 3) * 96, 96
    assert {value.dtype for value in values} == {torch.float16}
    assert sum(value.numel() for value in values) == 2 * 6 * (layers + final)


def test_runs_share_a_cache_and_a_resumed_one_finds_it(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(config, data=replace(config.data, cache=str(tmp_path / "cache")))
    onereel.train(shared, out=tmp_path / "first")
    other = replace(shared, model=replace(config.model, drop_path_rate=0.0))
    calls = asked(monkeypatch)
    onereel.train(other, out=tmp_path / "second")
    (tmp_path / "first" / "checkpoints" / "step_00000006.pt").unlink()
    assert api.resume(tmp_path / "first").step == 6
    assert sum(calls) == 2, "each run asks about a blank clip"


def test_a_run_that_replaces_another_keeps_none_of_its_answers(
    config: RunConfig, tmp_path: Path
) -> None:
    config = replace(config, train=replace(config.train, epochs=1))
    run, key = tmp_path / "run", tmp_path / "run" / "features" / "key.json"
    onereel.train(config, out=run)
    onereel.train(replace(config, seed=5), out=run, overwrite=True)
    assert json.loads(key.read_text())["seed"] == 5
    data = replace(config.data, cache_views=0, cache_dtype="float16")
    onereel.train(replace(config, data=data), out=run, overwrite=True)
    assert not key.parent.exists()


@pytest.mark.parametrize(
    ("section", "changes", "name"),
    [
        ("augment", {"hflip_prob": 0.1}, "augment.hflip_prob was 0.5 and is 0.1"),
        ("data", {"crop_scale": (0.1, 1.0)}, "data.crop_scale"),
        ("distill", {"num_layers": 1}, "layers was"),
        ("distill", {"teacher_size": 32}, "teacher was"),
    ],
)
def test_a_changed_key_is_refused_with_the_reason(
    section: str, changes: dict[str, Any], name: str, config: RunConfig, tmp_path: Path
) -> None:
    shared = replace(config, data=replace(config.data, cache=str(tmp_path / "cache")))
    onereel.train(shared, out=tmp_path / "first")
    changed = replace(shared, **{section: replace(getattr(shared, section), **changes)})
    with pytest.raises(ConfigError, match=name):
        onereel.train(changed, out=tmp_path / "second")
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        onereel.train(replace(shared, seed=1), out=tmp_path / "third")


def test_what_would_make_it_wrong_is_refused(config: RunConfig, tmp_path: Path) -> None:
    for changes, message in (
        ({"repeats": 2}, "an epoch reads one view"),
        ({"size_choices": (32, 48)}, "one shape of clip"),
        ({"num_frames_choices": (4, 8)}, "one shape of clip"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, data=replace(config.data, **changes))
    first = tmp_path / "student"
    onereel.train(replace(config, train=replace(config.train, epochs=1)), out=first)
    pool = replace(config.distill, teacher=str(first), pool_budget=20)
    with pytest.raises(ConfigError, match="changes as the student learns"):
        onereel.train(replace(config, distill=pool), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_foreseen(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"of 12 clips take 0\.0 GiB"):
        onereel.train(config, out=tmp_path / "run")


def test_rows_hold_everything() -> None:
    said = TeacherFeatures(
        (torch.randn(2, 6, 3), torch.randn(2, 6, 3)),
        torch.randn(2, 5),
        TubeletGrid(1, 2, 3),
        torch.rand(2, 6),
    )
    for given in (said, said._replace(attention=None), said._replace(layers=())):
        row = FeatureRow.like(given)
        back = row.said(row.rows(given))
        assert back.grid == given.grid
        assert torch.equal(back.final, given.final)
        assert len(back.layers) == len(given.layers)
        assert all(map(torch.equal, back.layers, given.layers))
        assert (back.attention is None) == (given.attention is None)
        assert given.attention is None or torch.equal(back.attention, given.attention)


def test_keys_repeat_after_so_many_epochs() -> None:
    assert SampleKey(7, 3, 1).drawn(3) == SampleKey(1, 3, 1)
    assert SampleKey(7, 3, 1).drawn(0) == SampleKey(7, 3, 1)
