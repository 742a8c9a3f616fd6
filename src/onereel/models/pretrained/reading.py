"""Weights from a folder, a file or the Hugging Face Hub, by what lies there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from onereel.archives import read_archive
from onereel.errors import ConfigError, DataError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("model.safetensors", "pytorch_model.bin")
PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
CONTAINERS = ("model", "module", "state_dict")
"""Keys of training scripts under which the weights lie (VideoMAE v1 and v2, Lightning)."""


@dataclass(frozen=True)
class Weights:
    """What was read.

    Attributes:
        source: path or name, as it was given.
        tensors: by the file's own names.
        config: `config.json` beside the file; empty where there is none.
        pixel_stats: mean and standard deviation of R, G, B that the pixels were normalised by, where a file says.
    """

    source: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    pixel_stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def locate(source: str | Path) -> Path:
    """The path itself if it is there, else the folder of the model `owner/name` of the Hub, downloaded.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(source)
    if path.exists():
        return path
    if not HUB_NAME.fullmatch(str(source)):
        raise ConfigError(
            f"{source} is not there; give a folder, a file, or a name OWNER/MODEL of the Hugging Face Hub"
        )
    try:
        return _download(str(source))
    except (
        OSError,
        HFValidationError,
    ) as error:  # what the Hub's client raises for networks and names
        first_line = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"{source} is neither a path nor a model that can be had from the Hugging Face Hub: {first_line}"
        ) from error


def _download(name: str) -> Path:
    """Safetensors where the model has them, else what `torch.save` wrote."""
    folder = Path(
        huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"])
    )
    if not any(folder.glob("*.safetensors")):
        huggingface_hub.snapshot_download(name, allow_patterns=["*.json", *PATTERNS])
    return folder


def read_weights(source: str | Path) -> Weights:
    """The tensors of a file, or of the one set of weights in a folder, with the configuration beside them.

    Raises:
        ConfigError: there are no weights, or several files that may be meant.
        DataError: a file is damaged.
    """
    path = locate(source)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        tensors: dict[str, Tensor] = {}
        for file in _files(path):
            tensors |= unwrap(read_archive(file), file)
    else:
        tensors = unwrap(read_archive(path), path)
    config = read_json(folder / "config.json")
    return Weights(str(source), tensors, config, pixel_stats(folder, config))


def unwrap(content: Any, source: str | Path) -> dict[str, Tensor]:
    """The name -> tensor dictionary in what a training script saved.

    Raises:
        DataError: there is none.
    """
    for key in CONTAINERS:
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict):
            content = inner
            break
    if isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    raise DataError(
        f"{source} holds no weights: neither tensors by name, nor such under {', '.join(CONTAINERS)}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty where there is no file. Raises DataError where it cannot be read."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no dictionary")
    return values


def _files(folder: Path) -> list[Path]:
    """The files of the one set of weights in a folder: several where an index lists shards."""
    for name in FILES:
        index = read_json(folder / f"{name}.index.json")
        if index:
            return [folder / shard for shard in sorted(set(index["weight_map"].values()))]
        if (folder / name).exists():
            return [folder / name]
    for pattern in PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise ConfigError(f"{folder} has several files of weights ({names}); give one of them")
        if found:
            return found
    raise ConfigError(
        f"{folder} holds neither a run nor weights: looked for config.json with checkpoints/, "
        f"{', '.join((*FILES, *PATTERNS))}"
    )


def pixel_stats(
    folder: Path, config: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of R, G, B by transformers' preprocessor_config.json or timm's config.json, the
    `config`; None where they don't say."""
    processor = read_json(folder / "preprocessor_config.json")
    timm = config.get("pretrained_cfg", {})
    mean = processor.get("image_mean", timm.get("mean"))
    std = processor.get("image_std", timm.get("std"))
    return (tuple(mean), tuple(std)) if mean and std else None
