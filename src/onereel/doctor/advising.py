"""What to change first in a run: settings that it would accept, for the part that limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from onereel import build
from onereel.config import RunConfig
from onereel.doctor.arithmetic import Phase
from onereel.errors import ConfigError


def advice(config: RunConfig, phase: Phase, *, from_features: bool = False) -> str:
    """What to change first in `config`, for the part that limits; `from_features`: of training on cached ones."""
    rates, result = phase.rates, phase.forecast
    faster = (
        "a GPU"
        if rates.model_cores
        else "--train.precision bf16, --train.compile, more devices (torchrun)"
    )
    if from_features and result.limit == "io":
        return "the disk limits: keep the features on a faster one (--data.cache FOLDER)"
    if from_features:
        return f"training on features limits: take fewer blocks (--model.temporal-depth), or use {faster}"
    repeats = 2 * config.data.repeats
    can_repeat = accepts(config, "data", repeats=repeats)
    if result.limit == "io":
        raised = f", or raise --data.repeats to {repeats}" if can_repeat else ""
        return (
            "the disk limits: move the videos to a faster disk or into memory (/dev/shm), or prepare with fewer "
            f"bytes (--profile small, a lower --short-side){raised}"
        )
    if result.limit == "cpu":
        wanted = math.ceil(result.device / rates.decode_clips_per_second)
        first = (
            "prepare again with --profile fast or intra, or a lower --short-side"
            if config.data.store
            else "prepare the videos first (`onereel prepare`)"
        )
        on_gpu, scales = rates.model_cores == 0, config.data.scaling == "loader"
        if on_gpu and scales and accepts(config, "data", scaling="device"):
            first += "; --data.scaling device lets the device scale clips"
        if can_repeat:
            first += f"; --data.repeats {repeats} halves the decodes"
        return (
            f"decoding limits: {first}; "
            f"the model would need {wanted} decoding cores, {rates.num_worker_cores} are set (--data.num-workers)"
        )
    spare = min(result.io, result.cpu) / result.device
    fewer = " or ".join(_fewer_tokens(config))
    keep = f"keep fewer tokens ({fewer}), or " if fewer else ""
    return f"the model limits, data could come {spare:.1f}x as fast: {keep}use {faster}"


def _fewer_tokens(config: RunConfig) -> Iterator[str]:
    """How the run may keep fewer tokens."""
    if config.objective.budgets:
        yield "lower --objective.budgets"
        return
    if accepts(config, "tokens", kind="run-length"):
        yield "--tokens.kind run-length with a higher --tokens.threshold"
    if accepts(config, "tokens", kind="random"):
        count = "token-budget" if config.tokens.token_budget else "keep-ratio"
        yield f"--tokens.kind random with a lower --tokens.{count}"


def accepts(config: RunConfig, section: str, **changes: Any) -> bool:
    """Whether a run of `config` would still begin with these settings of a section."""
    try:
        changed = replace(config, **{section: replace(getattr(config, section), **changes)})
        build.build_picker(changed, training=True)
    except ConfigError:
        return False
    return changed.train.batch_size_per_device % changed.data.repeats == 0
