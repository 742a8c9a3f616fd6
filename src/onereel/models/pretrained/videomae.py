"""VideoMAE in transformers' layout: its configuration as ours, and our weights as its."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from onereel.config import RunConfig, from_dict
from onereel.errors import ConfigError
from onereel.files import write_atomically
from onereel.models.blocks import MLP_RATIO, NORM_EPS
from onereel.models.factorised import FactorisedEncoder
from onereel.models.heads import BudgetHeads
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.pretrained.layouts import VIDEOMAE_HF
from onereel.models.registry import SIZES, Size
from onereel.models.video_model import VideoModel
from onereel.models.vit import COLORS

PREFIX = "videomae."
MODULES = {
    "encoder.patch_embed": PREFIX + VIDEOMAE_HF.patch,
    "encoder.norm": PREFIX + VIDEOMAE_HF.norm,
    "head.norm": VIDEOMAE_HF.fc_norm,
    "head.fc": VIDEOMAE_HF.head,
    "decoder.embed": "encoder_to_decoder",
    "decoder.norm": "decoder.norm",
    "decoder.head": "decoder.head",
}
"""Our modules outside blocks -> theirs."""
BLOCKS = {
    "encoder.blocks": PREFIX + VIDEOMAE_HF.block,
    "decoder.blocks": VIDEOMAE_HF.decoder_block,
}
MASK_TOKEN = "mask_token"


def run_config_of(config: Mapping[str, Any], source: str) -> tuple[RunConfig, tuple[str, ...]]:
    """Our configuration and the class names (none where it has none) of a VideoMAE classifier's `config.json`.

    Clips are sampled 16x4 as in VideoMAE's tests on Kinetics; its tests on SSv2 sample segments, which the file
    does not say.

    Raises:
        ConfigError: it is of another kind or size than our models.
    """
    is_classifier = "VideoMAEForVideoClassification" in config.get("architectures", ())
    if not (is_classifier and config.get("use_mean_pooling", True)):
        raise ConfigError(
            f"{source} is no model that can be used as it is: that would be a run or save_pretrained folder of "
            "onereel, or a VideoMAEForVideoClassification with mean pooling. To train from its weights: "
            f"--model.pretrained {source}"
        )
    values = {
        "data": {
            "num_frames": config["num_frames"],
            "size": config["image_size"],
            "sampling": "dense",
        },
        "model": {
            "name": model_name_of(config, source, config["patch_size"]),
            "tubelet_size": config["tubelet_size"],
            "positions": "sincos-1d",
            "fc_norm": True,
        },
    }
    names_of = config.get("id2label", {})
    return from_dict(RunConfig, values), tuple(names_of[i] for i in sorted(names_of, key=int))


def model_name_of(config: Mapping[str, Any], source: str, patch_size: int) -> str:
    """Our name for the size of a transformer in a `config.json` of transformers; raises ConfigError without one."""
    size = Size(
        *(config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    )
    names = [name for name, known in SIZES.items() if known == size]
    if not names or config["intermediate_size"] != MLP_RATIO * size.embed_dim:
        raise ConfigError(
            f"{source}: no model of width {size.embed_dim}, depth {size.depth}, {size.num_heads} heads and MLP "
            f"{config['intermediate_size']}; there are {', '.join(SIZES)} (MLP {MLP_RATIO} x width)"
        )
    return f"vit_{names[0]}_patch{patch_size}_{config['image_size']}"


def write_videomae(
    folder: str | Path,
    model: VideoModel | MaskedAutoencoder,
    config: RunConfig,
    class_names: Sequence[str] = (),
) -> Path:
    """Write the model for transformers, as `VideoMAEForVideoClassification` or `VideoMAEForPreTraining`; its path.

    Token selection and masks are no part of that layout: the model there keeps every token.

    Args:
        config: that the model was built from.
        class_names: in the order of the classifier, where there is one.

    Raises:
        ConfigError: the model has something that VideoMAE has not; what it must be trained with is said.
    """
    _check(model, config)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        processor = {
            "image_processor_type": "VideoMAEImageProcessor",
            "image_mean": config.augment.mean,
            "image_std": config.augment.std,
            "size": {"shortest_edge": config.data.size},
            "crop_size": {"height": config.data.size, "width": config.data.size},
        }
        tensors = to_videomae(model)
        write_atomically(
            folder / "preprocessor_config.json", json.dumps(processor, indent=2) + "\n"
        )
        write_atomically(
            folder / "model.safetensors", safetensors.torch.save(tensors, {"format": "pt"})
        )
        content = json.dumps(_config(model, config, class_names), indent=2) + "\n"
        write_atomically(folder / "config.json", content)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; give another folder") from error
    return folder


def to_videomae(model: VideoModel | MaskedAutoencoder) -> dict[str, Tensor]:
    """The tensors under the names of transformers' VideoMAE.

    The bias of the keys has no place there and no effect: it adds the same to all scores of a query.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if ".blocks." in name:
            side, _, index, part = module.split(".", 3)
            block = BLOCKS[f"{side}.blocks"].format(index)
            if part == "attn.qkv":
                tensors |= _separate(f"{block}attention.attention", kind, value)
            else:
                tensors[f"{block}{VIDEOMAE_HF.parts[part]}.{kind}"] = value
        elif name == f"decoder.{MASK_TOKEN}":
            tensors[MASK_TOKEN] = value[None, None]
        else:
            if (
                module == "decoder.head"
            ):  # our pixels are in order (c, t, h, w), theirs in (t, h, w, c)
                value = value.unflatten(0, (COLORS, -1)).transpose(0, 1).flatten(0, 1)
            tensors[f"{MODULES[module]}.{kind}"] = value
    kernel, encoder = f"{PREFIX}{VIDEOMAE_HF.patch}.weight", model.encoder
    block_size = (COLORS, encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
    tensors[kernel] = tensors[kernel].unflatten(1, block_size)
    return {name: value.cpu().contiguous() for name, value in tensors.items()}


def _separate(prefix: str, kind: str, fused: Tensor) -> dict[str, Tensor]:
    q, k, v = fused.chunk(3)
    if kind == "bias":
        return {f"{prefix}.q_bias": q, f"{prefix}.v_bias": v}
    return {
        f"{prefix}.{part}.weight": value
        for part, value in zip(("query", "key", "value"), (q, k, v))
    }


def _check(model: VideoModel | MaskedAutoencoder, config: RunConfig) -> None:
    settings, encoder = config.model, model.encoder
    if isinstance(encoder, FactorisedEncoder):
        raise ConfigError(
            "VideoMAE's layout has one transformer for space and time, and this model one for each "
            "(model.temporal_depth)"
        )
    wrong = {
        "model.positions sincos-1d": encoder.positions != "sincos-1d",
        "model.fc_norm true": isinstance(model, VideoModel) and not settings.fc_norm,
        "model.pool mean": encoder.pool != "mean",
        "model.style vit": settings.style != "vit",
        "model.qk_norm false": settings.qk_norm,
        "model.patch_norm false": settings.patch_norm,
        "model.local_positions false": settings.local_positions,
        "no objective.budgets": isinstance(model, VideoModel)
        and isinstance(model.head, BudgetHeads),
        "tokens.length_embedding false": encoder.length_embed is not None,
    }
    needed = [setting for setting, is_wrong in wrong.items() if is_wrong]
    if needed:
        raise ConfigError(
            f"VideoMAE's layout cannot express this model; it needs one trained with {', '.join(needed)}"
        )


def _config(
    model: VideoModel | MaskedAutoencoder, config: RunConfig, class_names: Sequence[str]
) -> dict[str, Any]:
    encoder = model.encoder
    shared = {
        "model_type": "videomae",
        "image_size": config.data.size,
        "patch_size": encoder.patch_size,
        "num_channels": COLORS,
        "num_frames": encoder.grid.gt * encoder.tubelet_size,
        "tubelet_size": encoder.tubelet_size,
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": MLP_RATIO * encoder.embed_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "qv_bias": True,
    }
    if isinstance(model, MaskedAutoencoder):
        decoder = model.decoder
        return shared | {
            "architectures": ["VideoMAEForPreTraining"],
            "use_mean_pooling": False,  # there, a norm of the tokens
            "decoder_hidden_size": decoder.embed_dim,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.num_heads,
            "decoder_intermediate_size": MLP_RATIO * decoder.embed_dim,
            "norm_pix_loss": True,
        }
    return shared | {
        "architectures": ["VideoMAEForVideoClassification"],
        "use_mean_pooling": True,
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
    }
