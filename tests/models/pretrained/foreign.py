"""Small models of transformers with weights that hide nothing, and ours to match."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import onereel
from onereel.models.video_model import VideoModel

WIDTH, DEPTH, HEADS = 96, 4, 3
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "patch_size": 16,
}


def perturbed(model: nn.Module) -> Any:
    """`model` in evaluation mode, with no weight left at a start that would hide it (zero biases, unit norms)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def videomae(kind: str, num_frames: int = 8, tubelet_size: int = 2, **options: Any) -> Any:
    """`VideoMAE{kind}` on clips of 48 px."""
    decoder = {
        "decoder_hidden_size": 24,
        "decoder_num_attention_heads": 3,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 96,
    }
    clip = {"image_size": 48, "num_frames": num_frames, "tubelet_size": tubelet_size}
    config = transformers.VideoMAEConfig(**(SIZES | clip | decoder | options))
    return perturbed(getattr(transformers, f"VideoMAE{kind}")(config))


def ours(num_classes: int = 5, num_frames: int = 8, size: int = 48, **options: Any) -> VideoModel:
    """Our model of the same size, with other weights."""
    options = {"positions": "sincos-1d"} | options
    name = f"vit_micro_patch16_{size}"
    return onereel.create_model(name, num_classes, num_frames=num_frames, **options).eval()


def saved(model: Any, folder: Path) -> Path:
    """The folder into which `model` was saved by transformers, which prints."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


ORIGINAL = {
    "videomae.": "encoder.",
    "encoder.encoder.layer.": "encoder.blocks.",
    "encoder.embeddings.patch_embeddings.projection": "encoder.patch_embed.proj",
    "encoder.layernorm.": "encoder.norm.",
    "decoder.decoder_layers.": "decoder.blocks.",
    "attention.output.dense": "attn.proj",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "classifier": "head",
}
"""Transformers' names -> those of VideoMAE's own files, but for query, key and value, which are one matrix there."""


def original(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a VideoMAE of transformers as VideoMAE's own scripts save them, fine-tuned ones without prefix."""
    tensors = renamed(model.state_dict(), ORIGINAL)
    for name in [name for name in tensors if name.endswith("attention.attention.key.weight")]:
        block = name.removesuffix("attention.attention.key.weight")
        parts = (f"{block}attention.attention.{part}.weight" for part in ("query", "key", "value"))
        tensors[f"{block}attn.qkv.weight"] = torch.cat([tensors.pop(part) for part in parts])
    if "head.weight" in tensors:
        tensors = {name.removeprefix("encoder."): value for name, value in tensors.items()}
    return tensors


TIMM = {
    "vit.": "",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "encoder.layer.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "classifier": "head",
}


def timm(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a ViT of transformers as timm names and fuses them."""
    tensors = renamed(stored(model), TIMM)
    for name in [name for name in tensors if ".key." in name]:
        block, kind = name.split("attention.attention.key.")
        parts = (f"{block}attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
        tensors[f"{block}attn.qkv.{kind}"] = torch.cat([tensors.pop(part) for part in parts])
    return tensors


def stored(model: Any) -> dict[str, torch.Tensor]:
    """The weights as transformers writes them into files; in memory its names differ."""
    with TemporaryDirectory() as folder:
        return load_file(saved(model, Path(folder)) / "model.safetensors")


def renamed(tensors: dict[str, torch.Tensor], rules: dict[str, str]) -> dict[str, torch.Tensor]:
    """`tensors` with every part of their names replaced as `rules` say, in order."""

    def name_of(name: str) -> str:
        for old, new in rules.items():
            name = name.replace(old, new)
        return name

    return {name_of(name): value for name, value in tensors.items()}
