"""Models from run folders, checkpoints, saved folders and the Hugging Face Hub; and weights to start a run from."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.archives import read_archive
from onereel.config import RunConfig, from_dict
from onereel.errors import ConfigError
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.pretrained import (
    Converted,
    LoadReport,
    Weights,
    convert,
    load_converted,
    locate,
    read_weights,
)
from onereel.models.pretrained.folder import holds_saved_model, read_folder
from onereel.models.pretrained.videomae import run_config_of
from onereel.models.video_model import VideoModel
from onereel.training import holds_run, is_checkpoint, latest_valid

logger = logging.getLogger(__name__)

OURS = "onereel"


@dataclass(frozen=True)
class TrainedModel:
    """A model with what is needed to use it.

    Attributes:
        config: that it was trained with, or is used with.
        class_names: in the order of its logits.
        facts: where it came from, as far as is known (see `pretrained.card.model_card`).
    """

    model: VideoModel
    config: RunConfig
    class_names: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, configuration and card, so that `load(folder)` gives the model back."""
        return self.model.save_pretrained(folder, self.class_names, self.facts)

    def push_to_hub(self, name: str, *, private: bool = True) -> str:
        """Upload the same as the model `owner/name` of the Hugging Face Hub; the commit's address is the answer."""
        return self.model.push_to_hub(name, self.class_names, self.facts, private=private)


def load(source: str | Path, config: RunConfig | None = None) -> TrainedModel:
    """A model in evaluation mode.

    Args:
        source: a run folder, a checkpoint file, a folder of `save_pretrained`, one of transformers'
            `VideoMAEForVideoClassification`, or the name OWNER/MODEL of one of the last two on the Hugging Face Hub.
        config: use the weights under this configuration (other tokens, say) in place of their own.

    Raises:
        OnereelError: there is no whole model, or it does not fit `config`.
    """
    found = _find(source)
    if isinstance(found, Weights):
        return _load_videomae(found, config)
    tensors, own_config, class_names, facts = found
    config = config or own_config
    if config.objective.kind != "classification":
        raise ConfigError(
            f"{source} was pre-trained without labels and has no classes to answer with. Fine-tune it: "
            f"onereel train RECIPE --model.pretrained {source}"
        )
    model = build.build_model(config, len(class_names))
    saved = Converted(OURS, dict(tensors), {name: name for name in tensors})
    load_converted(model, saved, source=str(source), whole=True)
    return TrainedModel(model.eval(), config, class_names, facts)


Saved = tuple[Mapping[str, torch.Tensor], RunConfig, tuple[str, ...], Mapping[str, Any]]


def _find(source: str | Path) -> Saved | Weights:
    """What lies there: a model of ours (tensors, configuration, class names, facts), or weights of another family."""
    path = locate(source)
    if path.is_dir() and holds_saved_model(path):
        saved = read_folder(path)
        return saved.tensors, saved.config, saved.class_names, saved.facts
    facts: dict[str, Any] = {}
    if path.is_dir() and holds_run(path):
        state, facts = latest_valid(path)[1], _facts_of_run(path)
    elif path.is_dir() or path.suffix == ".safetensors":
        return read_weights(source)
    else:
        state = read_archive(path)
        if not is_checkpoint(state):
            return read_weights(source)
    facts = {"step": state["step"], "versions": state.get("versions", {}), **facts}
    return (
        _averaged(state),
        from_dict(RunConfig, state["config"]),
        tuple(state["class_names"]),
        facts,
    )


def _averaged(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint, averaged where the run averaged them."""
    tensors = {**state["model"], **(state["ema"] or {})}
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def _facts_of_run(run: Path) -> dict[str, Any]:
    """For the card: the lists' names, and the numbers of the run's own evaluation."""
    path = run / "eval" / "val.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    names = ("top1", "top5", "mean_class_accuracy", "kept_ratio", "num_videos")
    config = json.loads((run / "config.json").read_text())["data"]
    return {
        "train_list": Path(config["train"]).name,
        "val_list": Path(config["val"]).name,
        "metrics": {name: result[name] for name in names if name in result},
    }


def _to_start_from(
    tensors: Mapping[str, torch.Tensor], model: VideoModel | MaskedAutoencoder
) -> Converted:
    """Weights of ours for a model that may pool before its norm, and that may lack a decoder or a classifier."""
    found = Converted(OURS)
    moves = isinstance(model.encoder.norm, torch.nn.Identity) and "head.norm.weight" not in tensors
    parts = {name for name, _ in model.named_children()}
    for name, value in tensors.items():
        ours = name
        if moves and name.startswith("encoder.norm."):
            ours = name.replace("encoder.norm.", "head.norm.")
            found.changes[ours] = "was the norm of the tokens"
        part = name.split(".")[0]
        if part in parts:
            found.tensors[ours], found.origins[ours] = value, name
        else:
            found.left_out[name] = f"this model has no {part}"
    return found


def _load_videomae(weights: Weights, config: RunConfig | None) -> TrainedModel:
    own_config, class_names = run_config_of(weights.config, weights.source)
    config = config or own_config
    classifier = weights.tensors.get("classifier.bias")
    if classifier is None:
        raise ConfigError(f"{weights.source} has no classifier")
    class_names = class_names or tuple(map(str, range(len(classifier))))
    model = build.build_model(config, len(class_names))
    load_weights(model, weights, config, whole=True)
    return TrainedModel(model.eval(), config, class_names)


def load_weights(
    model: VideoModel | MaskedAutoencoder,
    weights: Weights,
    config: RunConfig,
    *,
    whole: bool = False,
) -> LoadReport:
    """Put another family's weights into the model and log what became of each tensor."""
    converted = convert(
        weights.tensors,
        weights.config,
        model.encoder,
        inflation=config.model.inflation,
        source=weights.source,
    )
    report = load_converted(model, converted, source=weights.source, whole=whole)
    logger.info("%s", report)
    given = (config.augment.mean, config.augment.std)
    if weights.pixel_stats is not None and weights.pixel_stats != given:
        logger.warning(
            "%s was trained on pixels of mean %s and standard deviation %s; augment.mean and augment.std are %s, %s",
            *(weights.source, *weights.pixel_stats, *given),
        )
    return report


def load_encoder(model: VideoModel | MaskedAutoencoder, config: RunConfig) -> LoadReport:
    """Start from the weights that `config.model.pretrained` names; the classifier stays fresh.

    Raises:
        OnereelError: there are none, or a tensor does not fit; the model is unchanged then.
    """
    source = config.model.pretrained
    found = _find(source)
    if isinstance(found, Weights):
        return load_weights(model, found, config)
    learned_with = found[1].model.positions
    if learned_with != config.model.positions:  # fixed tables are no part of the weights
        raise ConfigError(
            f"{source} was trained with model.positions {learned_with}, and this run has {config.model.positions}: "
            f"set --model.positions {learned_with}"
        )
    report = load_converted(model, _to_start_from(found[0], model), source=source)
    logger.info("%s", report)
    return report
