"""Training from cached features, from the outside: it is training without a cache, and survives what runs meet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import onereel
from onereel import api, caching
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
    to_dict,
)
from onereel.data import features as features_module
from onereel.errors import ConfigError, DataError
from onereel.models.factorised import FactorisedEncoder
from onereel.objectives import ClassificationObjective
from onereel.training import list_checkpoints, load_checkpoint

ONLINE = RunConfig(
    recipe="tiny-frozen",
    seed=4,
    data=DataConfig(num_frames=4, size=32, num_workers=0, max_bad_ratio=0.3),
    augment=AugmentConfig(hflip_prob=0.5, color_jitter=0.3, randaugment_num_ops=1, erase_prob=0.5),
    model=ModelConfig(
        name="vit_micro_patch16_32",
        temporal_depth=2,
        frozen="spatial",
        adapter="bottleneck",
        drop_path_rate=0.3,
        head_dropout=0.2,
    ),
    objective=ObjectiveConfig(label_smoothing=0.1),
    optim=OptimConfig(lr=3e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(epochs=3, batch_size_per_device=3, log_every=1, save_every=2, num_threads=1),
)
NUM_STEPS = 9


def with_data(config: RunConfig, **values: Any) -> RunConfig:
    return replace(config, data=replace(config.data, **values))


CACHED = with_data(ONLINE, cache_views=3, cache_dtype="float32")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Eleven videos of two classes in two.csv, so that an epoch leaves two out; some.csv has a broken one as well."""
    folder = tmp_path_factory.mktemp("videos")
    rows = "path,label\n"
    for i in range(11):
        make_video(folder / f"{i}.mp4", num_frames=12 + i, height=48, width=64)
        rows += f"{i}.mp4,{'wave' if i % 2 else 'clap'}\n"
    (folder / "two.csv").write_text(rows)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "some.csv").write_text(rows.replace("3.mp4", "broken.mp4"))
    return folder


@pytest.fixture(scope="module")
def online(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(ONLINE, videos, tmp_path_factory.mktemp("runs") / "online")


def train(config: RunConfig, videos: Path, run: Path, name: str = "two.csv") -> Path:
    onereel.train(config, data=str(videos / name), out=run)
    return run


def curve(run: Path) -> list[dict[str, float]]:
    names = ("step", "epoch", "loss", "top1", "grad_norm", "num_failed")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{n: line[n] for n in names} for line in lines if line["kind"] == "train"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(run)[-1])["model"]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert len(curve(one)) == NUM_STEPS
    assert curve(one) == curve(other)
    own, others = weights(one), weights(other)
    assert all(torch.equal(own[name], others[name]) for name in own)


def test_float32_is_bit_equal_to_training_without_a_cache(
    videos: Path, online: Path, tmp_path: Path
) -> None:
    """Views, jitter, erasing, drop path, dropout: all of it; and later epochs never see the last batch's remainder."""
    assert_equal_runs(train(CACHED, videos, tmp_path / "cached"), online)
    features = tmp_path / "cached" / "features"
    assert {p.name[:7] for p in features.glob("*.safetensors")} == {"view000", "view001", "view002"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_near(videos: Path, online: Path, tmp_path: Path, dtype: str) -> None:
    config = with_data(CACHED, cache_dtype=dtype)
    cached = curve(train(config, videos, tmp_path / "cached"))
    bound = {"float16": 1e-3, "bfloat16": 1e-2}[dtype]
    for ours, theirs in zip(cached, curve(online), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=bound)
    assert cached != curve(online)


def test_later_epochs_touch_neither_decoder_nor_spatial_half(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "features")
    config = with_data(CACHED, cache_views=2, cache=folder)
    train(config, videos, tmp_path / "first")

    def forbidden(*args: Any, **options: Any) -> None:
        raise AssertionError("decoded or encoded again")

    monkeypatch.setattr("onereel.video.raw.RawVideos.read", forbidden)
    monkeypatch.setattr(FactorisedEncoder, "frame_features", forbidden)
    monkeypatch.setattr("onereel.api.try_report", lambda *args: None)
    assert_equal_runs(train(config, videos, tmp_path / "second"), tmp_path / "first")
    other_head = replace(config, model=replace(config.model, adapter="none", temporal_depth=1))
    train(other_head, videos, tmp_path / "third")


def test_epochs_past_the_views_read_them_again(videos: Path, online: Path, tmp_path: Path) -> None:
    """One view: the first epoch is that without a cache, the second is not."""
    cached = curve(train(with_data(CACHED, cache_views=1), videos, tmp_path / "cached"))
    assert cached[:3] == curve(online)[:3]
    assert all(ours != theirs for ours, theirs in zip(cached[3:], curve(online)[3:]))


def test_views_that_no_epoch_reads_are_not_made(videos: Path, tmp_path: Path) -> None:
    """A longer run, which reads more of them, adds what it lacks."""
    config = with_data(CACHED, cache_views=4, cache=str(tmp_path / "features"))
    views = []
    for epochs in (1, 2):
        longer = replace(config, train=replace(config.train, epochs=epochs))
        train(longer, videos, tmp_path / f"{epochs} epochs")
        views.append({p.name[:7] for p in (tmp_path / "features").glob("*.safetensors")})
    assert views == [{"view000"}, {"view000", "view001"}]


def test_workers_read_clips_and_features(videos: Path, online: Path, tmp_path: Path) -> None:
    """Two processes decode, one of the two reads features later on: the same bits."""
    config = with_data(CACHED, num_workers=2, cache_views=1)
    config = replace(config, train=replace(config.train, epochs=1))
    first_epoch = [{**line, "lr": 0} for line in curve(online)[:3]]
    cached = curve(train(config, videos, tmp_path / "cached"))
    assert [{**line, "lr": 0} for line in cached] == first_epoch


def test_captions_come_along(videos: Path, tmp_path: Path) -> None:
    """A video-language run over frozen frames, in two micro-batches per step: the same losses."""
    pytest.importorskip("transformers", reason="needs onereel[text]")
    rows = [f"{i}.mp4,someone waves {'both hands' * (i % 3)} {i}\n" for i in range(11)]
    (videos / "captions.csv").write_text("path,caption\n" + "".join(rows))
    pairs = replace(
        ONLINE,
        objective=ObjectiveConfig(kind="contrastive"),
        text=TextConfig(size="micro", embed_dim=16, context_length=12),
        train=replace(ONLINE.train, epochs=2, accum_steps=2, batch_size_per_device=2),
        model=replace(ONLINE.model, head_dropout=0.0),
    )
    cached = with_data(pairs, cache_views=2, cache_dtype="float32")
    found = [
        [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]
        for run in (
            train(config, videos, tmp_path / name, "captions.csv")
            for name, config in (("online", pairs), ("cached", cached))
        )
    ]
    assert len(found[0]) == 4
    assert found[0] == found[1]


@pytest.mark.gpu
def test_on_a_gpu_it_is_training_without_a_cache_within_rounding(
    videos: Path, tmp_path: Path
) -> None:
    for precision, dtype, bound in (("float32", "float32", 1e-4), ("bf16", "float16", 2e-2)):
        settings = replace(ONLINE.train, device="cuda", precision=precision, epochs=1)
        plain = replace(ONLINE, train=settings)
        cached = with_data(plain, cache_views=1, cache_dtype=dtype)
        runs = [
            curve(train(config, videos, tmp_path / f"{precision} {name}"))
            for name, config in (("online", plain), ("cached", cached))
        ]
        for one, other in zip(*runs, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=bound)


@pytest.mark.slow
def test_a_run_that_was_killed_twice_on_the_command_line(
    videos: Path, online: Path, tmp_path: Path
) -> None:
    """SIGKILL while features are made, and again in training; `--resume` needs nothing else."""
    run, recipe = tmp_path / "run", tmp_path / "mine.py"
    values = repr(to_dict(with_data(CACHED, train=str(videos / "two.csv"))))
    recipe.write_text(
        "from onereel.config import RunConfig, from_dict\n"
        "from onereel.data import features\n"
        "features.SHARD_BYTES = 1\n"
        f"def recipe():\n    return from_dict(RunConfig, {values})\n"
    )
    start = ["train", str(recipe), "--out", str(run)]
    shards, checkpoints = "features/*.safetensors", "checkpoints/step_*.pt"
    kill_once(start, lambda: len(list(run.glob(shards))) >= 3)
    kill_once(["train", "--resume", str(run)], lambda: any(run.glob(checkpoints)))
    command(["train", "--resume", str(run)]).wait(timeout=120)
    assert_equal_runs(run, online)


def command(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "onereel.cli", *arguments], env=environment)


def kill_once(arguments: list[str], when: Callable[[], bool]) -> None:
    """Start `onereel` and kill it as soon as `when()` holds."""
    process = command(arguments)
    deadline = time.monotonic() + 120
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert when()
    process.kill()
    process.wait()


class PowerCutError(Exception):
    pass


def test_killed_while_features_are_made_and_resumed(
    videos: Path, online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made twice, and the run is the one that was never killed."""
    run, encoded = tmp_path / "broken", []
    make = caching._Maker._encoded

    def counted(self: Any, batch: Any) -> Any:
        if len(encoded) == 6:
            encoded.append([])
            raise PowerCutError
        encoded.append([(key.epoch, key.index) for key in batch.keys])
        return make(self, batch)

    monkeypatch.setattr(caching._Maker, "_encoded", counted)
    monkeypatch.setattr(features_module, "SHARD_BYTES", 1)
    with pytest.raises(PowerCutError):
        train(CACHED, videos, run)
    api.resume(run)
    made = [clip for batch in encoded for clip in batch]
    assert len(made) == len(set(made)) == 3 * 11
    assert_equal_runs(run, online)


def test_killed_in_training_and_resumed(
    videos: Path, online: Path, tmp_path: Path, dying: Callable[..., Any]
) -> None:
    run = tmp_path / "broken"
    with dying(ClassificationObjective, 6, PowerCutError), pytest.raises(PowerCutError):
        train(CACHED, videos, run)
    made = {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()}
    api.resume(run)
    assert {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()} == made
    assert_equal_runs(run, online)


def test_a_broken_video_is_left_out_and_named(videos: Path, tmp_path: Path) -> None:
    plain = train(ONLINE, videos, tmp_path / "online", "some.csv")
    cached = train(CACHED, videos, tmp_path / "cached", "some.csv")
    assert sum(line["num_failed"] for line in curve(cached)) > 0
    assert_equal_runs(cached, plain)
    for file in (cached / "quarantine.csv", cached / "features" / "quarantine.csv"):
        lines = file.read_text().splitlines()[1:]
        assert lines
        assert all(line.startswith("broken.mp4,") for line in lines)
    strict = with_data(CACHED, max_bad_ratio=0.0)
    with pytest.raises(DataError, match=r"broken\.mp4"):
        train(strict, videos, tmp_path / "strict", "some.csv")


@pytest.mark.parametrize(
    "tokens",
    [
        TokensConfig(kind="random", keep_ratio=0.5),
        TokensConfig(kind="run-length", threshold=0.5),
        TokensConfig(kind="redundancy", keep_ratio=0.5),
        TokensConfig(kind="random", keep_ratio=0.5, frame_selection=1.5),
        TokensConfig(kind="run-length", threshold=0.5, where="loader"),
    ],
    ids=["random", "run-length", "redundancy", "frames", "loader"],
)
def test_selected_tokens_are_cached_too(videos: Path, tmp_path: Path, tokens: TokensConfig) -> None:
    """A frame may have no token, and then no feature: clips have features of some frames only."""
    short = replace(ONLINE, tokens=tokens, train=replace(ONLINE.train, epochs=1))
    model = replace(short.model, name="vit_micro_patch8_32")
    plain = replace(short, model=model, augment=AugmentConfig())
    run = train(plain, videos, tmp_path / "online")
    cached = train(
        with_data(plain, cache_views=1, cache_dtype="float32"), videos, tmp_path / "cached"
    )
    assert [line["loss"] for line in curve(cached)] == [line["loss"] for line in curve(run)]


def test_the_layers_below_are_cached_for_their_adapter(videos: Path, tmp_path: Path) -> None:
    fused = replace(ONLINE, model=replace(ONLINE.model, adapter="fusion"))
    fused = replace(fused, train=replace(fused.train, epochs=1))
    run = train(fused, videos, tmp_path / "online")
    config = with_data(fused, cache_views=1, cache_dtype="float32", cache=str(tmp_path / "f"))
    cached = train(config, videos, tmp_path / "cached")
    assert [line["loss"] for line in curve(cached)] == [line["loss"] for line in curve(run)]
    narrow = replace(config, model=replace(config.model, adapter="none"))
    with pytest.raises(ConfigError, match="layers of it was 4 and is 1"):
        train(narrow, videos, tmp_path / "narrow")


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def features(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache of one view."""
    folder = tmp_path_factory.mktemp("runs") / "features"
    short = replace(CACHED, train=replace(CACHED.train, epochs=1))
    train(with_data(short, cache_views=1, cache=str(folder)), videos, folder.parent / "run")
    return folder


@pytest.mark.parametrize(
    ("section", "change", "reason"),
    [
        ("data", {"num_frames": 8}, r"data\.num_frames was 4 and is 8"),
        ("data", {"crop_scale": (0.9, 1.0)}, r"data\.crop_scale was \[0\.5, 1\.0\]"),
        ("data", {"cache_dtype": "float16"}, r"data\.cache_dtype was 'float32' and is 'float16'"),
        ("augment", {"hflip_prob": 0.0}, r"augment\.hflip_prob was 0\.5 and is 0\.0"),
        ("tokens", {"kind": "random"}, r"tokens\.kind was 'all' and is 'random'"),
        ("model", {"qk_norm": True}, r"model\.qk_norm .*weights of the spatial half was"),
        ("train", {"precision": "bf16"}, r"precision was 'float32' and is 'bfloat16'"),
    ],
)
def test_other_features_are_refused_with_the_reason(
    videos: Path, features: Path, tmp_path: Path, section: str, change: dict[str, Any], reason: str
) -> None:
    config = with_data(CACHED, cache_views=1, cache=str(features))
    config = replace(config, **{section: replace(getattr(config, section), **change)})
    with pytest.raises(ConfigError, match=reason):
        train(config, videos, tmp_path / "run")


def test_other_weights_seeds_and_lists_are_refused(
    videos: Path, features: Path, tmp_path: Path
) -> None:
    config = with_data(CACHED, cache_views=1, cache=str(features))
    with pytest.raises(ConfigError, match="seed was 4 and is 5; weights of the spatial half was"):
        train(replace(config, seed=5), videos, tmp_path / "run")
    with pytest.raises(ConfigError, match="list was '11 records, "):
        train(config, videos, tmp_path / "run2", "some.csv")


def test_other_features_are_refused_before_the_run_there_is_replaced(
    videos: Path, online: Path, features: Path, tmp_path: Path
) -> None:
    """With a first stage, as far as its weights are not needed to tell."""
    run = shutil.copytree(online, tmp_path / "run")
    config = with_data(CACHED, cache_views=1, cache=str(features))
    data = str(videos / "two.csv")
    with pytest.raises(ConfigError, match="seed was 4 and is 5"):
        onereel.train(replace(config, seed=5), data=data, out=run, overwrite=True)
    longer = replace(with_data(config, num_frames=8), after=first_stage_recipe(tmp_path))
    with pytest.raises(ConfigError, match=r"another run: data\.num_frames was 4 and is 8\. "):
        onereel.train(longer, data=data, out=run, overwrite=True)
    assert curve(run) == curve(online)
    assert weights(run).keys() == weights(online).keys()


def test_a_new_run_removes_the_features_of_the_one_it_replaces(
    videos: Path, online: Path, tmp_path: Path
) -> None:
    """Those in its own folder, that is, and only if they don't fit."""
    data, run = str(videos / "two.csv"), tmp_path / "run"
    short = replace(CACHED, train=replace(CACHED.train, epochs=1))
    one_view = with_data(short, cache_views=1)
    train(one_view, videos, run)
    kept = {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()}
    onereel.train(one_view, data=data, out=run, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()} == kept
    onereel.train(replace(one_view, seed=5), data=data, out=run, overwrite=True)
    assert json.loads((run / "features" / "key.json").read_text())["seed"] == 5


def test_a_run_without_a_cache_removes_the_features_of_the_one_it_replaces(
    videos: Path, tmp_path: Path
) -> None:
    """What onereel wrote there, that is; not where this run reads them, nor where they have a folder of their own."""
    data, run = str(videos / "two.csv"), tmp_path / "run"
    plain = replace(ONLINE, train=replace(ONLINE.train, epochs=1))
    named = {"cache": str(run / "features")}
    for kept in (with_data(plain, cache_views=1), with_data(plain, cache_views=1, **named)):
        onereel.train(kept, data=data, out=run, overwrite=True)
        assert list((run / "features").glob("view*.safetensors"))
    elsewhere = with_data(plain, cache_views=1, cache=str(tmp_path / "own"))
    (run / "features" / ".lock").touch()
    (run / "features" / ".view000-000-00001.safetensors.partial").touch()
    onereel.train(elsewhere, data=data, out=run, overwrite=True)
    assert not (run / "features").exists()
    assert list((tmp_path / "own").glob("*.safetensors"))
    onereel.train(with_data(plain, cache_views=1), data=data, out=run, overwrite=True)
    (run / "features" / "notes.txt").touch()
    onereel.train(plain, data=data, out=run, overwrite=True)
    assert [path.name for path in (run / "features").iterdir()] == ["notes.txt"]
    assert list((tmp_path / "own").glob("*.safetensors"))


def first_stage_recipe(folder: Path) -> str:
    """A file with the run that trains what is frozen afterwards."""
    values = to_dict(replace(ONLINE, model=replace(ONLINE.model, frozen="none", adapter="none")))
    values["train"]["epochs"] = 1
    path = folder / "first.py"
    path.write_text(
        "from onereel.config import RunConfig, from_dict\n"
        f"def recipe():\n    return from_dict(RunConfig, {values})\n"
    )
    return str(path)


def test_the_second_of_two_stages_may_be_cached(videos: Path, tmp_path: Path) -> None:
    """Its frozen half is what the first stage made of it."""
    recipe = first_stage_recipe(tmp_path)
    run = train(replace(ONLINE, after=recipe), videos, tmp_path / "online")
    cached = train(replace(CACHED, after=recipe), videos, tmp_path / "cached")
    assert_equal_runs(cached, run)


def test_a_disk_that_is_too_small_is_said_before_hours_of_work(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ConfigError, match=r"features of 33 clips take 0\.0 GiB, .* lower data"):
        train(CACHED, videos, tmp_path / "run")


def test_labels_may_change(videos: Path, features: Path, tmp_path: Path) -> None:
    """They are the list's, and no part of what is cached."""
    rows = (videos / "two.csv").read_text().replace("wave", "jump")
    (videos / "renamed.csv").write_text(rows)
    config = with_data(CACHED, cache_views=1, cache=str(features))
    config = replace(config, train=replace(config.train, epochs=1))
    train(config, videos, tmp_path / "run", "renamed.csv")


def test_mixup_of_features(videos: Path, online: Path, tmp_path: Path) -> None:
    """It learns from mixed labels; clips, partners and shares are those of pixel mixup."""
    mixed = replace(CACHED, augment=replace(CACHED.augment, mixup_alpha=0.8))
    losses = [line["loss"] for line in curve(train(mixed, videos, tmp_path / "mixed"))]
    assert len(losses) == NUM_STEPS
    assert losses != [line["loss"] for line in curve(online)]


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"frozen": "none"}, "set model.frozen to spatial"),
        ("model", {"adapter": "attention-pool"}, "200 times the disk"),
        ("augment", {"cutmix_alpha": 1.0}, "no pixels to paste; use mixup_alpha"),
        ("data", {"repeats": 2}, "data.repeats is 2; allowed with data.cache_views: 1"),
        ("data", {"num_frames_choices": (2, 4)}, "features are of one shape of clip"),
        ("objective", {"budgets": (4, 2)}, "tokens are kept before features are made"),
        ("data", {"cache_views": 0}, "data.cache_dtype is 'float32', but nothing is cached"),
        ("data", {"cache_views": -1}, "data.cache_views is -1"),
    ],
)
def test_what_cannot_be_cached_is_said(section: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        replace(CACHED, **{section: replace(getattr(CACHED, section), **change)})


def test_mixup_of_features_needs_all_frames() -> None:
    mixed = replace(CACHED, augment=AugmentConfig(mixup_alpha=0.8))
    with pytest.raises(ConfigError, match="the same frames of both clips"):
        replace(mixed, tokens=TokensConfig(kind="random"))
    with pytest.raises(ConfigError, match="the same frames of both clips"):
        replace(mixed, tokens=TokensConfig(frame_selection=1.5))
