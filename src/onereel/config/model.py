"""The model: the encoder and its head, and the text tower beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onereel.config.checks import require


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and its head."""

    name: str = "vit_base_patch16_224"
    """Model name; `onereel recipes --models` lists them."""
    tubelet_size: int = 2
    """Frames per tubelet (t)."""
    pool: Literal["mean", "cls"] = "mean"
    """How a clip's tokens become one feature."""
    positions: Literal["sincos", "sincos-1d", "learned", "space-time"] = "sincos"
    """Fixed sine-cosine by coordinate, or by running number (VideoMAE's weights), or a learned table, or learned
    tables of places and times, added (CLIP's weights)."""
    style: Literal["vit", "clip"] = "vit"
    """Of norms, activation and patch embedding: the ViT paper's, or that of CLIP's weights."""
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
    checkpointing: bool = False
    """Recompute each block in the backward pass to save memory."""
    attention: Literal["auto", "sdpa", "varlen", "reference"] = "auto"
    """Attention back-end; auto: the fastest that is exact here."""
    pretrained: str = ""
    """Weights to start from: a run, checkpoint or saved folder of onereel; weights of VideoMAE, a ViT, DINOv2 or CLIP
    (a folder, a .safetensors, .pth or .bin file); or the name OWNER/MODEL of such on the Hugging Face Hub."""
    inflation: Literal["central", "mean"] = "central"
    """How an image model's patch embedding becomes one of tubelets: all in the middle frame, or spread evenly."""


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
