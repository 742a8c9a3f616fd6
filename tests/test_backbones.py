"""Runs whose spatial half is an image transformer of transformers: trained, cached, saved, loaded, and refused."""

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
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.errors import ConfigError
from onereel.models.factorised import FactorisedEncoder
from onereel.tuning import with_budget

transformers = pytest.importorskip("transformers", reason="needs onereel[text]")

HALF = (0.5, 0.5, 0.5)
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 without a processor, and a SigLIP vision tower that says which pixels it knows."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(2)
    transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE)).save_pretrained(folder / "dinov2")
    siglip = transformers.SiglipVisionConfig(**SHAPE, intermediate_size=64)
    transformers.SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
    processor = {"image_mean": HALF, "image_std": HALF}
    (folder / "siglip" / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    rows = "path,label\n"
    for i in range(6):
        make_video(folder / f"{i}.mp4", num_frames=12, height=48, width=64)
        rows += f"{i}.mp4,{'wave' if i % 2 else 'clap'}\n"
    (folder / "list.csv").write_text(rows)
    return folder


def config_for(folder: Path, **model: Any) -> RunConfig:
    """Frames of 48 pixels, for a backbone that was trained on 32."""
    return RunConfig(
        recipe="tiny-backbone",
        data=DataConfig(num_frames=4, size=48, num_workers=0),
        augment=AugmentConfig(hflip_prob=0.5),
        model=ModelConfig(
            **{
                "name": "vit_micro_patch8_48",
                "backbone": str(folder),
                "tubelet_size": 1,
                "temporal_depth": 2,
                "frozen": "spatial",
                "adapter": "bottleneck",
                **model,
            }
        ),
        optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=0),
        train=TrainConfig(epochs=2, batch_size_per_device=3, log_every=1, num_threads=1),
    )


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_a_run_from_end_to_end(backbones: Path, videos: Path, tmp_path: Path) -> None:
    """Trained, tested, loaded, used; cached it is the same, and the backbone keeps its bytes."""
    config = config_for(backbones / "dinov2")
    lists = {"data": str(videos / "list.csv"), "val": str(videos / "list.csv")}
    onereel.train(config, **lists, out=tmp_path / "online")
    cached = replace(config, data=replace(config.data, cache_views=2, cache_dtype="float32"))
    onereel.train(cached, **lists, out=tmp_path / "cached")
    assert len(losses(tmp_path / "online")) == 4
    assert losses(tmp_path / "cached") == losses(tmp_path / "online")
    loaded = onereel.load(tmp_path / "cached")
    original = transformers.AutoModel.from_pretrained(backbones / "dinov2", dtype=torch.float32)
    spatial = loaded.model.encoder.spatial.model.state_dict()
    assert all(torch.equal(spatial[name], value) for name, value in original.state_dict().items())
    (answer,) = onereel.predict(tmp_path / "cached", [videos / "0.mp4"])
    assert set(answer.labels) == {"clap", "wave"}
    again = loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(onereel.load(again).model.head.fc.weight, loaded.model.head.fc.weight)


def test_a_run_on_more_frames_starts_from_one_on_few(
    backbones: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same backbone: its temporal half is taken, and its places in time are interpolated."""
    few = config_for(backbones / "dinov2", positions="learned")
    data = str(videos / "list.csv")
    onereel.train(few, data=data, out=tmp_path / "few")
    more = config_for(backbones / "dinov2", positions="learned", pretrained=str(tmp_path / "few"))
    more = replace(more, data=replace(more.data, num_frames=8))
    onereel.train(more, data=data, out=tmp_path / "more")
    assert "encoder.temporal.pos_embed: interpolated from 4 to 8" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dinov2", "siglip"])
@pytest.mark.parametrize(
    "adapter", ["none", "bottleneck", "temporal-conv", "attention-pool", "fusion"]
)
def test_every_adapter_stands_on_it(backbones: Path, name: str, adapter: str) -> None:
    """Of zero effect at first, and only what comes after the backbone learns; micro-batches change nothing."""
    config = config_for(backbones / name, adapter=adapter)
    if name == "siglip":
        config = replace(config, augment=AugmentConfig(mean=HALF, std=HALF))
    model = build.build_model(config, 3).train()
    encoder = model.encoder
    assert isinstance(encoder, FactorisedEncoder)
    clips = torch.randn(2, 4, 3, 48, 48)
    frames = encoder.spatial.model.eval()(
        clips.flatten(0, 1), interpolate_pos_encoding=True
    ).pooler_output
    features = model.frame_features(clips)
    torch.testing.assert_close(features.values[:, :64], frames, rtol=0, atol=1e-5)
    seen = features if encoder.adapter is None else encoder.adapter(features)
    if encoder.adapter is not None:
        torch.testing.assert_close(seen, features.values[:, :64], rtol=0, atol=0)
    encoder.frames_at_once = 3
    torch.testing.assert_close(model.frame_features(clips).values, features.values)
    model(clips).logits.sum().backward()
    learning = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learning
    assert not any(".spatial." in n for n in learning)


def test_its_temporal_half_is_as_wide_as_it(backbones: Path) -> None:
    """The name says the patch size alone: `micro` is 96 wide, this backbone 64."""
    model = build.build_model(config_for(backbones / "dinov2"), 3)
    assert (model.encoder.embed_dim, model.encoder.depth) == (64, 6)
    per_frame = model.encoder.spatial.macs_per_frame
    lengths = (4 * 36,) * 2
    assert model.macs(lengths) - 8 * per_frame == model.encoder.temporal_macs((4, 4), 288) + 2 * 192


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "vit_micro_patch16_48"}, "set model.name to vit_micro_patch8_48"),
        ({"frozen": "none"}, "set model.frozen to 'spatial'"),
        ({"tubelet_size": 2}, "set model.tubelet_size to 1"),
        ({"temporal_depth": 0}, "only a factorised encoder knows"),
        ({"patch_norm": True}, "set model.patch_norm to False"),
        ({"backbone": "absent/"}, "absent/ is not there"),
    ],
)
def test_what_does_not_fit_is_said(backbones: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build.build_model(config_for(backbones / "dinov2", **change), 3)


def test_tokens_are_not_selected_in_front_of_it(backbones: Path) -> None:
    with pytest.raises(ConfigError, match=r"sees whole single frames; set tokens\.kind to 'all'"):
        replace(config_for(backbones / "dinov2"), tokens=TokensConfig(kind="run-length"))


def test_its_run_takes_no_budget_of_tokens_and_says_what_to_do(
    backbones: Path, videos: Path, tmp_path: Path
) -> None:
    listed, run = str(videos / "list.csv"), tmp_path / "run"
    config = config_for(backbones / "dinov2", frames_at_once=4)
    config = replace(config, train=replace(config.train, epochs=1))
    onereel.train(config, data=listed, out=run)
    says = r"model\.backbone is .*dinov2, which sees whole frames .*allowed: models without a backbone.*onereel eval"
    with pytest.raises(ConfigError, match=says):
        onereel.tune_budget(run, val=listed)
    with pytest.raises(ConfigError, match=says):
        with_budget(run, onereel.load(run), 8)
    assert not (run / "budgets.json").exists()
    data = replace(api.run_config(run).data, val=listed, num_frames=8, size=32)
    more = replace(api.run_config(run), data=data)
    assert api.evaluate(run, name="frames8", config=more, device="cpu").num_videos == 6


def test_pixels_of_another_scale_are_refused_with_the_right_ones(backbones: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--augment\.mean 0\.5 0\.5 0\.5 --augment\.std 0\.5 0\.5 0\.5"
    ):
        build.build_model(config_for(backbones / "siglip"), 3)


def test_weights_for_another_spatial_half_are_refused(
    backbones: Path, videos: Path, tmp_path: Path
) -> None:
    config = config_for(backbones / "dinov2", pretrained=str(backbones / "siglip"))
    with pytest.raises(ConfigError, match="allowed beside it: a run of onereel"):
        onereel.train(config, data=str(videos / "list.csv"), out=tmp_path / "run")
