"""Model names in timm's style, `{family}_{size}_patch{p}_{resolution}`, and the encoders they stand for."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from onereel.config.model import FAMILIES
from onereel.errors import ConfigError, unknown_name
from onereel.models.backbone import ImageBackbone
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
FACTORISED = {"positions": ("sincos", "learned"), "pool": ("mean", "cls")}
"""What both halves of a factorised encoder know."""
TABLES = {
    "internvideo2": TubeletGrid(8, 16, 16),
    "base": TubeletGrid(32, 20, 20),
    "large": TubeletGrid(32, 20, 20),
    "huge": TubeletGrid(32, 20, 20),
}
"""Grids of tables of global positions, as released, by family or size: 8 x 224^2 px; 32 x 280^2 (FluxViT-B)."""
SMALL_TABLE = TubeletGrid(24, 18, 18)
"""24 x 252^2 px (FluxViT-S)."""
_LISTED = {
    "vit": ((16, 112), (16, 224), (14, 224), (14, 336)),
    "internvideo2": ((14, 224),),
    "fluxvit": ((14, 224),),
}
_PATTERN = re.compile(rf"({'|'.join(FAMILIES)})_([a-z]+)_patch([1-9]\d*)_([1-9]\d*)")


class Name(NamedTuple):
    """What a model's name says."""

    family: str
    size: str
    patch_size: int
    resolution: int


def list_models() -> list[str]:
    """The usual names; any patch size and resolution may be written in a name."""
    return [
        f"{family}_{size}_patch{p}_{r}"
        for family, listed in _LISTED.items()
        for size in SIZES
        for p, r in listed
    ]


def create_encoder(
    name: str,
    *,
    num_frames: int,
    size: int | None = None,
    tubelet_size: int | None = None,
    **options: Any,
) -> VisionTransformer:
    """The encoder called `name`, with fresh weights.

    Args:
        name: one of `list_models()`, or of the same form.
        num_frames: frames per clip.
        size: height and width in pixels; None: the resolution in the name.
        tubelet_size: frames per tubelet; None: the family's (vit 2, internvideo2 and fluxvit 1).
        options: further arguments of `VisionTransformer`, in place of the family's.

    Raises:
        ConfigError: the name is unknown (the nearest is named), or the clip doesn't divide into tubelets.
    """
    parts = parse_name(name)
    settings = {"align_corners": options.get("style") == "vivit", **FAMILIES[parts.family]}
    settings["final_norm"] = not settings.pop("fc_norm", False)
    settings["table_grid"] = TABLES.get(parts.family) or TABLES.get(parts.size, SMALL_TABLE)
    own_tubelet_size = settings.pop("tubelet_size", 2)
    tubelet_size = tubelet_size or own_tubelet_size
    side = size or parts.resolution
    return VisionTransformer(
        tubelet_grid(num_frames, side, side, tubelet_size, parts.patch_size),
        tubelet_size=tubelet_size,
        patch_size=parts.patch_size,
        **SIZES[parts.size]._asdict(),
        **{**settings, **options},
    )


def create_factorised(
    name: str,
    *,
    num_frames: int,
    temporal_depth: int,
    size: int | None = None,
    tubelet_size: int = 2,
    backbone: str = "",
    adapter: str = "none",
    frozen: bool = False,
    frames_at_once: int = 0,
    final_norm: bool = True,
    **options: Any,
) -> FactorisedEncoder:
    """The factorised encoder whose spatial half is called `name`; `temporal_depth` blocks of the same width follow.

    Args:
        backbone: folder of an image transformer, which is the spatial half in place of the one that `name` says, but
            with patches of its size; the temporal half is as wide as it.
        adapter, frozen, frames_at_once: as in `FactorisedEncoder`.
        final_norm: of the temporal half; the spatial one always ends in a norm.
        options: further arguments of `VisionTransformer`, for both halves.

    Raises as `create_encoder`; also where `options` say what a half does not have.
    """
    for option, allowed in FACTORISED.items():
        if options.get(option, allowed[0]) not in allowed:
            raise ConfigError(
                f"model.{option} is {options[option]!r}; allowed with model.temporal_depth: {', '.join(allowed)}"
            )
    spatial: VisionTransformer | ImageBackbone
    if backbone:
        spatial = _create_backbone(backbone, name, size)
    else:
        spatial = create_encoder(
            name,
            num_frames=tubelet_size,
            size=size,
            tubelet_size=tubelet_size,
            final_norm=True,
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


def _create_backbone(source: str, name: str, size: int | None) -> ImageBackbone:
    parts = parse_name(name)
    backbone = ImageBackbone(source, size or parts.resolution)
    if backbone.patch_size != parts.patch_size:
        fitting = name.replace(f"_patch{parts.patch_size}_", f"_patch{backbone.patch_size}_")
        raise ConfigError(
            f"model.backbone {source} has patches of {backbone.patch_size} pixels, and model.name is {name}; "
            f"set model.name to {fitting}"
        )
    return backbone


def create_decoder(name: str, encoder: VisionTransformer) -> MaskedDecoder:
    """The masked autoencoder's decoder that goes with `encoder`, which is called `name`; with fresh weights."""
    return MaskedDecoder(encoder, **DECODER_SIZES[parse_name(name).size]._asdict())


def patch_size_of(name: str) -> int:
    """Pixels per side of the patches of the encoder called `name`; raises as `create_encoder`."""
    return parse_name(name).patch_size


def parse_name(name: str) -> Name:
    """The parts of a model's name; raises as `create_encoder`."""
    match = _PATTERN.fullmatch(name)
    if match is None or match[2] not in SIZES:
        form = f"_patch{match[3]}_{match[4]}" if match else ""
        alike = [f"{match[1]}_{known}{form}" for known in SIZES] if match else []
        raise unknown_name("model", name, {*list_models(), *alike})
    return Name(match[1], match[2], int(match[3]), int(match[4]))
