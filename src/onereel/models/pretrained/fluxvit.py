"""Weights of FluxViT (arXiv 2503.14237) and InternVideo2 (2403.15377, video alone) as their own scripts save them.

Letters: D width, t tubelet_size, p patch_size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onereel.config import RunConfig, from_dict
from onereel.config.model import FAMILIES
from onereel.errors import ConfigError
from onereel.models.heads import BudgetHeads, ClassificationHead
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.positions import GlobalPositions
from onereel.models.pretrained.convert import Converted
from onereel.models.registry import SIZES
from onereel.models.student import Student
from onereel.models.video_model import VideoModel
from onereel.models.vit import COLORS, VisionTransformer
from onereel.tokens.positions import resize_bicubic
from onereel.types import TubeletGrid

NAMES = {"fluxvit": "FluxViT", "internvideo2": "InternVideo2"}
BUDGETS = (3072, 2048, 1024)
"""Tokens that FluxViT's heads 0, 1 and 2 were trained with; a comment of its scripts numbers them in reverse."""
MAY_BE_NEW = r"encoder\.(patch_norms|length_embed)|head\.(heads\.\d+\.)?(norm|fc)\."
"""The norms around the patch embedding, which InternVideo2 lacks; norm and classifier, which distillation lacks."""
PREFIX = re.compile(r"(module\.|model\.)*")
POOLER = re.compile(r"clip_projector\.(?:(\d+)\.)?(.+)")
HEAD = re.compile(r"head\.(?:(\d+)\.)?(weight|bias)")
FC_NORM = re.compile(r"fc_norm\.(weight|bias)")
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
IN_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm2.weight": "norm2.weight",
    "attn.qkv.weight": "attn.qkv.weight",
    "attn.q_norm.weight": "attn.q_norm.weight",
    "attn.k_norm.weight": "attn.k_norm.weight",
    "attn.proj.weight": "attn.proj.weight",
    "attn.proj.bias": "attn.proj.bias",
    "attn.lpe.depthwise_conv.weight": "attn.local_scale",
    "attn.lpe.depthwise_conv.bias": "attn.local_shift",
    "ls1.gamma": "layer_scales.0",
    "ls2.gamma": "layer_scales.1",
    "mlp.fc1.weight": "fc1.weight",
    "mlp.fc1.bias": "fc1.bias",
    "mlp.fc2.weight": "fc2.weight",
    "mlp.fc2.bias": "fc2.bias",
}
IN_POOLER = {
    **{f"norm1_{p}.{kind}": f"{p}_norm.{kind}" for p in "qkv" for kind in ("weight", "bias")},
    **{f"cross_attn.{p}.weight": f"{p}.weight" for p in "qkv"},
    **{f"cross_attn.{p}_bias": f"{p}.bias" for p in "qkv"},
    **{f"cross_attn.proj.{kind}": f"proj.{kind}" for kind in ("weight", "bias")},
}
OUTSIDE = {
    "cls_token": "encoder.cls_token",
    "patch_embed.proj.weight": "encoder.patch_embed.weight",
    "patch_embed.proj.bias": "encoder.patch_embed.bias",
    "patch_embed.norm_before.weight": "encoder.patch_norms.0.weight",
    "patch_embed.norm.weight": "encoder.patch_norms.1.weight",
    "pos_embed": "encoder.global_positions.pos_embed",
    "gpe_proj.depthwise_conv.weight": "encoder.global_positions.scale",
    "gpe_proj.depthwise_conv.bias": "encoder.global_positions.shift",
}
LEFT_OUT = {
    r"final_clip_decoder_for_projs\.": "aligner of Flux fine-tuning",
    r"(final_)?clip_decoder\.|clip_pos_embed": "decoder of distillation",
}
SIDES = (16, 18, 20)
"""Of released tables: 224, 252 and 280 px."""
LENGTHS = (8, 16, 4, 24, 32)
"""Frames of released tables."""


def family_of_file(tensors: Mapping[str, Tensor]) -> str | None:
    """ "fluxvit", "internvideo2", or None where the names are those of neither."""
    names = [_without_prefix(name) for name in tensors]
    if not any(name.startswith("clip_projector.") for name in names):
        return None
    is_flux = any(name.startswith("gpe_proj.") for name in names)
    return "fluxvit" if is_flux else "internvideo2"


def convert_fluxvit(
    tensors: Mapping[str, Tensor],
    model: VideoModel | Student | MaskedAutoencoder,
    source: str,
) -> Converted:
    """The weights of a file of which `family_of_file` is not None, for `model`.

    The table of positions is interpolated where it was made for another grid than the model's. InternVideo2's weights
    in a FluxViT get local positions and an affine map of the table that change nothing; its patch norms start fresh. Of
    FluxViT's three heads each of the model's takes the one whose budget is nearest to the tokens that it is for.

    Raises:
        ConfigError: these weights need another model; the remedy is said.
    """
    family = family_of_file(tensors)
    assert family is not None
    file = {_without_prefix(name): value.float() for name, value in tensors.items()}
    full_names = {_without_prefix(name): name for name in tensors}
    encoder = _fitting_encoder(model, family, file, source)
    assert isinstance(model, VideoModel | Student)
    out = Converted(NAMES[family])
    for name, value in file.items():
        block = BLOCK.fullmatch(name)
        ours = OUTSIDE.get(name, "")
        if block and block[2] in IN_BLOCK:
            ours = f"encoder.blocks.{block[1]}.{IN_BLOCK[block[2]]}"
        if ours:
            _put(out, ours, value.squeeze(0) if name == "pos_embed" else value, full_names[name])
            continue
        why = next((why for pattern, why in LEFT_OUT.items() if re.match(pattern, name)), "")
        if why:
            out.left_out[full_names[name]] = why
        elif not any(pattern.fullmatch(name) for pattern in (POOLER, HEAD, FC_NORM)):
            out.unexpected = (*out.unexpected, full_names[name])
    _flatten(out, encoder)
    _fit_table(out, encoder, source)
    if family == "internvideo2":
        _fill_identities(out, encoder)
    _heads(file, full_names, out, model)
    return out


def run_config_of(tensors: Mapping[str, Tensor], source: str) -> tuple[RunConfig, tuple[str, ...]]:
    """Our configuration and the classes' numbers of a fine-tuned file of which `family_of_file` is not None.

    Clips are 8 x 224^2 px in equal segments, tested in 4 x 3 views, as published for Kinetics; FluxViT keeps 2048
    tokens, which are all of these clips and a choice of larger ones.

    Raises ConfigError: it is of no size of ours, or was not fine-tuned.
    """
    family = family_of_file(tensors)
    assert family is not None
    file = {_without_prefix(name): value for name, value in tensors.items()}
    classifier = next((value for name, value in file.items() if HEAD.fullmatch(name)), None)
    if classifier is None:
        raise ConfigError(
            f"{source} has no classifier. To train from its weights: --model.pretrained {source}"
        )
    name = _name_of(family, file, source)
    values: dict[str, Any] = {
        "data": {"num_frames": 8, "size": 224, "sampling": "segment"},
        "model": {"name": name, **FAMILIES[family]},
        "eval": {"num_clips": 4, "num_crops": 3},
    }
    if family == "fluxvit":
        values["tokens"] = {"kind": "group-dynamic", "token_budget": BUDGETS[1]}
        values["objective"] = {"budgets": list(BUDGETS)}
    return from_dict(RunConfig, values), tuple(map(str, range(len(classifier))))


def _name_of(family: str, file: Mapping[str, Tensor], source: str) -> str:
    """Our name for a model of this file's size; raises ConfigError without one."""
    patch = file.get("patch_embed.proj.weight")
    if patch is None or patch.ndim != 5:
        raise ConfigError(f"{source} has no patch embedding of tubelets")
    width, depth = len(patch), _depth(file)
    sizes = [name for name, size in SIZES.items() if (size.embed_dim, size.depth) == (width, depth)]
    if not sizes:
        raise ConfigError(f"{source}: no {NAMES[family]} of width {width} and depth {depth} here")
    return f"{family}_{sizes[0]}_patch{patch.shape[-1]}_224"


def _depth(file: Mapping[str, Tensor]) -> int:
    return 1 + max((int(block[1]) for name in file if (block := BLOCK.fullmatch(name))), default=-1)


def _without_prefix(name: str) -> str:
    prefix = PREFIX.match(name)
    return name[prefix.end() :] if prefix else name


def _put(out: Converted, ours: str, value: Tensor, theirs: str, change: str = "") -> None:
    out.tensors[ours], out.origins[ours] = value, theirs
    if change:
        out.changes[ours] = change


def _fitting_encoder(
    model: VideoModel | Student | MaskedAutoencoder,
    family: str,
    file: Mapping[str, Tensor],
    source: str,
) -> VisionTransformer:
    """The model's encoder, if these weights fit it."""
    encoder = model.encoder
    fits = (
        isinstance(encoder, VisionTransformer)
        and isinstance(model, VideoModel | Student)
        and (encoder.style, encoder.positions, encoder.pool) == ("flux", "global", "attention")
        and (family != "fluxvit" or encoder.patch_norms is not None)
    )
    name = _name_of(family, file, source)
    if not fits:
        raise ConfigError(
            f"{source} holds weights of {NAMES[family]}, which need another model than this: --model.name {name}, "
            "none of its fields changed"
        )
    assert isinstance(encoder, VisionTransformer)
    patch = file["patch_embed.proj.weight"]
    found = {
        "embed_dim": (len(patch), encoder.embed_dim),
        "tubelet_size": (patch.shape[2], encoder.tubelet_size),
        "patch_size": (patch.shape[-1], encoder.patch_size),
        "depth": (_depth(file), encoder.depth),
    }
    wrong = [f"{what} {a}, not {b}" for what, (a, b) in found.items() if a != b]
    if wrong:
        raise ConfigError(
            f"{source} is of another size than this model: {'; '.join(wrong)}. Use --model.name {name}"
        )
    return encoder


def _flatten(out: Converted, encoder: VisionTransformer) -> None:
    """Convolutions of one place as what they are, and the norm before the embedding in our order of pixels."""
    kernel = "encoder.patch_embed.weight"
    out.tensors[kernel] = out.tensors[kernel].flatten(1)  # (D, c, t, p, p) is our order
    for name, value in out.tensors.items():
        if re.search(r"(local_scale|global_positions\.scale|cls_token)$", name):
            out.tensors[name] = value.flatten()
    before = "encoder.patch_norms.0.weight"
    if before in out.tensors:
        by_pixel = out.tensors[before].unflatten(0, (-1, COLORS))
        out.tensors[before] = by_pixel.T.flatten()
        out.changes[before] = "pixels from (t, h, w, c) to (c, t, h, w)"


def _fit_table(out: Converted, encoder: VisionTransformer, source: str) -> None:
    assert isinstance(encoder.global_positions, GlobalPositions)
    name, wanted = "encoder.global_positions.pos_embed", encoder.global_positions.grid
    table = out.tensors.get(name)
    if table is None or len(table) == 1 + wanted.num_tokens:
        return
    grid = _grid_of(len(table) - 1, wanted, source)
    resized = resize_bicubic(table[1:], grid, wanted)
    out.tensors[name] = torch.cat([table[:1], resized])
    out.changes[name] = f"interpolated from {tuple(grid)} to {tuple(wanted)}"


def _grid_of(num_tokens: int, wanted: TubeletGrid, source: str) -> TubeletGrid:
    """That of a table of so many rows: a released one, or one that shares time or side with the model's."""
    for gt in (wanted.gt, *LENGTHS):
        side = math.isqrt(num_tokens // gt)
        if gt * side**2 == num_tokens and side in (*SIDES, wanted.gh):
            return TubeletGrid(gt, side, side)
    raise ConfigError(
        f"{source} has a table of {num_tokens} positions, which is none of {LENGTHS} frames of {SIDES} patches squared"
    )


def _fill_identities(out: Converted, encoder: VisionTransformer) -> None:
    """What InternVideo2 has not, such that it does nothing."""
    width = encoder.embed_dim
    added = {"encoder.global_positions.scale": 1.0, "encoder.global_positions.shift": 0.0}
    local = (name for name, _ in encoder.named_parameters() if ".attn.local_" in name)
    added |= {f"encoder.{name}": 0.0 for name in local}
    for name, value in added.items():
        _put(out, name, torch.full((width,), value), "", "not in the file: changes nothing")


def _heads(
    file: Mapping[str, Tensor],
    full_names: Mapping[str, str],
    out: Converted,
    model: VideoModel | Student,
) -> None:
    """Pooler, norm and classifier of each of the model's heads; what doesn't classify takes the pooler alone."""
    classifies = isinstance(model.head, ClassificationHead | BudgetHeads)
    why = "head of another budget" if classifies else "no head of this model"
    for name, value in file.items():
        pooler, head, norm = (pattern.fullmatch(name) for pattern in (POOLER, HEAD, FC_NORM))
        part, wanted, number = "", True, None
        if pooler:
            part, number = f"pooler.{IN_POOLER.get(pooler[2], '')}", pooler[1]
        elif head:
            part, wanted, number = f"fc.{head[2]}", classifies, head[1]
        elif norm:
            part, wanted = f"norm.{norm[1]}", classifies
        else:
            continue
        if part == "pooler.":
            out.unexpected = (*out.unexpected, full_names[name])
            continue
        taken = [ours for ours, own in _head_numbers(model, file).items() if number in (None, own)]
        for ours in taken if wanted else ():
            _put(out, f"{ours}{part}", value, full_names[name])
        if not (taken and wanted):
            out.left_out[full_names[name]] = why


def _head_numbers(model: VideoModel | Student, file: Mapping[str, Tensor]) -> dict[str, str]:
    """What our heads' names begin with -> the number of the file's head for it."""
    numbers = {match[1] for name in file if (match := POOLER.fullmatch(name)) and match[1]}
    budgets = [budget for number, budget in enumerate(BUDGETS) if str(number) in numbers]

    def nearest(num_tokens: int) -> str:
        distances = [abs(budget - num_tokens) for budget in budgets]
        return str(distances.index(min(distances))) if budgets else ""

    if isinstance(model.head, BudgetHeads):
        return {f"head.heads.{i}.": nearest(k) for i, k in enumerate(model.head.budgets)}
    grid = model.encoder.grid
    return {"head.": nearest(model.selector.num_kept(grid) or grid.num_tokens)}
