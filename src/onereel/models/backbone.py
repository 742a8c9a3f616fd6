"""Image transformers of `transformers` as the frozen spatial half of a factorised encoder. Needs onereel[text]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from onereel.errors import ConfigError, unknown_name
from onereel.models.pretrained.reading import locate, read_json
from onereel.tokens.tubelets import tubelet_grid, unpatchify
from onereel.types import Packed

Feature = Literal["class", "pooled", "mean"]
FEATURES: dict[str, Feature] = {
    **dict.fromkeys(("vit", "deit", "vit_msn"), "class"),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit"), "class"),
    **dict.fromkeys(("clip_vision_model", "metaclip_2_vision_model"), "pooled"),
    "siglip_vision_model": "pooled",
    "ijepa": "mean",
}
"""What stands for a picture, by transformers' `model_type`: the class token after the last norm; what the family pools
itself (CLIP: its class token, normalised; SigLIP and SigLIP 2: attention over the patches); else the mean of the
patches."""
IN_BOTH_TOWERS = ("clip", "siglip", "metaclip_2")
"""Families whose vision tower may come with the text tower beside it."""


class ImageBackbone(nn.Module):
    """Patches of single frames in, one vector per frame out. Always in evaluation mode and without gradients.

    Positions are interpolated to the size of the frames by the family's own rule.

    Args:
        source: folder of transformers, or the name OWNER/MODEL of one on the Hugging Face Hub.
        size: height and width of the frames in pixels.
        pool: of the temporal half; nothing here depends on it.

    Raises ConfigError where there is no such model, its family is unknown, its weights lack a part, its patches don't
    divide `size`, or transformers is not installed.
    """

    tubelet_size = 1

    def __init__(self, source: str, size: int, pool: Literal["mean", "cls"] = "mean") -> None:
        super().__init__()
        self.source, self.pool = source, pool
        self.model = _load(source)
        config = self.model.config
        self.feature = FEATURES[config.model_type]
        if self.feature == "pooled" and not getattr(config, "vision_use_head", True):
            self.feature = "mean"  # SigLIP without its attention pool
        self.patch_size: int = config.patch_size
        self.grid = tubelet_grid(1, size, size, 1, self.patch_size)
        self.patch_values = config.num_channels * self.patch_size**2
        self.embed_dim: int = config.hidden_size
        self.depth: int = config.num_hidden_layers
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ImageBackbone:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, frames: Tensor) -> Tensor:
        """Vectors `(F, D)` of normalised float pictures `(F, C, H, W)`."""
        return _feature(self.model, frames, self.feature)

    def of_patches(self, frames: Packed) -> Tensor:
        """Vectors `(F, D)` of packed patches `(F * gh * gw, P)` of whole frames, each a clip of its own.

        Raises ConfigError where a frame lacks patches.
        """
        if set(frames.lengths) != {self.grid.num_tokens}:
            raise ConfigError(
                f"{self.source} takes whole frames of {self.grid.num_tokens} patches; set --tokens.kind all, and "
                "pictures to the size of data.size"
            )
        patches = frames.values.unflatten(0, (len(frames.lengths), -1))
        return self(unpatchify(patches, self.grid, 1, self.patch_size)[:, 0])

    @cached_property
    def macs_per_frame(self) -> int:
        """Multiply-adds of the matrix products and convolutions for one frame; counted on a model without weights."""
        with torch.device("meta"):
            empty = _library().AutoModel.from_config(self.model.config).eval()
            frame = torch.empty(1, 3, *(n * self.patch_size for n in self.grid[1:]))
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                _feature(empty, frame, self.feature)
        return counter.get_total_flops() // 2

    def macs(self, lengths: Sequence[int], num_embedded: int | None = None) -> int:
        """Multiply-adds for that many frames of patches; whole ones, so their numbers change nothing."""
        return len(lengths) * self.macs_per_frame


def pixel_stats(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of R, G, B that the model's pictures are normalised by; None where it doesn't say."""
    found = read_json(Path(locate(source)) / "preprocessor_config.json")
    mean, std = found.get("image_mean"), found.get("image_std")
    return (tuple(mean), tuple(std)) if mean and std else None


def _feature(model: Any, frames: Tensor, feature: Feature) -> Tensor:
    # DINOv2 and v3 always fit positions to the picture, and swallow the argument.
    output = model(pixel_values=frames, interpolate_pos_encoding=True)
    if feature == "pooled":
        return output.pooler_output
    tokens = output.last_hidden_state
    # Of the class token a copy, or it would keep the memory of all tokens.
    return tokens[:, 0].clone() if feature == "class" else tokens.mean(dim=1)


def _load(source: str) -> Any:
    """The vision model with its weights in float32, whole or not at all."""
    folder = locate(source)
    try:
        # Drawn afresh where weights are missing, which is refused below: nothing else may depend on those draws.
        with torch.random.fork_rng(devices=[]):
            model, report = _library().AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except (OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"model.backbone {source} is no model that transformers can load: {first_line}"
        ) from error
    if model.config.model_type in IN_BOTH_TOWERS:
        model = model.vision_model
    kind = model.config.model_type
    if kind not in FEATURES:
        raise unknown_name(f"family of model.backbone {source}:", kind, FEATURES)
    known = set(model.state_dict())
    missing = sorted(
        name
        for name in report["missing_keys"]
        if name.removeprefix("vision_model.") in known and not name.startswith("pooler.")
    )
    if missing:
        raise ConfigError(f"{source} lacks weights: {', '.join(missing[:5])}; download it again")
    return model


def _library() -> Any:
    """transformers, which takes seconds to import."""
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ConfigError(
            "model.backbone needs the library transformers: pip install 'onereel[text]'"
        ) from error
