"""Model names in timm's style, `vit_{size}_patch{p}_{resolution}`, and the encoders they stand for."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from onereel.errors import ConfigError, unknown_name
from onereel.models.factorised import FactorisedEncoder
from onereel.models.masked_autoencoder import MaskedDecoder
from onereel.models.vit import VisionTransformer
from onereel.tokens.tubelets import tubelet_grid
from onereel.types import TubeletGrid


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
DECODER_SIZES = {
    "micro": Size(96, 4, 3),
    "mini": Size(128, 4, 4),
    "tiny": Size(96, 4, 3),
    "small": Size(192, 4, 3),
    "base": Size(384, 4, 6),
    "large": Size(512, 4, 8),
    "huge": Size(640, 4, 8),
}
"""Of masked autoencoders: small to huge as VideoMAE publishes them; below, half as wide but at least 96."""
FACTORISED_POSITIONS = ("learned", "sincos")
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
    match = _match(name)
    patch_size, resolution = int(match[2]), int(match[3])
    side = size or resolution
    options = {"align_corners": options.get("style") == "vivit"} | options
    return VisionTransformer(
        tubelet_grid(num_frames, side, side, tubelet_size, patch_size),
        tubelet_size=tubelet_size,
        patch_size=patch_size,
        **SIZES[match[1]]._asdict(),
        **options,
    )


def create_factorised(
    name: str,
    *,
    num_frames: int,
    temporal_depth: int,
    size: int | None = None,
    tubelet_size: int = 2,
    adapter: str = "none",
    frozen: bool = False,
    frames_at_once: int = 0,
    final_norm: bool = True,
    **options: Any,
) -> FactorisedEncoder:
    """The factorised encoder whose spatial half is called `name`; `temporal_depth` blocks of the same width follow.

    Args:
        adapter, frozen, frames_at_once: as in `FactorisedEncoder`.
        final_norm: of the temporal half; the spatial one always ends in a norm.
        options: further arguments of `VisionTransformer`, for both halves.

    Raises as `create_encoder`; also where `options` say what a half does not have.
    """
    positions = options.get("positions", "sincos")
    if positions not in FACTORISED_POSITIONS:
        raise ConfigError(
            f"model.positions is {positions!r}; allowed with model.temporal_depth: "
            f"{', '.join(FACTORISED_POSITIONS)}"
        )
    spatial = create_encoder(
        name,
        num_frames=tubelet_size,
        size=size,
        tubelet_size=tubelet_size,
        align_corners=True,
        **options,
    )
    temporal = VisionTransformer(
        TubeletGrid(num_frames // tubelet_size, 1, 1),
        tubelet_size=tubelet_size,
        patch_size=spatial.patch_size,
        embed_dim=spatial.embed_dim,
        depth=temporal_depth,
        num_heads=spatial.num_heads,
        final_norm=final_norm,
        patch_embedding=False,
        align_corners=True,
        **{**options, "patch_norm": False},
    )
    return FactorisedEncoder(
        spatial, temporal, adapter=adapter, frozen=frozen, frames_at_once=frames_at_once
    )


def create_decoder(name: str, encoder: VisionTransformer) -> MaskedDecoder:
    """The masked autoencoder's decoder that goes with `encoder`, which is called `name`; with fresh weights."""
    return MaskedDecoder(encoder, **DECODER_SIZES[_match(name)[1]]._asdict())


def patch_size_of(name: str) -> int:
    """Pixels per side of the patches of the encoder called `name`; raises as `create_encoder`."""
    return int(_match(name)[2])


def _match(name: str) -> re.Match[str]:
    """The parts of a model's name: size, patch size, resolution."""
    match = _PATTERN.fullmatch(name)
    if match is None or match[1] not in SIZES:
        form = f"_patch{match[2]}_{match[3]}" if match else ""
        alike = [f"vit_{known}{form}" for known in SIZES] if match else []
        raise unknown_name("model", name, {*list_models(), *alike})
    return match
