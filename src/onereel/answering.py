"""Labels for videos from a trained run: under its own settings, or under a row of its table of budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.config import EvalConfig, RunConfig, to_json
from onereel.errors import ConfigError
from onereel.evaluation.answer_journal import AnswerJournal
from onereel.evaluation.budget_table import Wanted
from onereel.evaluation.predict import Answer
from onereel.evaluation.predict import predict as _predict
from onereel.loading import TrainedModel, load
from onereel.training import pick_device
from onereel.tuning import Choice, choose
from onereel.tuning.circumstances import weights_of
from onereel.tuning.settings import threads
from onereel.types import Prediction
from onereel.video.library import open_library
from onereel.video.sources import named_videos

MANY_VIDEOS = 32
"""Fewer are read before workers have started."""


def predict(
    run: str | Path | TrainedModel,
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
    journal: str | Path = "",
    on_choice: Callable[[Choice], None] | None = None,
    on_answer: Callable[[Answer], None] | None = None,
) -> list[Answer]:
    """Label raw video files, one answer each; a file that cannot be read is answered with its reason.

    Args:
        run: its folder, or another source of `load`; or what `load` gave, which stays on the device.
        videos: one or several of: a file, a folder (searched recursively), a list or CSV with a path column.
        num_clips, num_crops: views of each video; None: the run's, or those of the table of budgets.
        num_workers: processes that read ahead. None: on CUDA, of 32 videos or more, the cores left over, else none.
        budget, latency_ms, target_accuracy: at most one: the most accurate row of RUN/budgets.json (`tune_budget`)
            with that many tokens per clip at most, or whose latency per video is promised to be within it; or the
            quickest of that accuracy (a share). Answers then say how long they took.
        journal: a file that answers are appended to as they come. Those that it has already, by the same model and
            settings and of files that have not changed since, are not asked for again.
        on_choice: called with the row before it is used.
        on_answer: called with each answer, in order, as soon as it is known.

    Raises:
        ConfigError: there is no table for the run's weights, or none of its rows fits.
    """
    trained, chosen, choice = _loaded(run), pick_device(device), None
    if any(wish is not None for wish in (budget, latency_ms, target_accuracy)):
        _check_as_measured(num_clips, num_crops, num_workers)
        choice = choose(
            _folder_of(run), trained, Wanted(budget, latency_ms, target_accuracy), chosen
        )
        if on_choice is not None:
            on_choice(choice)
        trained = choice.apply(trained)
    views = _views(trained.config.eval, num_clips=num_clips, num_crops=num_crops)
    settings = {**_settings(trained, views), "top_k": top_k, "timed": choice is not None}
    files = named_videos(videos)
    kept = AnswerJournal(Path(journal), _key(trained, settings)) if journal else None
    known = kept.read(files) if kept else {}
    rest = [file for file in files if file not in known]
    workers = _num_workers(num_workers, trained.config, chosen, len(rest), choice)
    library = open_library(timeout_seconds=trained.config.data.timeout_seconds)
    model, answers = trained.model.to(chosen), []
    with threads(choice.num_threads if choice else torch.get_num_threads()):
        fresh = _predict(model, library, rest, device=chosen, num_workers=workers, **settings)
        for answer in _in_order(files, known, fresh, kept):
            if on_answer is not None:
                on_answer(answer)
            answers.append(answer)
    return answers


def _views(own: EvalConfig, **asked: int | None) -> EvalConfig:
    given: dict[str, Any] = {name: count for name, count in asked.items() if count is not None}
    return replace(own, **given)


def _in_order(
    files: Sequence[str],
    known: Mapping[str, Answer],
    fresh: Iterator[Answer],
    kept: AnswerJournal | None,
) -> Iterator[Answer]:
    """An answer for each of `files`: known, or the next of the `fresh` ones, which are kept."""
    for file in files:
        if file in known:
            yield known[file]
            continue
        answer = next(fresh)
        if kept is not None and isinstance(answer, Prediction):
            kept.add(answer)
        yield answer


def _settings(trained: TrainedModel, views: EvalConfig) -> dict[str, Any]:
    """How the model is shown clips: as it was trained."""
    config = trained.config
    return {
        "class_names": trained.class_names,
        "num_clips": views.num_clips,
        "num_crops": views.num_crops,
        "num_frames": build.frames_read(config),
        "size": config.data.size,
        "sampling": config.data.sampling,
        "sampling_rate": config.data.sampling_rate,
        "precision": config.train.precision,
        "augment": config.augment,
        "seed": config.seed,
    }


def _key(trained: TrainedModel, settings: dict[str, Any]) -> str:
    """Tells answers by this model and under these settings from others."""
    told = (weights_of(trained), to_json(trained.config), settings)
    return hashlib.blake2b(repr(told).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _loaded(run: str | Path | TrainedModel) -> TrainedModel:
    return run if isinstance(run, TrainedModel) else load(run)


def _folder_of(run: str | Path | TrainedModel) -> str | Path:
    if isinstance(run, TrainedModel):
        raise ConfigError(
            "a budget, a latency or an accuracy is looked up in the table of a run: give the folder of the run in "
            "place of the loaded model"
        )
    return run


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
    asked: int | None,
    config: RunConfig,
    device: torch.device,
    num_videos: int,
    choice: Choice | None,
) -> int:
    """Processes that read: as asked; else those of the run where they pay."""
    if asked is not None:
        if asked < 0:
            raise ConfigError(f"num_workers is {asked}; allowed: 0 or more")
        return asked
    pays = device.type == "cuda" and num_videos >= MANY_VIDEOS and choice is None
    return build.num_workers(config) if pays else 0
