"""Weights of CLIP in transformers' layout, for both towers of a dual encoder (arXiv 2103.00020)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onereel.errors import ConfigError
from onereel.models.dual_encoder import DualEncoder
from onereel.models.factorised import FactorisedEncoder
from onereel.models.pretrained.convert import Converted
from onereel.tokens.positions import resize_positions
from onereel.types import TubeletGrid

FAMILY = "CLIP"
MAY_BE_NEW = r"video\.encoder\.(temporal_embed|length_embed)$|video\.head\.fc\.|text\.model\.text_projection\."
"""Times, which images have not; and projections, where the shared space has another width (AVION's 256)."""
VISION = "vision_model."
EMBEDDINGS = f"{VISION}embeddings."
ENCODER = "video.encoder."
MODULES = {
    f"{VISION}pre_layrnorm": f"{ENCODER}input_norm",
    f"{VISION}post_layernorm": f"{ENCODER}norm",
}
BLOCK = re.compile(rf"{re.escape(VISION)}encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
PARTS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
ATTENTION = ("q_proj", "k_proj", "v_proj")


def is_clip(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file has both towers of CLIP under transformers' names."""
    return (
        f"{EMBEDDINGS}class_embedding" in tensors
        and "text_model.final_layer_norm.weight" in tensors
    )


def convert_clip(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], model: DualEncoder, source: str
) -> Converted:
    """The weights of a `CLIPModel` for `model`: fused, folded, interpolated to its size of picture.

    The class token takes in its own place, which CLIP adds to it. Places of the patches are interpolated bilinearly,
    and CLIP's scale of the logits is left to the loss, which starts anew as published for AVION.

    Args:
        config: the `config.json` beside the file; empty where there is none.

    Raises:
        ConfigError: CLIP's weights need another encoder than this; the remedy is said.
    """
    _check(config, model, source)
    out = Converted(FAMILY)
    file = {name: value.float() for name, value in tensors.items()}
    _embeddings(file, out, model)
    for name, value in file.items():
        if name == "logit_scale" or name.endswith("position_ids"):
            out.left_out[name] = "the loss has its own" if name == "logit_scale" else "no weight"
        elif name.startswith("text_model.") or name == "text_projection.weight":
            _put(out, f"text.model.{name}", value, name)
        elif name == "visual_projection.weight":
            _put(out, "video.head.fc.weight", value, name)
        else:
            _vision(out, name, value)
    _fuse_attention(out, model.video.encoder.depth)
    _leave_other_widths(out, model)
    return out


def _check(config: Mapping[str, Any], model: DualEncoder, source: str) -> None:
    encoder = model.video.encoder
    if isinstance(encoder, FactorisedEncoder):
        raise ConfigError(f"{source}: CLIP's weights need model.temporal_depth 0")
    if encoder.input_norm is None or encoder.pool != "cls" or encoder.positions != "space-time":
        raise ConfigError(
            f"{source}: CLIP's weights need model.style clip, model.pool cls and model.positions space-time"
        )
    if encoder.tubelet_size != 1:
        raise ConfigError(f"{source}: CLIP's weights need model.tubelet_size 1")
    vision, text = (config.get(f"{tower}_config", {}) for tower in ("vision", "text"))
    heads = vision.get("num_attention_heads", encoder.num_heads)
    if heads != encoder.num_heads:
        raise ConfigError(f"{source} has {heads} attention heads, this model {encoder.num_heads}")
    for tower in (vision, text):
        activation = tower.get("hidden_act", "quick_gelu")
        if activation != "quick_gelu":
            raise ConfigError(
                f"{source} uses the activation {activation!r}; allowed: 'quick_gelu', as OpenAI's CLIP has it"
            )


def _put(out: Converted, ours: str, value: Tensor, theirs: str, change: str = "") -> None:
    out.tensors[ours], out.origins[ours] = value, theirs
    if change:
        out.changes[ours] = change


def _embeddings(file: dict[str, Tensor], out: Converted, model: DualEncoder) -> None:
    """Take class token, places and patch embedding out of `file`."""
    encoder = model.video.encoder
    names = [f"{EMBEDDINGS}{name}" for name in ("class_embedding", "position_embedding.weight")]
    token, places = (file.pop(name) for name in names)
    _put(out, f"{ENCODER}cls_token", token + places[0], " + ".join(names), "its place added")
    side = round((len(places) - 1) ** 0.5)
    grid, wanted = TubeletGrid(1, side, side), encoder.grid._replace(gt=1)
    resized = resize_positions(places[1:], grid, wanted)
    change = "" if grid == wanted else f"interpolated from {side} x {side} places"
    _put(out, f"{ENCODER}pos_embed", resized, names[1], change or "without the class token's")
    kernel = f"{EMBEDDINGS}patch_embedding.weight"
    _put(out, f"{ENCODER}patch_embed.weight", file.pop(kernel).flatten(1), kernel, "flattened")


def _vision(out: Converted, name: str, value: Tensor) -> None:
    """One tensor of the vision tower's blocks and norms; others are unexpected."""
    module, _, kind = name.rpartition(".")
    block = BLOCK.fullmatch(name)
    if module in MODULES:
        _put(out, f"{MODULES[module]}.{kind}", value, name)
    elif block and block[2] in PARTS:
        _put(out, f"{ENCODER}blocks.{block[1]}.{PARTS[block[2]]}.{kind}", value, name)
    elif block and block[2].removeprefix("self_attn.") in ATTENTION:
        part = block[2].removeprefix("self_attn.")
        _put(out, f"{ENCODER}blocks.{block[1]}.attn.{part}.{kind}", value, name)
    else:
        out.unexpected = (*out.unexpected, name)


def _fuse_attention(out: Converted, depth: int) -> None:
    """Queries, keys and values of each block into one matrix, as far as the file has all three."""
    for index in range(depth):
        for kind in ("weight", "bias"):
            prefix = f"{ENCODER}blocks.{index}.attn."
            names = [f"{prefix}{part}.{kind}" for part in ATTENTION]
            if all(name in out.tensors for name in names):
                fused = torch.cat([out.tensors.pop(name) for name in names])
                origins = ", ".join(out.origins.pop(name) for name in names)
                _put(out, f"{prefix}qkv.{kind}", fused, origins, "fused")


def _leave_other_widths(out: Converted, model: DualEncoder) -> None:
    """Projections into a space of another width start fresh."""
    wanted = model.state_dict()
    for ours in ("video.head.fc.weight", "text.model.text_projection.weight"):
        if ours in out.tensors and out.tensors[ours].shape != wanted[ours].shape:
            width = len(out.tensors.pop(ours))
            out.left_out[out.origins.pop(ours)] = f"into a space of {width} dimensions"
