"""Models from run folders, checkpoints, saved folders and the Hugging Face Hub; and weights to start a run from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.archives import read_archive
from onereel.config import RunConfig, from_dict
from onereel.data.annotations import Annotations
from onereel.errors import ConfigError
from onereel.fitting import (
    OURS,
    encoder_of,
    load_weights,
    to_start_from,
    warn_of_other_pixels,
)
from onereel.models import Student, Trainee
from onereel.models.dual_encoder import DualEncoder
from onereel.models.factorised import FactorisedEncoder
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.pretrained import (
    Converted,
    LoadReport,
    Weights,
    convert_blocks,
    fluxvit,
    load_converted,
    locate,
    read_weights,
    videomae,
    vivit,
)
from onereel.models.pretrained.clip import MAY_BE_NEW as CLIP_MAY_BE_NEW
from onereel.models.pretrained.folder import holds_saved_model, read_folder
from onereel.models.pretrained.halves import check_frozen, fit_tables, start_temporal
from onereel.models.pretrained.report import MAY_BE_NEW
from onereel.models.text import TOKENIZER, Tokenizer
from onereel.models.video_model import VideoModel
from onereel.training import holds_run, is_checkpoint, is_main, latest_valid, run_on_main

logger = logging.getLogger(__name__)

MAY_BE_NEW_IN_PAIRS = rf"{CLIP_MAY_BE_NEW}|video\.({MAY_BE_NEW})|text\."
"""Weights of a video model have no text tower; in the video tower, what may in others."""


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
class Pretrained:
    """What masked pre-training or distillation made, and its configuration; it knows no classes."""

    model: MaskedAutoencoder | Student
    config: RunConfig
    class_names: tuple[str, ...] = ()


def load(source: str | Path, config: RunConfig | None = None) -> TrainedModel:
    """A model that classifies, in evaluation mode.

    Args:
        source: a run folder, a checkpoint file, a folder of `save_pretrained`, one of transformers'
            `VideoMAEForVideoClassification` or `VivitForVideoClassification`, or the name OWNER/MODEL of one of the
            last two on the Hugging Face Hub.
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
    if isinstance(trained, Pretrained):
        raise ConfigError(
            f"{source} was pre-trained without labels and has no classes to answer with. Fine-tune it: "
            f"onereel train RECIPE --model.pretrained {source}"
        )
    return trained


def load_trained(
    source: str | Path, config: RunConfig | None = None
) -> TrainedModel | Pretrained | TrainedDualEncoder:
    """Whatever was trained there, in evaluation mode; arguments and errors as `load`."""
    found = _find(source)
    if isinstance(found, Weights):
        return _load_foreign(found, config)
    tensors, own_config, class_names, facts = found
    config = config or own_config
    if build.learns_pairs(config):
        return load_dual_encoder(source, config)
    model = build.build_trainee(config, len(class_names))
    saved = Converted(OURS, dict(tensors), {name: name for name in tensors})
    encoder = encoder_of(model)
    if isinstance(encoder, FactorisedEncoder):
        fit_tables(saved, encoder)
    load_converted(model, saved, source=str(source), whole=True)
    if isinstance(model, MaskedAutoencoder | Student):
        return Pretrained(model.eval(), config)
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
    load_converted(model, to_start_from(tensors, model), source=str(source), whole=True)
    return TrainedDualEncoder(model.eval(), config, facts)


def find_tokenizer(source: str | Path, context_length: int) -> Tokenizer | None:
    """The tokenizer beside weights, in their folder or that of their run; None where there is none."""
    path = locate(source)
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    files = [folder / TOKENIZER for folder in folders if (folder / TOKENIZER).is_file()]
    return Tokenizer.load(files[0], context_length) if files else None


def tokenizer_for(
    config: RunConfig, annotations: Annotations, run: Path | None = None
) -> Tokenizer | None:
    """That of the `run` that goes on, or of the weights to start from, else one of the captions, made once for all
    processes; None where none are learned.

    Raises:
        OnereelError: the list has no captions, or the run has lost its tokenizer.
    """
    if not build.learns_pairs(config):
        return None
    next(annotations.captions(), None)  # says where there are none
    source, length = run or config.model.pretrained, config.text.context_length
    found = find_tokenizer(source, length) if source else None
    if run and found is None:
        raise ConfigError(f"{run} has lost its {TOKENIZER}, without which it cannot go on")
    if found is not None:
        return found
    text = run_on_main(lambda: build.build_tokenizer(config, annotations).to_json())
    return Tokenizer.from_json(text, length)


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
    """The model's tensors in a checkpoint, averaged where the run averaged them; without those of the loss."""
    tensors = {**state["model"], **(state["ema"] or {})}
    return {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.")
    }


def _facts_of_run(run: Path) -> dict[str, Any]:
    """For the card: the lists' names, and the numbers of the run's own evaluation."""
    path = run / "eval" / "val.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    names = (
        *("top1", "top5", "verb_top1", "noun_top1", "mean_class_accuracy"),
        *("kept_ratio", "num_videos"),
        *("median_rank", "video_to_text_top1", "video_to_text_top5"),
        *("mean_map", "mean_ndcg", "accuracy", "accuracy_intra", "accuracy_inter"),
    )
    config = json.loads((run / "config.json").read_text())["data"]
    return {
        "train_list": Path(config["train"]).name,
        "val_list": Path(config["val"]).name,
        "metrics": {name: result[name] for name in names if result.get(name) is not None},
    }


def _config_of_transformers(weights: Weights) -> tuple[RunConfig, tuple[str, ...]]:
    """Of VideoMAE, or ViViT, and its class names; numbers where it has none."""
    configured = vivit.run_config_of if vivit.is_vivit(weights.config) else videomae.run_config_of
    config, class_names = configured(weights.config, weights.source)
    classifier = weights.tensors.get("classifier.bias")
    if classifier is None:
        raise ConfigError(f"{weights.source} has no classifier")
    return config, class_names or tuple(map(str, range(len(classifier))))


def _load_foreign(weights: Weights, config: RunConfig | None) -> TrainedModel:
    """A classifier of another family."""
    if fluxvit.family_of_file(weights.tensors) is not None:
        own_config, class_names = fluxvit.run_config_of(weights.tensors, weights.source)
    else:
        own_config, class_names = _config_of_transformers(weights)
    config = config or own_config
    model = build.build_model(config, len(class_names))
    logger.info("%s", load_weights(model, weights, config, whole=True))
    return TrainedModel(model.eval(), config, class_names)


def _start_from_ours(
    model: Trainee,
    config: RunConfig,
    found: Saved,
    class_names: Sequence[str],
    start: Callable[[Converted], None],
) -> LoadReport:
    tensors, trained_with, their_classes, _ = found
    source, positions = config.model.pretrained, trained_with.model.positions
    if positions != config.model.positions:  # fixed tables are no part of the weights
        raise ConfigError(
            f"{source} was trained with model.positions {positions}, and this run has {config.model.positions}: "
            f"set --model.positions {positions}"
        )
    if config.model.keep_head and tuple(class_names) != their_classes:
        raise ConfigError(
            f"model.keep_head is on, but the {len(their_classes)} classes of {source} are not this run's "
            f"{len(class_names)}; set it to False"
        )
    pixels = trained_with.augment
    warn_of_other_pixels(source, (pixels.mean, pixels.std), config)
    may_be_new = MAY_BE_NEW_IN_PAIRS if isinstance(model, DualEncoder) else MAY_BE_NEW
    is_joint = positions == "learned" and not trained_with.model.temporal_depth
    num_times = build.frames_read(trained_with) // trained_with.model.tubelet_size
    converted = to_start_from(tensors, model, num_times if is_joint else 1)
    start(converted)
    return load_converted(
        model,
        converted,
        source=source,
        keep_head=config.model.keep_head,
        may_be_new=may_be_new,
    )


def _start_of_halves(model: Trainee, config: RunConfig) -> Callable[[Converted], None]:
    """What lets a factorised encoder's temporal half start as `model.temporal_init` says, and sees that a frozen
    spatial one has a start."""
    encoder, name = encoder_of(model), config.model.temporal_init
    if not isinstance(encoder, FactorisedEncoder):
        return lambda found: None
    source = _temporal_source(encoder, name) if name not in ("", "random") else None

    def start(found: Converted) -> None:
        check_frozen(found, encoder, config.model.pretrained)
        if name:
            start_temporal(found, source, encoder, config.model.temporal_blocks)

    return start


def _temporal_source(encoder: FactorisedEncoder, name: str) -> Converted:
    there = _find(name)
    if isinstance(there, Weights):
        return convert_blocks(there.tensors, there.config, encoder.temporal, name)
    ours = {key.removeprefix("video."): value for key, value in there[0].items()}
    return Converted(OURS, ours, {key: key for key in ours})


def check_start(
    model: Trainee, config: RunConfig, first: RunConfig, class_names: Sequence[str]
) -> None:
    """Raise ConfigError where weights of a run of `first` will not fit the model of `config.after`."""
    weights = build.build_trainee(first, len(class_names)).state_dict()
    classes = tuple(class_names) if first.objective.kind == "classification" else ()
    named = replace(config, after="", model=replace(config.model, pretrained=config.after))
    start = _start_of_halves(model, named)
    _start_from_ours(model, named, (weights, first, classes, {}), class_names, start)


def load_encoder(model: Trainee, config: RunConfig, class_names: Sequence[str] = ()) -> LoadReport:
    """Start from the weights that `config.model.pretrained` names, and print what became of each tensor.

    The classifier stays fresh, unless `model.keep_head`; so does a decoder that the weights lack, and a factorised
    encoder's temporal half, unless it or `model.temporal_init` has one. Other pixels than they were trained on are a
    warning.

    Args:
        class_names: of this run.

    Raises:
        OnereelError: there are none, or a tensor does not fit; the model is unchanged then.
    """
    source = config.model.pretrained
    start = _start_of_halves(model, config)
    found = _find(source)
    if not isinstance(found, Weights):
        report = _start_from_ours(model, config, found, class_names, start)
    elif config.model.keep_head:
        raise ConfigError(
            f"model.keep_head is on, but {source} is no run of onereel, whose classes are known; set it to False"
        )
    else:
        report = load_weights(model, found, config, start=start)
    if is_main():
        print(report, flush=True)
    return report
