"""Our own folder of a model: `model.safetensors`, `config.json` and a card (`README.md`); on the Hub as well.

That of a dual encoder has its `tokenizer.json` too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import huggingface_hub
import safetensors.torch
from torch import Tensor

from onereel.archives import read_archive
from onereel.config import DataConfig, RunConfig, from_dict, to_dict
from onereel.errors import ConfigError
from onereel.files import write_atomically
from onereel.models.dual_encoder import DualEncoder, video_of
from onereel.models.heads import BudgetHeads, ClassificationHead
from onereel.models.pretrained.card import model_card
from onereel.models.pretrained.reading import read_json
from onereel.models.text import TOKENIZER

if TYPE_CHECKING:
    from onereel.models.video_model import VideoModel

MODEL_TYPE = "onereel"
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True)
class SavedModel:
    """What a folder holds.

    Attributes:
        tensors: of the `VideoModel` or `DualEncoder`, by its names.
        config: that the model was built from.
        class_names: in the order of the classifier; none of a dual encoder.
        facts: where it came from (see `model_card`).
    """

    tensors: Mapping[str, Tensor]
    config: RunConfig
    class_names: tuple[str, ...]
    facts: Mapping[str, Any]


def write_folder(
    folder: str | Path,
    model: VideoModel | DualEncoder,
    class_names: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model so that `onereel.load(folder)` gives it back, or `onereel.load_dual_encoder(folder)` both towers;
    the folder's path is the answer.

    Args:
        class_names: in the order of the classifier; empty: "0", "1", ... A dual encoder has none.
        facts: what the card says of the model's training, see `model_card`.

    Raises:
        ConfigError: the model does not know its configuration, the names are not as many as its classes, or the folder
            cannot be written.
    """
    video = video_of(model)
    if video.config is None:
        raise ConfigError(
            "this model does not know its configuration: make it by onereel.create_model or onereel.load, "
            "or set model.config"
        )
    names = () if isinstance(model, DualEncoder) else _class_names(model, class_names)
    tensors = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    config = portable(video.config)
    content = {
        "model_type": MODEL_TYPE,
        "config": to_dict(config),
        "class_names": names,
        "facts": dict(facts or {}),
    }
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not holds_saved_model(folder):
        raise ConfigError(
            f"{folder} holds other files, a run's or videos perhaps, among which the model's would take some names; "
            "give a folder that is new, empty, or a saved model to replace"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CARD, model_card(model, config, names, facts or {}))
        write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
        if isinstance(model, DualEncoder):
            write_atomically(folder / TOKENIZER, model.tokenizer.to_json())
        # Last: a folder without it is not taken for a model.
        write_atomically(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; give another folder") from error
    return folder


def _class_names(model: VideoModel, given: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(model.head, ClassificationHead | BudgetHeads):
        raise ConfigError(
            "this video tower cannot be saved alone: save the dual encoder that it is part of"
        )
    names = tuple(given) or tuple(map(str, range(model.head.num_classes)))
    if len(names) != model.head.num_classes:
        raise ConfigError(f"{len(names)} class names for {model.head.num_classes} classes")
    return names


def portable(config: RunConfig) -> RunConfig:
    """`config` without the paths of the machine that it ran on, but for `model.backbone`: loading asks for it again."""
    values = to_dict(config)
    values["data"] |= dict.fromkeys(("train", "val", "root", "store", "cache"), "")
    # What was held out was held out of that list.
    values["data"] |= {
        "hold_out_ratio": 0.0,
        "cache_views": 0,
        "cache_dtype": DataConfig.cache_dtype,
    }
    values["model"]["pretrained"] = values["distill"]["teacher"] = ""
    values["recipe"] = Path(config.recipe).stem
    # How it was trained is no part of a model that is used, and may name files.
    values["after"] = ""
    values["model"] |= {"temporal_init": "", "temporal_blocks": "even", "keep_head": False}
    return from_dict(RunConfig, values)


def holds_saved_model(folder: Path) -> bool:
    """Whether `write_folder` wrote the folder."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get(
        "model_type"
    ) == MODEL_TYPE


def read_saved_config(folder: Path) -> RunConfig:
    """The configuration in a folder that `write_folder` wrote. Raises OnereelError as `read_folder`."""
    return from_dict(RunConfig, read_json(folder / CONFIG)["config"])


def read_folder(folder: Path) -> SavedModel:
    """What `write_folder` wrote.

    Raises:
        OnereelError: a file is damaged or missing, or was written by a version that knows other settings.
    """
    values = read_json(folder / CONFIG)
    return SavedModel(
        read_archive(folder / WEIGHTS),
        from_dict(RunConfig, values["config"]),
        tuple(values["class_names"]),
        values["facts"],
    )


def push_folder(
    name: str,
    model: VideoModel | DualEncoder,
    class_names: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
    *,
    private: bool = True,
) -> str:
    """Upload what `write_folder` writes as the model `owner/name` of the Hub; the address of the commit is the answer.

    Needs `hf auth login` first. The repository is made where there is none, private unless said otherwise.
    """
    with TemporaryDirectory() as folder:
        write_folder(folder, model, class_names, facts)
        api = huggingface_hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload by onereel")
        )
