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
from onereel.models.dual_encoder import DualEncoder
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
from onereel.models.pretrained.clip import MAY_BE_NEW as CLIP_MAY_BE_NEW
from onereel.models.pretrained.clip import convert_clip, is_clip
from onereel.models.pretrained.folder import holds_saved_model, read_folder
from onereel.models.pretrained.report import MAY_BE_NEW
from onereel.models.pretrained.videomae import run_config_of
from onereel.models.text import TOKENIZER, Tokenizer
from onereel.models.video_model import VideoModel
from onereel.tokens.positions import resize_positions
from onereel.training import holds_run, is_checkpoint, is_main, latest_valid
from onereel.types import TubeletGrid

logger = logging.getLogger(__name__)

OURS = "onereel"
MAY_BE_NEW_IN_PAIRS = rf"{CLIP_MAY_BE_NEW}|text\."
"""Weights of a video model have no text tower."""


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


@dataclass(frozen=True)
class TrainedAutoencoder:
    """What masked pre-training made, and its configuration; it knows no classes."""

    model: MaskedAutoencoder
    config: RunConfig
    class_names: tuple[str, ...] = ()


def load(source: str | Path, config: RunConfig | None = None) -> TrainedModel:
    """A model that classifies, in evaluation mode.

    Args:
        source: a run folder, a checkpoint file, a folder of `save_pretrained`, one of transformers'
            `VideoMAEForVideoClassification`, or the name OWNER/MODEL of one of the last two on the Hugging Face Hub.
        config: use the weights under this configuration (other tokens, say) in place of their own.

    Raises:
        OnereelError: there is no whole model, or it does not fit `config`.
    """
    trained = load_trained(source, config)
    if isinstance(trained, TrainedDualEncoder):
        raise ConfigError(
            f"{source} compares videos with texts and has no classes: onereel.load_dual_encoder loads it, "
            "`onereel embed` and `onereel search` use it"
        )
    if isinstance(trained, TrainedAutoencoder):
        raise ConfigError(
            f"{source} was pre-trained without labels and has no classes to answer with. Fine-tune it: "
            f"onereel train RECIPE --model.pretrained {source}"
        )
    return trained


def load_trained(
    source: str | Path, config: RunConfig | None = None
) -> TrainedModel | TrainedAutoencoder | TrainedDualEncoder:
    """Whatever was trained there, in evaluation mode; arguments and errors as `load`."""
    found = _find(source)
    if isinstance(found, Weights):
        return _load_videomae(found, config)
    tensors, own_config, class_names, facts = found
    config = config or own_config
    if build.learns_pairs(config):
        return load_dual_encoder(source, config)
    model = build.build_trainee(config, len(class_names))
    saved = Converted(OURS, dict(tensors), {name: name for name in tensors})
    load_converted(model, saved, source=str(source), whole=True)
    if isinstance(model, MaskedAutoencoder):
        return TrainedAutoencoder(model.eval(), config)
    assert isinstance(model, VideoModel)
    return TrainedModel(model.eval(), config, class_names, facts)


@dataclass(frozen=True)
class TrainedDualEncoder:
    """Both towers with what is needed to use them.

    Attributes:
        config: that they were trained with, or are used with.
        facts: where they came from, as far as is known (see `pretrained.card.model_card`).
    """

    model: DualEncoder
    config: RunConfig
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, configuration, tokenizer and card, so that `load_dual_encoder(folder)` gives them back."""
        return self.model.save_pretrained(folder, self.facts)

    def push_to_hub(self, name: str, *, private: bool = True) -> str:
        """Upload the same as the model `owner/name` of the Hugging Face Hub; the commit's address is the answer."""
        return self.model.push_to_hub(name, self.facts, private=private)


def load_dual_encoder(source: str | Path, config: RunConfig | None = None) -> TrainedDualEncoder:
    """The towers of a video-language run in evaluation mode.

    Args:
        source: the run's folder, a checkpoint in it, a folder of `save_pretrained`, or the name OWNER/MODEL of one on
            the Hugging Face Hub.
        config: use the weights under this configuration (other tokens, say) in place of their own.

    Raises:
        OnereelError: there is no such model, or its weights do not fit `config`.
    """
    found = _find(source)
    if isinstance(found, Weights) or not build.learns_pairs(found[1]):
        raise ConfigError(
            f"{source} is no video-language run: onereel train RECIPE --objective.kind contrastive makes one"
        )
    tensors, own_config, _, facts = found
    config = config or own_config
    tokenizer = find_tokenizer(source, config.text.context_length)
    if tokenizer is None:
        raise ConfigError(f"{source} has lost its {TOKENIZER}; copy it from the folder of the run")
    model = build.build_dual_encoder(config, tokenizer)
    load_converted(model, _to_start_from(tensors, model), source=str(source), whole=True)
    return TrainedDualEncoder(model.eval(), config, facts)


def find_tokenizer(source: str | Path, context_length: int) -> Tokenizer | None:
    """The tokenizer beside weights, in their folder or that of their run; None where there is none."""
    path = locate(source)
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    files = [folder / TOKENIZER for folder in folders if (folder / TOKENIZER).is_file()]
    return Tokenizer.load(files[0], context_length) if files else None


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
    names = (
        *("top1", "top5", "mean_class_accuracy", "kept_ratio", "num_videos"),
        *("median_rank", "video_to_text_top1", "video_to_text_top5"),
    )
    config = json.loads((run / "config.json").read_text())["data"]
    return {
        "train_list": Path(config["train"]).name,
        "val_list": Path(config["val"]).name,
        "metrics": {name: result[name] for name in names if name in result},
    }


def _to_start_from(
    tensors: Mapping[str, torch.Tensor], model: VideoModel | MaskedAutoencoder | DualEncoder
) -> Converted:
    """Weights of ours for a model that may pool before its norm, that may lack a decoder, a classifier or a text tower,
    or that may see other lengths of clip and sizes of picture."""
    found = Converted(OURS)
    wanted = model.state_dict()
    moves = "head.norm.weight" in wanted and "head.norm.weight" not in tensors
    from_pairs = any(name.startswith("video.") for name in tensors)
    parts = {name for name, _ in model.named_children()}
    for name, value in tensors.items():
        ours = name
        if from_pairs and "video" not in parts:
            ours = name.removeprefix("video.")
        elif "video" in parts and not from_pairs:
            ours = f"video.{name}"
        if moves and ours.startswith("encoder.norm."):
            ours = ours.replace("encoder.norm.", "head.norm.")
            found.changes[ours] = "was the norm of the tokens"
        if from_pairs and ours == "head.fc.weight":
            found.left_out[name] = "into the space of captions"
        elif "video" in parts and not from_pairs and ".encoder." not in ours:
            found.left_out[name] = "of classes or pixels"
        elif ours.split(".")[0] in parts:
            found.tensors[ours], found.origins[ours] = value, name
        else:
            found.left_out[name] = f"this model has no {ours.split('.')[0]}"
    _resize_tables(found, wanted)
    return found


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


def _load_videomae(weights: Weights, config: RunConfig | None) -> TrainedModel:
    own_config, class_names = run_config_of(weights.config, weights.source)
    config = config or own_config
    classifier = weights.tensors.get("classifier.bias")
    if classifier is None:
        raise ConfigError(f"{weights.source} has no classifier")
    class_names = class_names or tuple(map(str, range(len(classifier))))
    model = build.build_model(config, len(class_names))
    logger.info("%s", load_weights(model, weights, config, whole=True))
    return TrainedModel(model.eval(), config, class_names)


def load_weights(
    model: VideoModel | MaskedAutoencoder | DualEncoder,
    weights: Weights,
    config: RunConfig,
    *,
    whole: bool = False,
) -> LoadReport:
    """Put another family's weights into the model."""
    source = weights.source
    if isinstance(model, DualEncoder):
        if not is_clip(weights.tensors):
            raise ConfigError(
                f"{source} holds no text tower; a video-language run starts from CLIP's weights or a run of onereel"
            )
        converted = convert_clip(weights.tensors, weights.config, model, source)
        report = load_converted(model, converted, source=source, may_be_new=CLIP_MAY_BE_NEW)
    else:
        converted = convert(
            weights.tensors,
            weights.config,
            model.encoder,
            inflation=config.model.inflation,
            source=source,
            decoder_heads=model.decoder.num_heads if isinstance(model, MaskedAutoencoder) else None,
        )
        report = load_converted(model, converted, source=source, whole=whole)
    if weights.pixel_stats is not None:
        _warn_of_other_pixels(source, weights.pixel_stats, config)
    return report


def _warn_of_other_pixels(
    source: str, stats: tuple[tuple[float, ...], tuple[float, ...]], config: RunConfig
) -> None:
    given = (config.augment.mean, config.augment.std)
    if stats != given:
        logger.warning(
            "%s was trained on pixels of mean %s and standard deviation %s; augment.mean and augment.std are %s, %s",
            *(source, *stats, *given),
        )


def _start_from_ours(
    model: VideoModel | MaskedAutoencoder | DualEncoder,
    config: RunConfig,
    tensors: Mapping[str, torch.Tensor],
    trained_with: RunConfig,
) -> LoadReport:
    source, positions = config.model.pretrained, trained_with.model.positions
    if positions != config.model.positions:  # fixed tables are no part of the weights
        raise ConfigError(
            f"{source} was trained with model.positions {positions}, and this run has {config.model.positions}: "
            f"set --model.positions {positions}"
        )
    pixels = trained_with.augment
    _warn_of_other_pixels(source, (pixels.mean, pixels.std), config)
    may_be_new = MAY_BE_NEW_IN_PAIRS if isinstance(model, DualEncoder) else MAY_BE_NEW
    converted = _to_start_from(tensors, model)
    return load_converted(model, converted, source=source, may_be_new=may_be_new)


def load_encoder(
    model: VideoModel | MaskedAutoencoder | DualEncoder, config: RunConfig
) -> LoadReport:
    """Start from the weights that `config.model.pretrained` names, and print what became of each tensor.

    The classifier stays fresh; so does a decoder that the weights lack. Other pixels than they were trained on are a
    warning.

    Raises:
        OnereelError: there are none, or a tensor does not fit; the model is unchanged then.
    """
    source = config.model.pretrained
    found = _find(source)
    if isinstance(found, Weights):
        report = load_weights(model, found, config)
    else:
        report = _start_from_ours(model, config, *found[:2])
    if is_main():
        print(report, flush=True)
    return report
