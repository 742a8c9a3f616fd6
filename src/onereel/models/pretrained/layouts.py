"""Where families of files keep what our model has, and how to tell the families apart by the names in a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from onereel.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """The names of one family. `{}` stands for the number of a block.

    Attributes:
        family: what to call it.
        prefixes: what a name may begin with, to be taken off in this order.
        block: what all names of a block begin with.
        parts: within a block, our module -> theirs.
        scales: within a block, LayerScale of the attention and of the MLP.
        patch, cls, positions, norm, fc_norm, head: patch embedding (a convolution), class token, position table, norm
            of the tokens, norm of the pooled feature, classifier.
        left_out: regular expression -> why what it matches has no place in our model.
        video: whether patches are tubelets already.
        decoder_block: what all names of a block of a masked autoencoder's decoder begin with, where it is like ours.
        style: of our model that these weights need; empty: any.
        activations: what the configuration may call the activation, the default first.
    """

    family: str
    prefixes: tuple[str, ...]
    block: str
    parts: Mapping[str, str]
    scales: tuple[str, str]
    patch: str
    cls: str
    positions: str
    norm: str
    fc_norm: str
    head: str
    left_out: Mapping[str, str]
    video: bool = False
    decoder_block: str = ""
    style: str = ""
    activations: tuple[str, ...] = ("gelu",)


TIMM = Layout(
    family="image ViT in timm's format",
    prefixes=("module.", "model.", "backbone.", "encoder."),
    block="blocks.{}.",
    parts={
        **{name: name for name in ("norm1", "norm2", "attn.proj", "attn.q_norm", "attn.k_norm")},
        **{"fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    },
    scales=("ls1.gamma", "ls2.gamma"),
    patch="patch_embed.proj",
    cls="cls_token",
    positions="pos_embed",
    norm="norm",
    fc_norm="fc_norm",
    head="head",
    left_out={
        r"attn_pool\.": "attention pooling",
        r"decoder_": "decoder of pre-training",
        r"mask_token$": "mask token of pre-training",
    },
)
VIDEOMAE = replace(
    TIMM,
    family="VideoMAE",
    scales=("gamma_1", "gamma_2"),
    left_out={
        r"decoder\.|encoder_to_decoder\.|mask_token$": "decoder of pre-training",
    },
    video=True,
    decoder_block="decoder.blocks.{}.",
)
VIT_HF = Layout(
    family="image ViT in transformers' format",
    prefixes=("vit.",),
    block="encoder.layer.{}.",
    parts={
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    patch="embeddings.patch_embeddings.projection",
    cls="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    norm="layernorm",
    fc_norm="fc_norm",
    head="classifier",
    left_out={
        r"pooler\.": "pooler",
        r"embeddings\.mask_token$": "mask token of pre-training",
        r"decoder\.": "decoder of pre-training",
    },
)
DINOV2_HF = replace(
    VIT_HF,
    family="DINOv2 in transformers' format",
    prefixes=("dinov2.",),
    parts={
        "norm1": "norm1",
        "attn.proj": "attention.output.dense",
        "norm2": "norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
)
VIDEOMAE_HF = replace(
    VIT_HF,
    family="VideoMAE in transformers' format",
    prefixes=("videomae.",),
    left_out=VIDEOMAE.left_out,
    video=True,
    decoder_block="decoder.decoder_layers.{}.",
)
VIVIT_HF = replace(
    VIT_HF,
    family="ViViT in transformers' format",
    prefixes=("vivit.",),
    left_out={r"pooler\.": "pooler"},
    video=True,
    style="vivit",
    activations=("gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
)

UNSUPPORTED = {
    r"register_tokens$|reg_token$": "register tokens",
    r"mlp\.(weights_in|w12|w1|fc1_g)\.": "SwiGLU",
    r"(^|\.)(norm_pre|ln_pre|pre_layrnorm)\.": "a norm before the blocks",
    r"dist_token$|distillation_token$": "a distillation token",
    r"relative_position|rel_pos|rope": "relative positions",
    r"(^|\.)ls3|temporal_|time_embed": "attention over time alone",
}
"""Marks, in names, of models that ours cannot express."""

LOOKED_FOR = (
    "a run folder, checkpoint or save_pretrained folder of onereel; VideoMAE's own .pth, or VideoMAE in transformers' "
    "format; an image ViT in timm's format; ViT, ViViT or DINOv2 in transformers' format"
)


def recognise(tensors: Mapping[str, Tensor], source: str) -> Layout:
    """The layout of a file by the names in it.

    Raises:
        ConfigError: no known one, or a model that ours cannot express; says what was looked for.
    """
    for pattern, what in UNSUPPORTED.items():
        if any(re.search(pattern, name) for name in tensors):
            raise ConfigError(
                f"{source} has {what}, which onereel's ViT has not; use weights of a plain ViT"
            )
    for layouts in ((VIDEOMAE_HF, VIT_HF, DINOV2_HF), (VIDEOMAE, TIMM)):
        ending = f"{layouts[0].patch}.weight"
        patch = next((v for name, v in tensors.items() if _ends(name, ending)), None)
        if patch is None:
            continue
        if patch.ndim == 4:
            is_dino = layouts[1] is VIT_HF and _any(tensors, r"\.mlp\.fc1\.")
            return DINOV2_HF if is_dino else layouts[1]
        has_class_token = _any(tensors, r"cls_token$")
        if patch.ndim == 5 and not has_class_token:
            return layouts[0]
        if patch.ndim == 5 and layouts[0] is VIDEOMAE_HF:
            return VIVIT_HF
    some = ", ".join(sorted(tensors)[:4])
    raise ConfigError(f"{source}: unknown format, with names as {some}. Looked for: {LOOKED_FOR}.")


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _any(names: Iterable[str], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in names)
