"""Trained models from run folders and checkpoint files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.config import RunConfig, from_dict
from onereel.errors import ConfigError
from onereel.models.video_model import VideoModel
from onereel.training import holds_run, latest_valid, load_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is needed to use it: its configuration and the names of its classes."""

    model: VideoModel
    config: RunConfig
    class_names: tuple[str, ...]


def load(path: str | Path, config: RunConfig | None = None) -> TrainedModel:
    """A trained model in evaluation mode, from a run folder or a checkpoint file.

    Args:
        config: use the weights under this configuration (other tokens, say) in place of the run's own.

    Raises:
        OnereelError: there is no whole checkpoint, or it does not fit `config`.
    """
    state = _state(path)
    config = config or from_dict(RunConfig, state["config"])
    class_names = tuple(state["class_names"])
    model = build.build_model(config, len(class_names))
    try:
        model.load_state_dict(_weights(state))
    except RuntimeError as error:
        raise ConfigError(f"the weights in {path} do not fit the configuration: {error}") from error
    return TrainedModel(model.eval(), config, class_names)


def _state(path: str | Path) -> dict[str, Any]:
    """The checkpoint in a file, or the newest whole one of a run folder."""
    path = Path(path)
    if path.is_dir() and not holds_run(path):
        raise ConfigError(
            f"{path} holds no run: there is neither config.json nor checkpoints in it"
        )
    return latest_valid(path)[1] if path.is_dir() else load_checkpoint(path)


def _weights(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint, averaged where the run averaged them."""
    tensors = {**state["model"], **(state["ema"] or {})}
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def load_encoder(model: VideoModel, path: str) -> None:
    """Start the encoder from another run's; every tensor must fit, and the head stays fresh."""
    found = {
        name.removeprefix("encoder."): value
        for name, value in _weights(_state(path)).items()
        if name.startswith("encoder.")
    }
    wanted = model.encoder.state_dict()
    wrong = {
        name
        for name in wanted.keys() | found.keys()
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape
    }
    if wrong:
        raise ConfigError(
            f"model.pretrained {path}: {len(wrong)} of {len(wanted)} encoder tensors do not fit this model "
            f"({', '.join(sorted(wrong)[:4])}…); use the model, frames and size that the weights were trained with"
        )
    model.encoder.load_state_dict(found)
    logger.info("encoder: %d tensors from %s", len(found), path)
