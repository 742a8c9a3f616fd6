"""Teachers of transformers, small and random: their features are those that the models give themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from onereel.config import AugmentConfig
from onereel.errors import ConfigError
from onereel.models.foreign_teachers import foreign_teacher
from onereel.models.teachers import View
from onereel.types import TubeletGrid

STUDENT = (AugmentConfig.mean, AugmentConfig.std)
SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
WIDE = {**SIZES, "intermediate_size": 32}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def videomae() -> Any:
    config = transformers.VideoMAEConfig(
        **WIDE,
        num_frames=4,
        tubelet_size=2,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return transformers.VideoMAEForPreTraining(config)


def vjepa2() -> Any:
    """With a predictor as deep as the encoder, which must not be taken for it."""
    config = transformers.VJEPA2Config(
        crop_size=32,
        patch_size=8,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=3,
    )
    return transformers.VJEPA2Model(config)


def clip() -> Any:
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config=WIDE, text_config=TEXT))


IMAGES: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**WIDE, num_register_tokens=2)
    ),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**WIDE)),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**WIDE)),
    "clip": clip,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    transformers.utils.logging.set_verbosity(verbosity)


def saved(model: Any, folder: Path, **processor: Any) -> Path:
    model.eval().save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("make", [videomae, vjepa2])
def test_video_models_give_their_blocks_and_the_mean_of_their_tokens(
    make: Callable[[], Any], tmp_path: Path
) -> None:
    model = make()
    saved(model, tmp_path, image_mean=STUDENT[0], image_std=STUDENT[1])
    teacher = foreign_teacher(tmp_path, "it", STUDENT)
    clips = torch.randn(2, 4, 3, 32, 32)
    said = teacher(clips, (2, 0))
    whole = getattr(model, "videomae", model)
    options = {"skip_predictor": True} if make is vjepa2 else {}
    with torch.no_grad():
        out = whole(clips, output_hidden_states=True, **options)
    assert said.grid == TubeletGrid(2, 4, 4)
    torch.testing.assert_close(said.layers[1], out.hidden_states[1])
    torch.testing.assert_close(said.final, out.last_hidden_state.mean(1))
    assert said.layers[0].shape == (2, 32, 24)
    if make is videomae:  # V-JEPA 2's last hidden state is normalised
        torch.testing.assert_close(said.layers[0], out.hidden_states[3])
    assert not teacher.attends


@pytest.mark.parametrize("name", IMAGES)
def test_image_models_see_every_frame(name: str, tmp_path: Path) -> None:
    model = IMAGES[name]()
    saved(model, tmp_path, image_mean=STUDENT[0], image_std=STUDENT[1], size={"height": 32})
    teacher = foreign_teacher(tmp_path, "it", STUDENT)
    clips = torch.randn(2, 3, 3, 32, 32)
    said = teacher(clips, (1,))
    tower = getattr(model, "vision_model", getattr(model, "vit", model))
    with torch.no_grad():
        out = tower(clips.flatten(0, 1), output_hidden_states=True)
    assert said.grid == TubeletGrid(3, 4, 4)
    expected = out.hidden_states[2][:, -16:]
    torch.testing.assert_close(said.layers[0], expected.reshape(2, 48, 24))
    pooled = out.last_hidden_state[:, 0] if name == "vit" else out.pooler_output
    torch.testing.assert_close(said.final, pooled.unflatten(0, (2, 3)).mean(1))


def test_attention_of_an_image_model_is_its_class_tokens(tmp_path: Path) -> None:
    model = IMAGES["registers"]()
    saved(model, tmp_path, image_mean=STUDENT[0], image_std=STUDENT[1], size=32)
    teacher = foreign_teacher(tmp_path, "it", STUDENT, attention=True)
    clips = torch.randn(1, 2, 3, 32, 32)
    said = teacher(clips, (), attention=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(clips[0], output_attentions=True)
    expected = out.attentions[-1].mean(1)[:, 0, 3:]
    assert teacher.attends
    assert said.attention is not None
    torch.testing.assert_close(said.attention, expected.reshape(1, 32))


def test_it_sees_its_own_size_frames_and_colours(tmp_path: Path) -> None:
    saved(videomae(), tmp_path, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    teacher = foreign_teacher(tmp_path, "it", STUDENT)
    halves = ((0.5,) * 3, (0.25,) * 3)
    assert teacher.view == View.between(STUDENT, halves, num_frames=4, size=32)
    clips = torch.randn(1, 8, 3, 48, 48)
    said = teacher(clips, (0,))
    direct = View.between(STUDENT, halves, 4, 32)(clips)
    with torch.no_grad():
        expected = teacher.model(direct).last_hidden_state.mean(1)
    torch.testing.assert_close(said.final, expected)


def test_an_image_models_size_is_its_preprocessings_or_what_is_asked_for(tmp_path: Path) -> None:
    saved(IMAGES["dinov2"](), tmp_path, crop_size={"height": 24, "width": 24}, image_mean=[0.5] * 3)
    assert foreign_teacher(tmp_path, "it", STUDENT).view.size == 24
    teacher = foreign_teacher(tmp_path, "it", STUDENT, size=48)
    assert teacher(torch.randn(1, 2, 3, 32, 32), (0,)).grid == TubeletGrid(2, 6, 6)


def test_multiply_adds_are_those_of_the_blocks(tmp_path: Path) -> None:
    """`12 n d^2 + 2 n^2 d` per block, here with an MLP of 32."""
    saved(videomae(), tmp_path)
    teacher = foreign_teacher(tmp_path, "it", STUDENT)
    weights = 4 * 24**2 + 2 * 24 * 32
    assert teacher.macs(2, 8, 64) == 2 * 3 * (32 * weights + 2 * 32**2 * 24)


def test_what_cannot_teach_is_refused(tmp_path: Path) -> None:
    saved(videomae(), tmp_path / "videomae")
    with pytest.raises(ConfigError, match="teacher_size is 64, but it sees 32"):
        foreign_teacher(tmp_path / "videomae", "it", STUDENT, size=64)
    saved(IMAGES["dinov2"](), tmp_path / "dinov2")
    with pytest.raises(ConfigError, match=r"set distill\.teacher_size to 32"):
        foreign_teacher(tmp_path / "dinov2", "it", STUDENT, size=36)
    config = json.loads((tmp_path / "dinov2" / "config.json").read_text())
    (tmp_path / "dinov2" / "config.json").write_text(json.dumps({**config, "model_type": "dino"}))
    with pytest.raises(ConfigError, match="dinov2"):
        foreign_teacher(tmp_path / "dinov2", "it", STUDENT)
    deeper = {**config, "num_hidden_layers": 4}
    (tmp_path / "dinov2" / "config.json").write_text(json.dumps(deeper))
    with pytest.raises(ConfigError, match="lacks"):
        foreign_teacher(tmp_path / "dinov2", "it", STUDENT)
