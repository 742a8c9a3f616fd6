"""Image transformers as the spatial half: transformers' own models, saved with random weights, are the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onereel.errors import ConfigError
from onereel.models import libraries
from onereel.models.backbone import ImageBackbone
from onereel.models.heads import pool_tokens
from onereel.tokens.packing import pack_all
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed

transformers = pytest.importorskip("transformers", reason="needs onereel[text]")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE = {**SIZES, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
DINO = {**SIZES, "image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def both_towers(family: str) -> Any:
    """A model with a text tower beside the vision tower."""
    config, model = (getattr(transformers, f"{family}{part}") for part in ("Config", "Model"))
    text = {**SIZES, "intermediate_size": 48, **TEXT}
    return model(config(vision_config=SHAPE, text_config=text))


MAKE: dict[str, Callable[[], Any]] = {
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**SHAPE)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(**SHAPE)),
    "vit_msn": lambda: transformers.ViTMSNModel(transformers.ViTMSNConfig(**SHAPE)),
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINO)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**DINO)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**SHAPE, num_register_tokens=4)
    ),
    "clip_vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SHAPE)),
    "siglip_vision": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SHAPE)
    ),
    "siglip_headless": lambda: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**SHAPE, vision_use_head=False)
    ),
    "ijepa": lambda: transformers.IJepaModel(transformers.IJepaConfig(**SHAPE)),
    "clip": lambda: both_towers("CLIP"),
    "siglip": lambda: both_towers("Siglip"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`saved(name)`: the folder of a small model with random weights."""
    root = tmp_path_factory.mktemp("backbones")

    def make(name: str) -> Path:
        if not (root / name).exists():
            torch.manual_seed(1)
            MAKE[name]().save_pretrained(root / name)
        return root / name

    return make


def packed_frames(clips: torch.Tensor, patch_size: int) -> Packed:
    """Each frame of `clips (B, T, C, H, W)` as a clip of patches."""
    frames = clips.flatten(0, 1)[:, None]
    return pack_all(patchify(frames, 1, patch_size), clip_grid(frames, 1, patch_size))


def expected(folder: Path, frames: torch.Tensor) -> torch.Tensor:
    """The family's own picture feature, said in its own words."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    name = folder.name
    with torch.no_grad():
        if name == "clip":
            return model.vision_model(frames, interpolate_pos_encoding=True).pooler_output
        if name == "siglip":
            features = model.get_image_features(frames, interpolate_pos_encoding=True)
            return getattr(features, "pooler_output", features)
        if "dino" in name or name == "registers":
            return model(frames).pooler_output
        output = model(frames, interpolate_pos_encoding=True)
        if name in ("clip_vision", "siglip_vision"):
            return output.pooler_output
        if name in ("ijepa", "siglip_headless"):
            return output.last_hidden_state.mean(1)
        return output.last_hidden_state[:, 0]


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", MAKE)
def test_features_are_those_of_transformers(
    saved: Callable[[str], Path], name: str, size: int
) -> None:
    """On pictures of the size that it was trained on, and of another: positions are interpolated."""
    clips = torch.randn(2, 3, 3, size, size)
    backbone = ImageBackbone(str(saved(name)), size)
    with torch.no_grad():
        seen, _ = backbone.forward_layers(packed_frames(clips, 8))
    found = pool_tokens(seen, backbone.pool)
    torch.testing.assert_close(found, expected(saved(name), clips.flatten(0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "registers", "dinov3", "clip_vision", "siglip_vision"])
def test_layers_below_are_those_of_transformers(saved: Callable[[str], Path], name: str) -> None:
    """In front of a frame's patches its class token, or their mean; registers are left out."""
    clips = torch.randn(1, 3, 3, 32, 32)
    with torch.no_grad():
        seen, (below,) = ImageBackbone(str(saved(name)), 32).forward_layers(
            packed_frames(clips, 8), layers=[0]
        )
        model = transformers.AutoModel.from_pretrained(saved(name), dtype=torch.float32).eval()
        hidden = model(clips[0], output_hidden_states=True).hidden_states[1]
    assert seen.lengths == (17,) * 3
    assert (seen.coordinates[:, 0].view(3, 17)[:, 0] == -1).all()
    rows = below.view(3, 17, 32)
    first = hidden.mean(1) if name == "siglip_vision" else hidden[:, 0]
    torch.testing.assert_close(rows[:, 0], first, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows[:, 1:], hidden[:, -16:], rtol=0, atol=1e-5)


def test_nothing_of_it_learns_or_trains(saved: Callable[[str], Path]) -> None:
    backbone = ImageBackbone(str(saved("dinov2")), 32).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_loading_draws_nothing(saved: Callable[[str], Path]) -> None:
    torch.manual_seed(3)
    ImageBackbone(str(saved("vit")), 32)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), drawn)


def test_multiply_adds_are_those_of_the_formula(saved: Callable[[str], Path]) -> None:
    """12 n d^2 + 2 n^2 d per block, and n P d for the patches: exact for CLIP's plain blocks of MLP ratio 4."""
    folder = saved("clip_vision")
    backbone = ImageBackbone(str(folder), 48)
    n, d, hidden = 37, 32, 48
    blocks = 2 * (n * (4 * d * d + 2 * d * hidden) + 2 * n * n * d)
    assert backbone.macs_per_frame == blocks + 36 * 3 * 64 * d
    assert backbone.macs((36, 36)) == 2 * backbone.macs_per_frame


# ------------------------------------------------------------------------------------------------ mistakes


def test_pictures_that_patches_do_not_divide(saved: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="Use height 32 or 40"):
        ImageBackbone(str(saved("dinov2")), 36)


def test_selected_tokens_are_refused(saved: Callable[[str], Path]) -> None:
    frames = packed_frames(torch.randn(1, 2, 3, 32, 32), 8)
    half = Packed(frames.values[:24], (16, 8), frames.cu_seqlens, frames.coordinates, frames.grid)
    with pytest.raises(ConfigError, match=r"tokens\.kind to all"):
        ImageBackbone(str(saved("vit")), 32).forward_layers(half)


def test_what_is_no_image_transformer(saved: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no model that transformers can load"):
        ImageBackbone(str(tmp_path), 32)
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**SIZES, intermediate_size=48, **TEXT)
    )
    text.save_pretrained(tmp_path / "text")
    with pytest.raises(ConfigError, match=r"family of model\.backbone"):
        ImageBackbone(str(tmp_path / "text"), 32)


def test_weights_that_lack_a_part(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved("vit")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layernorm.weight" in name)
    del tensors[name]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"lacks weights: .*{name}"):
        ImageBackbone(str(tmp_path), 32)


def test_weights_that_are_damaged(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved("vit")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ConfigError, match="is no model that transformers can load"):
        ImageBackbone(str(tmp_path), 32)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(libraries, "import_module", absent)
    with pytest.raises(ConfigError, match=r"onereel\[text\]"):
        ImageBackbone(str(tmp_path), 32)
