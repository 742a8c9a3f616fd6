"""Image ViTs in: on a clip of one tubelet that stands still, ours gives what the image model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from onereel import loading
from onereel.config import ModelConfig, RunConfig
from onereel.errors import ConfigError
from onereel.models.pretrained.convert import inflate, split_class_position, spread_positions
from onereel.models.video_model import VideoModel
from onereel.types import TubeletGrid

TOLERANCE = 1e-4


def vit(foreign: Any, size: int = 48, **options: Any) -> Any:
    config = transformers.ViTConfig(**foreign.SIZES, image_size=size, **options)
    return foreign.perturbed(transformers.ViTForImageClassification(config))


def dinov2(foreign: Any, size: int = 48) -> Any:
    sizes = {name: value for name, value in foreign.SIZES.items() if name != "intermediate_size"}
    config = transformers.Dinov2Config(**sizes, image_size=size, layerscale_value=0.3)
    return foreign.perturbed(transformers.Dinov2Model(config))


def one_tubelet(foreign: Any, **options: Any) -> VideoModel:
    return foreign.ours(num_frames=2, **({"positions": "learned", "pool": "cls"} | options))


def load_into(model: VideoModel, source: Path, **options: Any) -> loading.LoadReport:
    settings = ModelConfig(pretrained=str(source), **options)
    return loading.load_encoder(model, RunConfig(model=settings))


def features(model: VideoModel, clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(clips).features.values.unflatten(0, (len(clips), -1))


def write_timm(foreign: Any, model: Any, folder: Path) -> Path:
    """As timm's models lie on the Hub: safetensors, and a config.json with the normalisation of the pixels."""
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(foreign.timm(model), folder / "model.safetensors")
    stats = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = {"architecture": "vit_micro_patch16_48", "pretrained_cfg": stats}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("inflation", ["central", "mean"])
@pytest.mark.parametrize("source", ["timm", "transformers", "dinov2"])
def test_a_clip_that_stands_still_is_seen_as_the_image(
    source: str, inflation: str, foreign: Any, tmp_path: Path
) -> None:
    theirs = dinov2(foreign) if source == "dinov2" else vit(foreign)
    write = write_timm if source == "timm" else lambda foreign, *args: foreign.saved(*args)
    model = one_tubelet(foreign)
    report = load_into(model, write(foreign, theirs, tmp_path), inflation=inflation)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        body = theirs if source == "dinov2" else theirs.vit
        expected = body(images).last_hidden_state
    given = features(model, images[:, None].expand(-1, 2, -1, -1, -1))
    assert (given - expected).abs().max() < TOLERANCE
    assert report.changed["encoder.patch_embed.weight"] == f"inflated to 2 frames ({inflation})"
    assert not set(report.new) - {"head.fc.weight", "head.fc.bias"}
    if source == "dinov2":
        assert report.changed["encoder.blocks.0.fc2.weight"] == "LayerScale multiplied in"


def test_central_inflation_sees_the_middle_frame_alone(foreign: Any, tmp_path: Path) -> None:
    theirs, model = vit(foreign), one_tubelet(foreign)
    load_into(model, foreign.saved(theirs, tmp_path))
    clips = torch.randn(2, 2, 3, 48, 48)
    with torch.no_grad():
        expected = theirs.vit(clips[:, 1]).last_hidden_state
    assert (features(model, clips) - expected).abs().max() < TOLERANCE


def test_positions_are_interpolated_as_transformers_does(foreign: Any, tmp_path: Path) -> None:
    theirs = vit(foreign, size=80)
    model = one_tubelet(foreign)
    report = load_into(model, foreign.saved(theirs, tmp_path))
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = theirs.vit(images, interpolate_pos_encoding=True).last_hidden_state
    given = features(model, images[:, None].expand(-1, 2, -1, -1, -1))
    assert (given - expected).abs().max() < TOLERANCE
    assert (
        report.changed["encoder.pos_embed"] == "5 x 5 interpolated to 3 x 3, the same for 1 times"
    )


def test_every_time_begins_with_the_same_positions(foreign: Any, tmp_path: Path) -> None:
    model = foreign.ours(num_frames=8, positions="learned", pool="mean")
    theirs = vit(foreign)
    report = load_into(model, foreign.saved(theirs, tmp_path))
    table = model.encoder.pos_embed.unflatten(0, (4, 9))
    expected = theirs.vit.embeddings.position_embeddings[0, 1:]
    assert all(torch.equal(rows, expected) for rows in table)
    assert report.left_out["vit.embeddings.cls_token"] == "class token (model.pool mean)"


def test_a_whole_clip_against_a_vit_written_by_hand(foreign: Any, tmp_path: Path) -> None:
    """timm's names and layout, read by a forward pass that shares no code with ours."""
    theirs = vit(foreign)
    tensors = foreign.timm(theirs)
    model = foreign.ours(num_frames=4, positions="learned", pool="cls")
    load_into(model, write_timm(foreign, theirs, tmp_path), inflation="mean")
    clips = torch.randn(1, 4, 3, 48, 48)
    kernel, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    embedded = [
        nn.functional.conv2d(clips[:, t : t + 2].mean(1), kernel, bias, stride=16).flatten(2).mT
        for t in (0, 2)
    ]
    positions = tensors["pos_embed"]
    times = [patches + positions[:, 1:] for patches in embedded]
    x = torch.cat([tensors["cls_token"] + positions[:, :1], *times], dim=1)
    for i in range(foreign.DEPTH):
        x = _block(x, {k.removeprefix(f"blocks.{i}."): v for k, v in tensors.items()}, foreign)
    expected = nn.functional.layer_norm(
        x, (foreign.WIDTH,), tensors["norm.weight"], tensors["norm.bias"], eps=1e-6
    )
    assert (features(model, clips) - expected).abs().max() < TOLERANCE


def _block(x: torch.Tensor, w: dict[str, torch.Tensor], foreign: Any) -> torch.Tensor:
    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(
            x, (foreign.WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6
        )

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    q, k, v = linear("attn.qkv", norm("norm1", x)).chunk(3, dim=-1)
    heads = []
    for columns in torch.arange(foreign.WIDTH).chunk(foreign.HEADS):
        scores = q[..., columns] @ k[..., columns].mT / len(columns) ** 0.5
        heads.append(scores.softmax(-1) @ v[..., columns])
    x = x + linear("attn.proj", torch.cat(heads, dim=-1))
    hidden = linear("mlp.fc1", norm("norm2", x))
    return x + linear("mlp.fc2", nn.functional.gelu(hidden))


def test_other_pixels_than_the_weights_saw_are_said(
    foreign: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    load_into(one_tubelet(foreign), write_timm(foreign, vit(foreign), tmp_path))
    assert "trained on pixels of mean (0.5, 0.5, 0.5)" in caplog.text
    account = capsys.readouterr().out
    assert "left out: head.weight, head.bias: classifier of 2 classes" in account
    assert "none unexpected" in account


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("reg_token", "register tokens"),
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("norm_pre.weight", "a norm before the blocks"),
        ("dist_token", "a distillation token"),
    ],
)
def test_what_our_vit_cannot_express_is_refused(
    name: str, what: str, foreign: Any, tmp_path: Path
) -> None:
    tensors = foreign.timm(vit(foreign)) | {name: torch.zeros(1)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=f"has {what}, which onereel's ViT has not"):
        load_into(one_tubelet(foreign), tmp_path)


def test_an_image_model_needs_learned_positions(foreign: Any, tmp_path: Path) -> None:
    foreign.saved(vit(foreign), tmp_path)
    with pytest.raises(ConfigError, match=r"needs model\.positions learned; it is sincos"):
        load_into(one_tubelet(foreign, positions="sincos"), tmp_path)


def test_inflation_keeps_the_sum_over_time() -> None:
    kernel = torch.randn(5, 3, 4, 4)
    for tubelet_size in (1, 2, 3, 4):
        for inflation in ("central", "mean"):
            tubelets = inflate(kernel, tubelet_size, inflation)
            assert tubelets.shape == (5, 3, tubelet_size, 4, 4)
            assert torch.allclose(tubelets.sum(2), kernel, atol=1e-6)
    central = inflate(kernel, 2, "central")
    assert torch.equal(central[:, :, 1], kernel)
    assert not central[:, :, 0].any()


def test_tables_with_and_without_a_class_row() -> None:
    table = torch.randn(10, 6)
    spatial, of_token = split_class_position(table, has_class_token=True)
    assert torch.equal(spatial, table[1:])
    assert of_token is not None
    assert torch.equal(of_token, table[0])
    assert split_class_position(table[1:], has_class_token=True)[1] is None
    with pytest.raises(ConfigError, match="10 rows is that of no square"):
        split_class_position(table, has_class_token=False)
    assert torch.equal(spread_positions(spatial, TubeletGrid(2, 3, 3)), spatial.repeat(2, 1))
