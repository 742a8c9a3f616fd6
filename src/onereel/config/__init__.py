"""The configuration of a run: nested frozen dataclasses, strict, to and from JSON."""

from onereel.config.reading import from_dict, from_json, to_dict, to_json
from onereel.config.sections import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RunConfig",
    "TextConfig",
    "TokensConfig",
    "TrainConfig",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
