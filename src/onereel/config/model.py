"""The model: the encoder and its head, and the text tower beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from onereel.config.checks import require
from onereel.errors import ConfigError

FACTORISED_ONLY = ("frozen", "backbone", "adapter", "frames_at_once", "temporal_init")
INTERNVIDEO2: dict[str, Any] = {
    "tubelet_size": 1,
    "pool": "attention",
    "positions": "global",
    "style": "flux",
    "fc_norm": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {},
    "internvideo2": INTERNVIDEO2,
    "fluxvit": {**INTERNVIDEO2, "patch_norm": True, "local_positions": True},
}
"""What the first word of a model's name stands for, where it is not the defaults of the fields."""


def family_of(name: str) -> str:
    """The first word of a model's name; of a name that is none, "vit"."""
    family = name.partition("_")[0]
    return family if family in FAMILIES else "vit"


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and its head. `ModelConfig.named` fills in what a name stands for."""

    name: str = "vit_base_patch16_224"
    """Model name; `onereel recipes --models` lists them."""
    tubelet_size: int = 2
    """Frames per tubelet (t)."""
    pool: Literal["mean", "cls", "attention"] = "mean"
    """How a clip's tokens become one feature: their mean, a class token, or attention of 768 dimensions (FluxViT)."""
    positions: Literal["sincos", "sincos-1d", "learned", "space-time", "global", "rope"] = "sincos"
    """Fixed sine-cosine by coordinate, or by running number (VideoMAE's weights), or a learned table, or learned
    tables of places and times, added (CLIP's weights), or one learned table for grids of any size (FluxViT), or
    rotary by coordinate."""
    position_std: float = 0.02
    """Standard deviation that learned positions start with; in patches normalised by patch_norm 0.02 is lost."""
    style: Literal["vit", "clip", "vivit", "flux"] = "vit"
    """Of norms, activation and patch embedding: the ViT paper's, or that of CLIP's weights, of ViViT's, or of
    InternVideo2's and FluxViT's (RMSNorm, LayerScale)."""
    temporal_depth: int = 0
    """0: attention over space and time at once. Above: a factorised encoder (ViViT's Model 2), in which the named model
    sees one tubelet in time at a time, and so many blocks see what it says of each (published: 4)."""
    frozen: Literal["none", "spatial"] = "none"
    """spatial: the spatial half of a factorised encoder keeps the weights it starts from (arXiv 2306.04822)."""
    backbone: str = ""
    """An image ViT of transformers as the frozen spatial half (DINOv2, DINOv3, SigLIP, CLIP, ViT): its folder, or its
    name OWNER/MODEL on the Hugging Face Hub. model.name then says its patch size, and nothing else."""
    adapter: Literal["none", "bottleneck", "temporal-conv", "attention-pool", "fusion"] = "none"
    """Between the halves of a factorised encoder, the identity at first: a bottleneck on each frame's vector; that and
    a convolution over time; attention to the frame's tokens; a bottleneck on the vectors of the last four layers."""
    frames_at_once: int = 0
    """Tubelets in time that a frozen spatial half takes at once, to bound its memory; 0: all of the batch."""
    fc_norm: bool = False
    """Normalise the pooled feature in place of each token, as VideoMAE's fine-tuning does."""
    drop_path_rate: float = 0.0
    """Largest probability of skipping a block for a clip; rises linearly with depth."""
    head_dropout: float = 0.0
    """Dropout before the classifier."""
    qk_norm: bool = False
    """Normalise queries and keys of each head."""
    patch_norm: bool = False
    """Normalise patches before and after their embedding; makes training from scratch on few videos far quicker."""
    local_positions: bool = False
    """Let each token keep a share of its own value in every attention (FluxViT)."""
    checkpointing: bool = False
    """Recompute each block in the backward pass to save memory."""
    attention: Literal["auto", "sdpa", "varlen", "reference"] = "auto"
    """Attention back-end; auto: the fastest that is exact here."""
    pretrained: str = ""
    """Weights to start from: a run, checkpoint or saved folder of onereel; weights of VideoMAE, ViViT, a ViT, DINOv2,
    CLIP, InternVideo2 or FluxViT (a folder, a .safetensors, .pth or .bin file); or the name OWNER/MODEL of such on the
    Hugging Face Hub."""
    inflation: Literal["central", "mean"] = "central"
    """How an image model's patch embedding becomes one of tubelets: all in the middle frame, or spread evenly."""
    image_class_token: bool = True
    """Take an image model's class token; False: only its position, as Scenic's ViViT does."""
    keep_head: bool = False
    """Take the classifier of model.pretrained too: a run of onereel on the same classes."""
    temporal_init: str = ""
    """Where the temporal half of a factorised encoder starts. Empty: from model.pretrained where that has one, else at
    random; random; or weights of its own, such as model.pretrained takes: a factorised run, VideoMAE, an image ViT."""
    temporal_blocks: Literal["even", "first"] = "even"
    """Which blocks of VideoMAE or an image ViT become temporal ones: evenly spread from first to last, or the first."""

    def __post_init__(self) -> None:
        for name in ("temporal_depth", "frames_at_once", "position_std"):
            require(getattr(self, name) >= 0, f"model.{name}", getattr(self, name), "0 or more")
        for name in FACTORISED_ONLY:
            given, off = getattr(self, name), getattr(ModelConfig, name)
            if given != off and not self.temporal_depth:
                raise ConfigError(
                    f"model.{name} is {given!r}, which only a factorised encoder knows: set model.temporal_depth "
                    f"(4 as published), or model.{name} to {off!r}"
                )
        if self.frames_at_once and self.frozen == "none":
            raise ConfigError(
                f"model.frames_at_once is {self.frames_at_once}, but nothing is frozen: the frames of a step share one "
                "backward pass. Set model.frozen to spatial, or lower train.batch_size_per_device"
            )
        family = family_of(self.name)
        if family != "vit" and self.style != FAMILIES[family]["style"]:
            raise ConfigError(
                f"model.name is {self.name}, but model.style is {self.style}; {family} models have style "
                f"{FAMILIES[family]['style']}: ModelConfig.named({self.name!r}) sets all fields of the family"
            )

    @classmethod
    def named(cls, name: str, **options: Any) -> ModelConfig:
        """The configuration that a model's name stands for, and `options` besides."""
        return cls(**{"name": name, **FAMILIES[family_of(name)], **options})

    def renamed(self, name: str) -> ModelConfig:
        """The same under another name; of another family, with that family's fields in place of this one's."""
        if family_of(name) == family_of(self.name):
            return replace(self, name=name)
        defaults = {field.name: field.default for field in fields(self)}
        old, new = FAMILIES[family_of(self.name)], FAMILIES[family_of(name)]
        return replace(self, **{**{key: defaults[key] for key in old}, **new, "name": name})


@dataclass(frozen=True)
class TextConfig:
    """The text tower of a video-language run."""

    size: str = "base"
    """micro, base or large; the last two are those of CLIP's ViT-B and ViT-L."""
    context_length: int = 77
    """Most tokens of a caption; longer ones lose their last words."""
    vocab_size: int = 16384
    """Most byte pairs of the tokenizer that is trained on the captions; model.pretrained brings its own."""
    embed_dim: int = 256
    """Width of the space that clips and captions share."""

    def __post_init__(self) -> None:
        for name, least in (("context_length", 3), ("vocab_size", 258), ("embed_dim", 1)):
            require(
                getattr(self, name) >= least, f"text.{name}", getattr(self, name), f">= {least}"
            )
