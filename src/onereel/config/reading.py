"""Configurations to and from plain dictionaries and JSON; strict."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any, Literal

from onereel.config.run import RunConfig
from onereel.errors import ConfigError, did_you_mean


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain dictionary of a config (tuples become lists, as JSON has them)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type, values: dict[str, Any], path: str = "") -> Any:
    """Build dataclass `cls` from `values`; an unknown key is an error that names the nearest known one."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"config {path.rstrip('.') or 'file'} is {values!r}; allowed: named values"
        )
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown config key {path + key!r}.{did_you_mean(key, known)}")
        if dataclasses.is_dataclass(hints[key]):
            value = from_dict(hints[key], value, f"{path}{key}.")
        else:
            value = tuple(value) if isinstance(value, list) else value
            if not _fits(value, hints[key]):
                expected = getattr(hints[key], "__name__", str(hints[key]).replace("typing.", ""))
                raise ConfigError(f"config {path}{key} is {value!r}; allowed: {expected}")
        arguments[key] = value
    return cls(**arguments)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type that a field declares; whole numbers are floats too."""
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if parts[-1] is Ellipsis:
            return isinstance(value, tuple) and all(_fits(v, parts[0]) for v in value)
        return (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(_fits(v, h) for v, h in zip(value, parts))
        )
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def to_json(config: RunConfig) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def check_is_of_run(folder: str | Path, values: Any) -> None:
    """Raise ConfigError where the `config.json` of a folder, whose `values` are given, is that of a saved model."""
    if not isinstance(values, dict) or "model_type" not in values:
        return
    own = values.get("config")
    learned = own.get("objective", {}).get("kind") if isinstance(own, dict) else ""
    uses = [f"start a new run from it (`onereel train RECIPE --model.pretrained {folder}`)"]
    if learned:
        uses.append(f"test it (`onereel eval {folder} --data.val LIST --name NAME`)")
    if learned == "classification":
        uses.append(f"label videos (`onereel predict {folder} VIDEO`)")
    elif learned:
        uses.append(f"embed videos (`onereel embed {folder} LIST --out features.parquet`)")
    raise ConfigError(
        f"{folder} holds a saved model ({values['model_type']}) and no run, whose lists, checkpoints and logs are "
        f"needed here: give a run's folder. With a saved model one can {', or '.join(uses)}"
    )


def from_json(text: str) -> RunConfig:
    """The config that `to_json` wrote. Raises ConfigError on keys this version does not know."""
    return from_dict(RunConfig, json.loads(text))
