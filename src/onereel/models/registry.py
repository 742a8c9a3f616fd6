"""Model names in timm's style, `vit_{size}_patch{p}_{resolution}`, and the encoders they stand for."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from onereel.errors import unknown_name
from onereel.models.vit import VisionTransformer
from onereel.tokens.tubelets import tubelet_grid


class Size(NamedTuple):
    """Width, blocks, heads."""

    embed_dim: int
    depth: int
    num_heads: int


SIZES = {
    "micro": Size(96, 4, 3),
    "mini": Size(256, 8, 4),
    "tiny": Size(192, 12, 3),
    "small": Size(384, 12, 6),
    "base": Size(768, 12, 12),
    "large": Size(1024, 24, 16),
    "huge": Size(1280, 32, 16),
}
_LISTED = ((16, 112), (16, 224), (14, 224), (14, 336))
_PATTERN = re.compile(r"vit_([a-z]+)_patch([1-9]\d*)_([1-9]\d*)")


def list_models() -> list[str]:
    """The usual names; any patch size and resolution may be written in a name."""
    return [f"vit_{size}_patch{p}_{r}" for size in SIZES for p, r in _LISTED]


def create_encoder(
    name: str, *, num_frames: int, size: int | None = None, tubelet_size: int = 2, **options: Any
) -> VisionTransformer:
    """The encoder called `name`, with fresh weights.

    Args:
        name: one of `list_models()`, or of the same form.
        num_frames: frames per clip.
        size: height and width in pixels; None: the resolution in the name.
        tubelet_size: frames per tubelet.
        options: further arguments of `VisionTransformer`.

    Raises:
        ConfigError: the name is unknown (the nearest is named), or the clip doesn't divide into tubelets.
    """
    shape, patch_size, resolution = _parsed(name)
    side = size or resolution
    return VisionTransformer(
        tubelet_grid(num_frames, side, side, tubelet_size, patch_size),
        tubelet_size=tubelet_size,
        patch_size=patch_size,
        **shape._asdict(),
        **options,
    )


def patch_size_of(name: str) -> int:
    """Pixels per side of the patches of the encoder called `name`; raises as `create_encoder`."""
    return _parsed(name)[1]


def _parsed(name: str) -> tuple[Size, int, int]:
    """Size, patch size and resolution."""
    match = _PATTERN.fullmatch(name)
    if match is None or match[1] not in SIZES:
        form = f"_patch{match[2]}_{match[3]}" if match else ""
        alike = [f"vit_{known}{form}" for known in SIZES] if match else []
        raise unknown_name("model", name, {*list_models(), *alike})
    return SIZES[match[1]], int(match[2]), int(match[3])
