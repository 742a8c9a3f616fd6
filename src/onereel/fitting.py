"""Weights under our names, fitted to the model that is to start from them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from onereel.config import RunConfig
from onereel.errors import ConfigError
from onereel.models import Trainee
from onereel.models.backbone import ImageBackbone
from onereel.models.dual_encoder import DualEncoder, video_of
from onereel.models.factorised import Encoder, FactorisedEncoder
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.pretrained import Converted, LoadReport, Weights, convert, load_converted
from onereel.models.pretrained.clip import MAY_BE_NEW as CLIP_MAY_BE_NEW
from onereel.models.pretrained.clip import convert_clip, is_clip
from onereel.models.pretrained.fluxvit import MAY_BE_NEW as FLUXVIT_MAY_BE_NEW
from onereel.models.pretrained.fluxvit import convert_fluxvit, family_of_file
from onereel.models.pretrained.halves import into_halves
from onereel.tokens.positions import resize_positions
from onereel.types import TubeletGrid

logger = logging.getLogger(__name__)

T = TypeVar("T")
OURS = "onereel"
FIRST_POOLER = re.compile(r"^head\.(heads\.0\.)?pooler\.")
OF_TOWERS = re.compile(r"video\.(encoder|head\.pooler)\.")
"""What a video tower has in common with other models."""


def encoder_of(model: Trainee) -> Encoder:
    """The video encoder of any model that a run trains."""
    return video_of(model).encoder


def to_start_from(
    tensors: Mapping[str, torch.Tensor], model: Trainee, num_times: int = 1
) -> Converted:
    """Weights of ours for a model that may pool before its norm, that may lack a decoder, a classifier or a text tower,
    that may see other lengths of clip and sizes of picture, or that may see space and time one after the other.

    `num_times`: times in the table of positions, where it is one of space and time.
    """
    found = Converted(OURS)
    wanted = model.state_dict()
    norms = {"head.norm.weight", "head.heads.0.norm.weight"}
    moves = bool(norms & wanted.keys()) and not norms & tensors.keys()
    encoder = encoder_of(model)
    half = "temporal." if isinstance(encoder, FactorisedEncoder) else ""
    last_norm = f"encoder.{half}norm."
    from_pairs = any(name.startswith("video.") for name in tensors)
    parts = {name for name, _ in model.named_children()}
    for name, value in tensors.items():
        ours = name
        if from_pairs and "video" not in parts:
            ours = name.removeprefix("video.")
        elif "video" in parts and not from_pairs:
            ours = f"video.{FIRST_POOLER.sub('head.pooler.', name)}"
        if moves and ours.startswith(last_norm):
            ours = ours.replace(last_norm, "head.norm.")
            found.changes[ours] = "was the norm of the tokens"
        if from_pairs and ours == "head.fc.weight":
            found.left_out[name] = "into the space of captions"
        elif "video" in parts and not (from_pairs or OF_TOWERS.match(ours)):
            found.left_out[name] = "of classes, pixels or smaller budgets"
        elif ours.split(".")[0] in parts:
            found.tensors[ours], found.origins[ours] = value, name
        else:
            found.left_out[name] = f"this model has no {ours.split('.')[0]}"
    _leave_poolers(found, wanted)
    _resize_tables(found, wanted)
    if isinstance(encoder, FactorisedEncoder):
        into_halves(found, encoder, num_times, "video." if "video" in parts else "")
    return found


def _leave_poolers(found: Converted, wanted: Mapping[str, torch.Tensor]) -> None:
    """Leave out the attention pools of heads where the model pools otherwise."""
    if any(".pooler." in name for name in wanted):
        return
    for name in [
        name for name in found.tensors if re.match(r"(video\.)?head\.(heads\.\d+\.)?pooler\.", name)
    ]:
        del found.tensors[name]
        found.left_out[found.origins.pop(name)] = "this model pools without attention"


def _resize_tables(found: Converted, wanted: Mapping[str, torch.Tensor]) -> None:
    """Fit tables of places and of times to another size of picture and length of clip."""
    for name in [name for name in wanted if name.endswith("encoder.temporal_embed")]:
        for ours in (name, name.replace("temporal_embed", "pos_embed")):
            if ours not in found.tensors or found.tensors[ours].shape == wanted[ours].shape:
                continue
            old, new = (_table_grid(ours, len(t)) for t in (found.tensors[ours], wanted[ours]))
            found.tensors[ours] = resize_positions(found.tensors[ours], old, new)
            found.changes[ours] = f"interpolated from {old.num_tokens} to {new.num_tokens}"


def _table_grid(name: str, length: int) -> TubeletGrid:
    if name.endswith("temporal_embed"):
        return TubeletGrid(length, 1, 1)
    side = round(length**0.5)
    return TubeletGrid(1, side, side)


def load_weights(
    model: Trainee,
    weights: Weights,
    config: RunConfig,
    *,
    whole: bool = False,
    start: Callable[[Converted], None] = lambda found: None,
) -> LoadReport:
    """Put another family's weights into the model, as `start` changes them."""
    source = weights.source
    if family_of_file(weights.tensors) is not None:
        report = _load_fluxvit(model, weights, whole=whole)
    elif isinstance(model, DualEncoder):
        if not is_clip(weights.tensors):
            raise ConfigError(
                f"{source} holds no text tower; a video-language run starts from CLIP's weights or a run of onereel"
            )
        converted = convert_clip(weights.tensors, weights.config, model, source)
        report = load_converted(model, converted, source=source, may_be_new=CLIP_MAY_BE_NEW)
    else:
        encoder = model.encoder
        spatial = encoder.spatial if isinstance(encoder, FactorisedEncoder) else encoder
        if isinstance(spatial, ImageBackbone):
            raise ConfigError(
                f"model.pretrained {source} has weights for a spatial half, which is model.backbone "
                f"{config.model.backbone}; allowed beside it: a run of onereel with the same backbone"
            )
        converted = convert(
            weights.tensors,
            weights.config,
            spatial,
            inflation=config.model.inflation,
            source=source,
            decoder_heads=model.decoder.num_heads if isinstance(model, MaskedAutoencoder) else None,
            class_token=config.model.image_class_token,
        )
        if isinstance(encoder, FactorisedEncoder):
            into_halves(converted, encoder)
        start(converted)
        report = load_converted(model, converted, source=source, whole=whole)
    if weights.pixel_stats is not None:
        warn_of_other_pixels(source, weights.pixel_stats, config)
    return report


def _load_fluxvit(model: Trainee, weights: Weights, *, whole: bool) -> LoadReport:
    """FluxViT's or InternVideo2's weights; of a dual encoder the text tower starts fresh."""
    video = video_of(model)
    converted = convert_fluxvit(weights.tensors, video, weights.source)
    may_be_new = FLUXVIT_MAY_BE_NEW
    if isinstance(model, DualEncoder):
        converted = replace(
            converted,
            tensors=_of_video(converted.tensors),
            origins=_of_video(converted.origins),
            changes=_of_video(converted.changes),
        )
        may_be_new = rf"video\.({may_be_new})|text\."
    return load_converted(
        model, converted, source=weights.source, whole=whole, may_be_new=may_be_new
    )


def _of_video(named: Mapping[str, T]) -> dict[str, T]:
    return {f"video.{name}": value for name, value in named.items()}


def warn_of_other_pixels(
    source: str, stats: tuple[tuple[float, ...], tuple[float, ...]], config: RunConfig
) -> None:
    given = (config.augment.mean, config.augment.std)
    if stats != given:
        logger.warning(
            "%s was trained on pixels of mean %s and standard deviation %s; augment.mean and augment.std are %s, %s",
            *(source, *stats, *given),
        )
