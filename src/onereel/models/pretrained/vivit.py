"""ViViT's joint model (arXiv 2103.15691, Model 1) in transformers' layout: its configuration as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onereel.config import RunConfig, from_dict
from onereel.errors import ConfigError
from onereel.models.pretrained.videomae import model_name_of

CLASSIFIER = "VivitForVideoClassification"


def is_vivit(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a ViViT that classifies."""
    return CLASSIFIER in config.get("architectures", ())


def run_config_of(config: Mapping[str, Any], source: str) -> tuple[RunConfig, tuple[str, ...]]:
    """Our configuration and the class names (none where it has none) of a ViViT classifier's `config.json`.

    Clips are sampled 32x2 and pixels lie in -1..1, as published; tested with 4 clips x 3 crops.

    Raises:
        ConfigError: it is of another size than our models.
    """
    tubelet_size, *patch = config["tubelet_size"]
    if len(set(patch)) != 1:
        raise ConfigError(f"{source} has patches of {patch} pixels; allowed: squares")
    size = config["image_size"]
    values = {
        "data": {
            "num_frames": config["num_frames"],
            "size": size,
            "sampling": "dense",
            "sampling_rate": 2,
        },
        "augment": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "model": {
            "name": model_name_of(config, source, patch[0]),
            "tubelet_size": tubelet_size,
            "pool": "cls",
            "positions": "learned",
            "style": "vivit",
        },
        "eval": {"num_clips": 4, "num_crops": 3},
    }
    names_of = config.get("id2label", {})
    return from_dict(RunConfig, values), tuple(names_of[i] for i in sorted(names_of, key=int))
