"""Image transformers of `transformers` as the frozen spatial half of a factorised encoder. Needs onereel[text]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from onereel.archives import DAMAGE
from onereel.errors import ConfigError, unknown_name
from onereel.models.libraries import library
from onereel.tokens.packing import cumulative_lengths
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
    """Patches of single frames in, the frame's vector and its patches' features out; it never learns.

    Positions are interpolated to the size of the frames by the family's own rule.

    Args:
        source: a folder that transformers wrote.
        size: height and width of the frames in pixels.

    Raises ConfigError where there is no such model, its family is unknown, its weights lack a part, its patches don't
    divide `size`, or transformers is not installed.
    """

    tubelet_size = 1
    pool: Literal["cls"] = "cls"  # the vector stands first

    def __init__(self, source: str, size: int) -> None:
        super().__init__()
        self.source = source
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
        self.num_heads: int = config.num_attention_heads
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ImageBackbone:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward_layers(
        self,
        frames: Packed,
        generators: Sequence[torch.Generator] | None = None,
        layers: Sequence[int] = (),
        *,
        embedded: bool = False,
    ) -> tuple[Packed, list[Tensor]]:
        """As of `VisionTransformer`, of whole frames of patches, each a clip of its own; nothing is drawn.

        In front of each frame's patches stands its vector; of the layers below the last that is the class token, or the
        mean of the patches where there is none. Registers are left out.

        Raises ConfigError where a frame lacks patches.
        """
        assert not embedded  # whole frames need no selection
        count, num_patches = len(frames.lengths), frames.grid.num_tokens
        if set(frames.lengths) != {num_patches}:
            raise ConfigError(
                f"model.backbone {self.source} takes whole frames of {num_patches} patches, and was given "
                f"{min(frames.lengths)} of one; set tokens.kind to all"
            )
        patches = frames.values.unflatten(0, (count, -1))
        pictures = unpatchify(patches, frames.grid, 1, self.patch_size)[:, 0]
        output = _run(self.model, pictures, output_hidden_states=bool(layers))
        lengths = (num_patches + 1,) * count
        coordinates = F.pad(frames.coordinates.unflatten(0, (count, -1)), (0, 0, 1, 0), value=-1)
        seen = Packed(
            values=_rows(output.last_hidden_state, _vector(output, self.feature), num_patches),
            lengths=lengths,
            cu_seqlens=cumulative_lengths(lengths, frames.device),
            coordinates=coordinates.flatten(0, 1),
            grid=frames.grid,
        )
        below = [output.hidden_states[number + 1] for number in layers]
        return seen, [_rows(x, _vector_below(x, num_patches), num_patches) for x in below]

    @cached_property
    def macs_per_frame(self) -> int:
        """Multiply-adds of the matrix products and convolutions for one frame; counted on a model without weights."""
        with torch.device("meta"):
            empty = (
                library("transformers", "model.backbone")
                .AutoModel.from_config(self.model.config)
                .eval()
            )
            frame = torch.empty(1, 3, *(n * self.patch_size for n in self.grid[1:]))
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                _run(empty, frame)
        return counter.get_total_flops() // 2

    def macs(self, lengths: Sequence[int], num_embedded: int | None = None) -> int:
        """Multiply-adds for that many frames of patches; whole ones, so their numbers change nothing."""
        return len(lengths) * self.macs_per_frame


def _run(model: Any, pictures: Tensor, **options: Any) -> Any:
    # DINOv2 and v3 always fit positions to the picture, and swallow the argument.
    return model(pixel_values=pictures, interpolate_pos_encoding=True, **options)


def _vector(output: Any, feature: Feature) -> Tensor:
    if feature == "pooled":
        return output.pooler_output
    tokens = output.last_hidden_state
    return tokens[:, 0] if feature == "class" else tokens.mean(dim=1)


def _vector_below(x: Tensor, num_patches: int) -> Tensor:
    has_class_token = x.shape[1] > num_patches
    return x[:, 0] if has_class_token else x.mean(dim=1)


def _rows(x: Tensor, vectors: Tensor, num_patches: int) -> Tensor:
    """`(F, n, D)` to `(F * (1 + num_patches), D)`: the frame's vector and its patches, which come last."""
    return torch.cat([vectors[:, None], x[:, -num_patches:]], dim=1).flatten(0, 1)


def _load(source: str) -> Any:
    """The vision model with its weights in float32, whole or not at all."""
    try:
        # Drawn afresh where weights are missing, which is refused below: nothing else may depend on those draws.
        with torch.random.fork_rng(devices=[]):
            model, report = library("transformers", "model.backbone").AutoModel.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
    except DAMAGE as error:
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
