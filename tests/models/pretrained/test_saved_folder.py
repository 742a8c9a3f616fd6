"""Our own folders: written whole, read back to the bit, also by way of the Hub's client."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import onereel
from onereel import build, loading
from onereel.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TokensConfig
from onereel.errors import ConfigError, OnereelError
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.tokens.selector import KeepAll


def model(**options: Any) -> VideoModel:
    return onereel.create_model(
        "vit_micro_patch16_32", 3, num_frames=4, tokens="run-length", **options
    ).eval()


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "positions": "learned"}])
def test_a_saved_model_comes_back_to_the_bit(options: dict[str, Any], tmp_path: Path) -> None:
    saved, clips = model(**options), torch.randn(2, 4, 3, 32, 32)
    saved.save_pretrained(tmp_path / "model", ("a", "b", "c"))
    trained = onereel.load(tmp_path / "model")
    assert torch.equal(trained.model(clips).logits, saved(clips).logits)
    assert (trained.class_names, trained.config) == (("a", "b", "c"), saved.config)
    trained.save_pretrained(tmp_path / "again")
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_what_was_held_out_of_a_list_goes_with_the_list(tmp_path: Path) -> None:
    saved = model()
    assert saved.config is not None
    saved.config = replace(saved.config, data=replace(saved.config.data, hold_out_ratio=0.5))
    folder = saved.save_pretrained(tmp_path / "model")
    assert onereel.load(folder).config.data.hold_out_ratio == 0


def test_a_folder_of_other_things_is_not_written_into(tmp_path: Path) -> None:
    """A run has a `config.json` of its own."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds other files"):
        model().save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"
    folder = model().save_pretrained(tmp_path / "model")
    assert model().save_pretrained(folder) == folder


def test_heads_of_budgets_are_saved_with_their_model(tmp_path: Path) -> None:
    config = RunConfig(
        data=DataConfig(num_frames=4, size=32),
        model=ModelConfig(name="vit_micro_patch8_32"),
        objective=ObjectiveConfig(budgets=(32, 16, 8)),
        tokens=TokensConfig(kind="group-dynamic", token_budget=16),
    )
    saved, clips = build.build_model(config, 3).eval(), torch.randn(2, 4, 3, 32, 32)
    trained = onereel.load(saved.save_pretrained(tmp_path / "model", ("a", "b", "c")))
    assert trained.class_names == ("a", "b", "c")
    for given, back in zip(
        saved.forward_budgets(clips, budgets=(32, 16, 8)),
        trained.model.forward_budgets(clips, budgets=(32, 16, 8)),
        strict=True,
    ):
        assert torch.equal(given.logits, back.logits)
    with pytest.raises(ConfigError, match="2 class names for 3 classes"):
        saved.save_pretrained(tmp_path / "x", ("a", "b"))


def test_the_card_says_what_is_known(tmp_path: Path) -> None:
    facts = {
        "step": 7,
        "train_list": "train.csv",
        "metrics": {"top1": 0.8125},
        "versions": {"torch": "2.0"},
    }
    model().save_pretrained(tmp_path, ("clap", "jump", "wave"), facts)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: onereel\npipeline_tag: video-classification\n")
    for line in (
        "| model | vit_micro_patch16_32, tubelets of 2 frames |",
        "| tokens | 8 per clip; selector `run-length` keeps what a clip needs |",
        f"| cost | {model().macs((8,)) / 1e9:.2f} GMACs per view with 8 tokens",
        "- 7 optimiser steps",
        "- trained on `train.csv`",
        "- torch 2.0",
        "| top1 | 0.8125 |",
        "3: clap, jump, wave",
        "onereel predict FOLDER video.mp4",
    ):
        assert line in card
    model().save_pretrained(tmp_path)
    bare = (tmp_path / "README.md").read_text()
    assert "## Training" not in bare
    assert "## Evaluation" not in bare


def test_a_model_put_together_by_hand_says_what_it_lacks(tmp_path: Path) -> None:
    encoder = create_encoder("vit_micro_patch16_32", num_frames=4)
    by_hand = VideoModel(encoder, ClassificationHead(96, 3), KeepAll())
    with pytest.raises(ConfigError, match=r"set model\.config"):
        by_hand.save_pretrained(tmp_path / "x")
    with pytest.raises(ConfigError, match="2 class names for 3 classes"):
        model().save_pretrained(tmp_path / "x", ("a", "b"))
    assert not (tmp_path / "x").exists()


def test_paths_of_the_machine_stay_at_home(tmp_path: Path) -> None:
    saved = model()
    config = loading.from_dict(
        RunConfig,
        {"data": {"train": "/home/me/a.csv", "size": 32}, "recipe": "/home/me/mine.py"},
    )
    saved.config = config
    saved.save_pretrained(tmp_path)
    for name in ("config.json", "README.md"):
        assert "/home/me" not in (tmp_path / name).read_text()
    assert json.loads((tmp_path / "config.json").read_text())["config"]["recipe"] == "mine"


def test_the_card_names_the_backbone_that_loading_asks_for(tmp_path: Path) -> None:
    saved = onereel.create_model(
        "vit_micro_patch16_32", 3, num_frames=4, tubelet_size=1, temporal_depth=2, frozen="spatial"
    )
    assert saved.config is not None
    named = replace(saved.config.model, backbone="facebook/dinov2-base")
    saved.config = replace(saved.config, model=named)
    card = (saved.save_pretrained(tmp_path) / "README.md").read_text()
    assert "| backbone | `facebook/dinov2-base`, which must be there too" in card


@pytest.mark.parametrize("blocks", ["even", "first"])
def test_where_a_temporal_half_started_stays_at_home(blocks: Any, tmp_path: Path) -> None:
    saved = model(temporal_depth=2)
    assert saved.config is not None
    start = {"pretrained": "a", "temporal_init": "/home/me/vit", "temporal_blocks": blocks}
    saved.config = replace(saved.config, model=replace(saved.config.model, **start))
    config = onereel.load(saved.save_pretrained(tmp_path)).config
    assert (config.model.temporal_init, config.model.temporal_blocks) == ("", "even")


def test_starting_from_a_saved_model(tmp_path: Path) -> None:
    source = model()
    source.save_pretrained(tmp_path)
    settings = {"tokens": "all", "fc_norm": True}
    started = onereel.create_model("vit_micro_patch16_32", 5, num_frames=4, **settings)
    report = loading.load_encoder(started, RunConfig(model=ModelConfig(pretrained=str(tmp_path))))
    assert torch.equal(started.encoder.blocks[3].fc2.weight, source.encoder.blocks[3].fc2.weight)
    assert report.changed["head.norm.weight"] == "was the norm of the tokens"
    assert set(report.left_out.values()) == {"classifier of 3 classes"}


def test_a_saved_model_under_a_configuration_that_does_not_fit(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    other = loading.from_dict(
        RunConfig,
        {
            "data": {"num_frames": 4, "size": 32},
            "model": {"name": "vit_micro_patch16_32", "fc_norm": True},
        },
    )
    with pytest.raises(
        ConfigError, match=r"nothing was loaded: .*missing in the file \(head\.norm"
    ):
        onereel.load(tmp_path, other)


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("config.json", "is no model that can be used as it is"),
        ("model.safetensors", "model.safetensors cannot be read"),
    ],
)
def test_a_spoilt_folder_is_named(name: str, absent: str, tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(OnereelError, match=rf"{name} cannot be read"):
        onereel.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OnereelError, match=absent):
        onereel.load(tmp_path)


def test_folders_without_weights_and_with_too_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run nor weights: looked for"):
        onereel.load(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save({}, tmp_path / name)
    with pytest.raises(ConfigError, match=r"several files of weights \(a\.pth, b\.pth\)"):
        onereel.load(tmp_path)
    with pytest.raises(ConfigError, match="is not there"):
        onereel.load(tmp_path / "absent")


# --------------------------------------------------------------------- the Hub; its client's two calls are played here


def test_a_name_of_the_hub_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`snapshot_download` is replaced by a folder on this disk: what the Hub answers is not tested."""
    source = model()
    source.save_pretrained(tmp_path / "snapshot")
    asked = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    clips = torch.randn(1, 4, 3, 32, 32)
    loaded = onereel.load("someone/videos")
    assert torch.equal(loaded.model(clips).logits, source(clips).logits)
    assert asked == [("someone/videos", ["*.json", "*.safetensors"])]
    # Without safetensors, what torch.save wrote is asked for next.
    (tmp_path / "snapshot" / "model.safetensors").unlink()
    with pytest.raises(OnereelError):
        onereel.load("someone/videos")
    assert "*.bin" in asked[-1][1]


def test_a_name_that_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own error for a Hub that cannot be reached."""

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ConfigError, match=r"from the Hugging Face Hub: no connection$"):
        onereel.load("someone/videos")


def test_pushing_uploads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`HfApi` is replaced by one that copies to this disk: what the Hub does with it is not tested."""
    made = []

    class Api:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            made.append((name, private, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            for path in Path(folder_path).iterdir():
                (tmp_path / path.name).write_bytes(path.read_bytes())
            return f"https://example.org/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    source = model()
    address = source.push_to_hub("someone/videos", ("a", "b", "c"), private=False)
    assert address == "https://example.org/someone/videos/commit/1"
    assert made == [("someone/videos", False, True)]
    assert onereel.load(tmp_path).class_names == ("a", "b", "c")
