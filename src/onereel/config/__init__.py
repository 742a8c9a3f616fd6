"""The configuration of a run: nested frozen dataclasses, strict, to and from JSON."""

from onereel.config.inputs import AugmentConfig, DataConfig, TokensConfig
from onereel.config.learning import (
    DistillConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from onereel.config.model import ModelConfig, TextConfig
from onereel.config.reading import check_is_of_run, from_dict, from_json, to_dict, to_json
from onereel.config.run import RunConfig

__all__ = [
    "AugmentConfig",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RunConfig",
    "TextConfig",
    "TokensConfig",
    "TrainConfig",
    "check_is_of_run",
    "from_dict",
    "from_json",
    "to_dict",
    "to_json",
]
