"""Labels for videos from a trained run: under its own settings, or under a row of its table of budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.config import RunConfig
from onereel.errors import ConfigError
from onereel.evaluation.budget_table import Wanted
from onereel.evaluation.predict import Answer
from onereel.evaluation.predict import predict as _predict
from onereel.loading import TrainedModel, load
from onereel.training import pick_device
from onereel.tuning import Choice, choose
from onereel.tuning.settings import threads
from onereel.video.library import open_library
from onereel.video.sources import named_videos

MANY_VIDEOS = 32
"""Fewer are read before workers have started."""


def predict(
    run: str | Path,
    videos: str | Path | Sequence[str | Path],
    *,
    top_k: int = 5,
    num_clips: int | None = None,
    num_crops: int | None = None,
    device: str = "auto",
    num_workers: int | None = None,
    budget: int | None = None,
    latency_ms: float | None = None,
    target_accuracy: float | None = None,
    on_choice: Callable[[Choice], None] | None = None,
    on_answer: Callable[[Answer], None] | None = None,
) -> list[Answer]:
    """Label raw video files, one answer each; a file that cannot be read is answered with its reason.

    Args:
        videos: one or several of: a file, a folder (searched recursively), a list or CSV with a path column.
        num_clips, num_crops: views of each video; None: the run's, or those of the table of budgets.
        num_workers: processes that read ahead. None: on CUDA, of 32 videos or more, the run's (the cores left
            over), else none; a CPU is best used by the model.
        budget, latency_ms, target_accuracy: at most one: the most accurate row of RUN/budgets.json (`tune_budget`)
            with that many tokens per clip at most, or whose latency per video is promised to be within it; or the
            quickest row of that accuracy (a share). Answers then say how long they took.
        on_choice: called with the row before it is used.
        on_answer: called with each answer as soon as it is known.

    Raises:
        ConfigError: there is no table for the run's weights, or none of its rows fits.
    """
    trained, chosen, choice = load(run), pick_device(device), None
    wishes = (budget, latency_ms, target_accuracy)
    if any(wish is not None for wish in wishes):
        _check_as_measured(num_clips, num_crops, num_workers)
        choice = choose(run, trained, Wanted(*wishes), chosen)
        if on_choice is not None:
            on_choice(choice)
        trained = choice.apply(trained)
    config = trained.config
    asked = {"num_clips": num_clips, "num_crops": num_crops}
    views = replace(config.eval, **{key: n for key, n in asked.items() if n is not None})
    files = named_videos(videos)
    with threads(choice.num_threads if choice else torch.get_num_threads()):
        return _predict(
            trained.model.to(chosen),
            open_library(timeout_seconds=config.data.timeout_seconds),
            files,
            **_settings(trained),
            num_clips=views.num_clips,
            num_crops=views.num_crops,
            top_k=top_k,
            device=chosen,
            num_workers=_num_workers(num_workers, config, chosen, len(files), choice is not None),
            timed=choice is not None,
            on_answer=on_answer,
        )


def _settings(trained: TrainedModel) -> dict[str, Any]:
    """How the model is shown clips: as it was trained."""
    config = trained.config
    return {
        "class_names": trained.class_names,
        "num_frames": build.frames_read(config),
        "size": config.data.size,
        "sampling": config.data.sampling,
        "sampling_rate": config.data.sampling_rate,
        "precision": config.train.precision,
        "augment": config.augment,
        "seed": config.seed,
    }


def _check_as_measured(
    num_clips: int | None, num_crops: int | None, num_workers: int | None
) -> None:
    if num_clips is not None or num_crops is not None:
        raise ConfigError(
            "the views are part of what was measured: leave num_clips and num_crops out, or measure with others by "
            "`onereel tune-budget --num-clips N --num-crops N --overwrite`"
        )
    if num_workers:
        raise ConfigError(
            f"num_workers is {num_workers}, but a promised latency is that of one video after the other: leave it out"
        )


def _num_workers(
    asked: int | None, config: RunConfig, device: torch.device, num_videos: int, timed: bool
) -> int:
    """Processes that read: as asked; else those of the run where they pay."""
    if asked is not None:
        if asked < 0:
            raise ConfigError(f"num_workers is {asked}; allowed: 0 or more")
        return asked
    pays = device.type == "cuda" and num_videos >= MANY_VIDEOS and not timed
    return build.num_workers(config) if pays else 0
