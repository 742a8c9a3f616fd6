"""Weights of our own runs in models of another kind: what is carried, and where to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onereel import build
from onereel.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TextConfig
from onereel.loading import load_dual_encoder, load_encoder
from onereel.models.dual_encoder import DualEncoder
from onereel.models.pretrained import LoadReport
from onereel.models.text import Tokenizer
from onereel.models.video_model import VideoModel

TINY = RunConfig(
    data=DataConfig(num_frames=4, size=32),
    model=ModelConfig(name="vit_micro_patch16_32"),
    text=TextConfig(size="micro", context_length=12, vocab_size=300, embed_dim=16),
)


def classifier(budgets: tuple[int, ...] = (), num_frames: int = 4, **model: Any) -> VideoModel:
    config = replace(
        TINY,
        data=replace(TINY.data, num_frames=num_frames),
        model=replace(TINY.model, **model),
        objective=ObjectiveConfig(budgets=budgets),
    )
    return scattered(build.build_model(config, 3))


def towers(source: Path | VideoModel, folder: Path, **model: Any) -> tuple[DualEncoder, LoadReport]:
    """A dual encoder that started from `source`, which is saved into `folder` where it is a model."""
    if isinstance(source, VideoModel):
        source = source.save_pretrained(folder)
    config = replace(
        TINY,
        model=replace(TINY.model, pretrained=str(source), **model),
        objective=ObjectiveConfig(kind="contrastive"),
    )
    tokenizer = Tokenizer.train(["a red square", "a blue disc"], 300, 12)
    started = build.build_dual_encoder(config, tokenizer)
    return started, load_encoder(started, config)


def scattered(model: Any) -> Any:
    """`model` with weights of which none has a start's value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("budgets", [(), (8, 4)])
def test_a_dual_encoder_takes_the_first_attention_pool(
    budgets: tuple[int, ...], tmp_path: Path
) -> None:
    before = classifier(budgets, pool="attention")
    started, report = towers(before, tmp_path, pool="attention")
    own = before.head.heads[0] if budgets else before.head
    pooler = started.video.head.pooler
    assert pooler is not None
    for name, value in own.pooler.state_dict().items():
        assert torch.equal(pooler.state_dict()[name], value), name
    assert not any("pooler" in name for name in report.new)
    others = {name for name in before.state_dict() if name.startswith("head.heads.1.")}
    assert others <= set(report.left_out)


def test_a_dual_encoder_pools_as_it_is_told_to(tmp_path: Path) -> None:
    before = classifier(pool="attention")
    _, report = towers(before, tmp_path / "a", pool="cls")
    assert report.left_out["head.pooler.q.weight"] == "this model pools without attention"
    _, report = towers(classifier(pool="cls"), tmp_path / "b", pool="attention")
    assert "video.head.pooler.q.weight" in report.new


@pytest.mark.parametrize("depth", [0, 2])
def test_a_factorised_video_tower_starts_from_a_joint_run_and_from_other_clips(
    depth: int, tmp_path: Path
) -> None:
    before = classifier(num_frames=8, positions="learned", temporal_depth=depth)
    started, report = towers(before, tmp_path, positions="learned", temporal_depth=2)
    ours, theirs = started.video.encoder.state_dict(), before.encoder.state_dict()
    part = "spatial." if depth else ""
    for name in ("blocks.3.fc2.weight", "norm.weight"):
        assert torch.equal(ours[f"spatial.{name}"], theirs[f"{part}{name}"])
    if depth:
        assert report.changed["video.encoder.temporal.pos_embed"] == "interpolated from 4 to 2"
        assert torch.equal(
            ours["temporal.blocks.1.fc2.weight"], theirs["temporal.blocks.1.fc2.weight"]
        )
    else:
        places = theirs["pos_embed"].unflatten(0, (4, 4)).mean(dim=0)
        torch.testing.assert_close(ours["spatial.pos_embed"], places)
        assert "video.encoder.temporal.blocks.0.fc2.weight" in report.new


def test_a_factorised_dual_encoder_is_loaded_for_longer_clips(tmp_path: Path) -> None:
    start = classifier(positions="learned")
    before, _ = towers(start, tmp_path / "a", positions="learned", temporal_depth=2)
    folder = before.save_pretrained(tmp_path / "b")
    assert before.video.config is not None
    config = replace(before.video.config, data=replace(TINY.data, num_frames=8))
    assert load_dual_encoder(folder, config).model.video.encoder.grid.gt == 4


@pytest.mark.parametrize("depth", [0, 2])
def test_the_last_norm_alone_becomes_that_of_the_head(depth: int, tmp_path: Path) -> None:
    """A joint run's norm is that of each frame in a factorised encoder, as of foreign weights."""
    before = classifier(temporal_depth=depth)
    started = classifier(temporal_depth=2, fc_norm=True)
    fresh = started.head.norm.weight.clone()
    model = replace(
        TINY.model,
        temporal_depth=2,
        fc_norm=True,
        pretrained=str(before.save_pretrained(tmp_path)),
    )
    report = load_encoder(started, replace(TINY, model=model))
    ours, theirs = started.state_dict(), before.state_dict()
    of_frames = "encoder.spatial.norm.weight" if depth else "encoder.norm.weight"
    assert torch.equal(ours["encoder.spatial.norm.weight"], theirs[of_frames])
    last = theirs["encoder.temporal.norm.weight"] if depth else fresh
    assert torch.equal(ours["head.norm.weight"], last)
    assert ("head.norm.weight" in report.new) == (depth == 0)
