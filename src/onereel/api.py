"""The Python API, which is also what the verbs call: prepare, inspect, train, evaluate, tune_budget, predict, ..."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.answering import predict as predict
from onereel.caching import cached_lessons, cached_loader, check_cache, discard_features
from onereel.checking import check_annotations as check_annotations
from onereel.config import RunConfig, from_dict
from onereel.config.model import FAMILIES, ModelConfig, family_of
from onereel.data.annotations import Annotations
from onereel.data.dataset import ClipDataset
from onereel.data.loader import ClipLoader
from onereel.errors import ConfigError, unknown_name
from onereel.evaluation.classification import ClassificationResult
from onereel.evaluation.pairs import PairResult
from onereel.files import write_atomically
from onereel.inspection.pages import inspect as inspect
from onereel.loading import (
    check_start,
    load,
    load_dual_encoder,
    load_encoder,
    tokenizer_for,
)
from onereel.models import Trainee
from onereel.models.blocks import compile_blocks
from onereel.models.pretrained.folder import holds_saved_model, read_saved_config
from onereel.models.text import TOKENIZER
from onereel.models.video_model import VideoModel
from onereel.objectives import AnyObjective, DistillationObjective
from onereel.pictures import try_report
from onereel.progress import Told
from onereel.recipes import lacks_weights, load_recipe
from onereel.recipes.stages import first_stage
from onereel.teaching import load_teacher
from onereel.training import (
    FIRST,
    RunInterrupted,
    World,
    create_optimizer,
    create_run,
    create_schedule,
    distributed,
    fit,
    holds_run,
    is_done,
    is_main,
    list_checkpoints,
    on_devices,
    plan_steps,
    read_config,
    resume_state,
    run_lock,
    run_on_main,
)
from onereel.training.step import Augment
from onereel.tuning import tune_budget as tune_budget
from onereel.validation import RESULT, Validation
from onereel.video.prepare import PrepareReport
from onereel.video.prepare import prepare as _prepare

logger = logging.getLogger(__name__)

PATHS = ("train", "val", "store", "root", "cache")
"""Of a run's data."""
CLIP_OPTIONS = ("num_frames", "size")
"""Of a run's data, where a model is made by its name alone."""
WEIGHTS = ("pretrained", "backbone", "temporal_init")
"""Of a run's model: paths, or names on the Hub."""

FINISHED = (
    "{run} is finished: all its {epochs} epochs are trained, and what is left is its last test and its report. To "
    "train longer, raise train.epochs in {run}/config.json and resume it again (its learning rate then follows the "
    "longer schedule), or start a new run with --model.pretrained {run}; to test it otherwise, `onereel eval {run}`"
)


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies, how many optimiser steps it made, and its last evaluation's numbers."""

    run: Path
    step: int
    metrics: Mapping[str, float]


def create_model(name: str, num_classes: int, **options: Any) -> VideoModel:
    """A fresh model: `create_model("vit_base_patch16_224", 400, num_frames=16, tokens="run-length")`.

    Args:
        name: as `onereel recipes --models` lists them.
        num_classes: outputs of the head.
        options: num_frames, size (of the clip), tokens (the selector's kind), or any other field of `ModelConfig`.

    Raises ConfigError where a name is unknown, or the parts don't fit.
    """
    known = {*CLIP_OPTIONS, "tokens", *(field.name for field in fields(ModelConfig))} - {"name"}
    if unknown := [key for key in options if key not in known]:
        raise unknown_name("option of create_model", unknown[0], known)
    data = {key: options.pop(key) for key in CLIP_OPTIONS if key in options}
    data.setdefault("size", int(name.rsplit("_", 1)[-1]) if name[-1:].isdigit() else 224)
    tokens = {"kind": options.pop("tokens")} if "tokens" in options else {}
    model = {"name": name, **FAMILIES[family_of(name)], **options}
    values = {"data": data, "tokens": tokens, "model": model}
    return build.build_model(from_dict(RunConfig, values), num_classes)


def prepare(source: str | Path, out: str | Path, **options: Any) -> PrepareReport:
    """Cut videos into a chunk store: see `onereel.video.prepare.prepare`."""
    return _prepare(str(source), str(out), **options)


def train(
    recipe: str | RunConfig,
    *,
    data: str = "",
    val: str = "",
    store: str = "",
    out: str | Path = "",
    overwrite: bool = False,
) -> TrainResult:
    """Train a recipe; call it under torchrun for several devices.

    Args:
        recipe: a name, a path to a recipe file, or a configuration.
        data, val, store: training list, validation list and chunk store, where the configuration does not say.
        out: run folder; empty: runs/RECIPE.
        overwrite: replace a run that is there already.

    Raises:
        OnereelError: what was given cannot work; nothing has been written or removed then.
    """
    config = load_recipe(recipe) if isinstance(recipe, str) else recipe
    lists = replace(
        config.data,
        train=data or config.data.train,
        val=val or config.data.val,
        store=store or config.data.store,
    )
    config = _with_absolute_paths(replace(config, data=lists))
    run = Path(out or Path("runs") / (Path(config.recipe).stem or "run"))
    return _train(config, run, overwrite=overwrite, resume=False)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """So that the run can be resumed from any folder."""
    data, model = config.data, config.model
    lists: dict[str, Any] = {name: _absolute(getattr(data, name)) for name in PATHS}
    weights: dict[str, Any] = {name: _absolute_if_there(getattr(model, name)) for name in WEIGHTS}
    if model.temporal_init == "random":
        del weights["temporal_init"]
    return replace(
        config,
        data=replace(data, **lists),
        model=replace(model, **weights),
        distill=replace(config.distill, teacher=_absolute_if_there(config.distill.teacher)),
        after=_absolute(config.after) if config.after.endswith(".py") else config.after,
    )


def _absolute(path: str) -> str:
    return os.path.abspath(path) if path else ""


def _absolute_if_there(path: str) -> str:
    """Else it is the name of a model on the Hub."""
    return _absolute(path) if os.path.exists(path) else path


def resume(run: str | Path) -> TrainResult:
    """Go on with a run from its newest whole checkpoint. Needs nothing else."""
    return _train(read_config(run), Path(run), overwrite=False, resume=True)


def _train(config: RunConfig, run: Path, *, overwrite: bool, resume: bool) -> TrainResult:
    if not config.data.train:
        raise ConfigError("no training list: give --data.train LIST")
    with distributed(config.train.device) as world, ExitStack() as held:
        torch.set_num_threads(build.num_threads(config, world.world_size))
        return _train_in(world, config, run, overwrite, resume, held)


def _train_in(
    world: World, given: RunConfig, run: Path, overwrite: bool, resume: bool, held: ExitStack
) -> TrainResult:
    config = replace(given, train=on_devices(given.train, world.world_size))
    listed = build.build_annotations(config, config.data.train)
    class_names = build.class_names(config, listed)
    build.warn_of_rare(class_names, listed)
    build.warn_of_left_out(listed)
    dataset = _training_clips(config, listed, class_names)
    loader = build.build_train_loader(config, dataset, world=world, run=run)
    augment: Augment = build.build_augment(config, len(class_names) or None, training=True)
    goes_on = resume and bool(list_checkpoints(run))
    tokenizer = tokenizer_for(config, dataset.annotations, run if goes_on else None)
    validation = Validation(config, run, class_names, world) if config.data.val else None
    model = build.build_trainee(config, len(class_names), tokenizer)
    first = None if goes_on else _start(model, config, class_names, run if resume else None)
    objective = build.build_objective(config, model, load_teacher(config))
    plan = plan_steps(config, loader.num_batches, world.world_size)
    schedule = create_schedule(config.optim, plan)
    if not resume:
        run_on_main(lambda: check_cache(config, objective, dataset, world.device))
    run_on_main(lambda: held.enter_context(run_lock(run)))
    run_on_main(lambda: _create(run, config, overwrite, resume))
    if first is not None:
        weights = str(_train_first(world, first, run))
        started = replace(config, after="", model=replace(config.model, pretrained=weights))
        load_encoder(model, started, class_names)
    objective.to(world.device)
    if config.train.compile:
        compile_blocks(model, dynamic=True)
    if tokenizer is not None:
        text = tokenizer.to_json()
        run_on_main(lambda: write_atomically(run / TOKENIZER, text))
    state = resume_state(run) if resume else None
    if state is not None and state["step"] == plan.total_steps and is_main():
        logger.warning(FINISHED.format(run=run, epochs=plan.epochs))
    if config.data.cache_views:
        features = _read_cache(config, objective, dataset, world, run, resume, state)
        if features is not None:
            loader = features
            augment = build.build_feature_augment(config, len(class_names) or None)
    result = fit(
        objective,
        loader,
        augment,
        create_optimizer(objective, config.optim),
        schedule,
        config=config,
        run=run,
        device=world.device,
        class_names=class_names,
        evaluate=(lambda step, epoch: validation(objective)) if validation else None,
        resume=state,
    )
    shown = validation.dataset if validation else dataset
    run_on_main(lambda: try_report(run, config, objective, shown))
    return TrainResult(run, result.step, result.metrics)


def _training_clips(
    config: RunConfig, listed: Annotations, class_names: tuple[str, ...]
) -> ClipDataset:
    """Those of the list that are not held out. Raises DataError where too many videos are not there."""
    annotations, _ = build.split_held_out(config, listed)
    dataset = build.build_dataset(config, annotations, class_names or None, training=True)
    if not config.data.cache_views:  # a run whose features are made reads no video
        run_on_main(lambda: build.check_mostly_present(dataset, config.data.max_bad_ratio))
    return dataset


def _read_cache(
    config: RunConfig,
    objective: AnyObjective,
    dataset: ClipDataset,
    world: World,
    run: Path,
    resume: bool,
    state: Mapping[str, Any] | None,
) -> ClipLoader | None:
    """Give a distillation its lessons; of another run the answer is the loader of its features."""
    if isinstance(objective, DistillationObjective):
        objective.lessons = cached_lessons(
            config, objective, dataset, world=world, run=run, resumed=resume
        )
        return None
    if state is not None:
        objective.load_state_dict(state["model"])  # the features are of its weights
    return cached_loader(config, objective.model, dataset, world=world, run=run, resumed=resume)


def _create(run: Path, config: RunConfig, overwrite: bool, resume: bool) -> None:
    """The folder of the run; of one that begins without what another left there."""
    create_run(run, config, overwrite=overwrite, resume=resume)
    if not resume:
        discard_features(config, run)


def _start(
    model: Trainee, config: RunConfig, class_names: Sequence[str], resumed: Path | None
) -> RunConfig | None:
    """Load the weights to start from; where they have yet to be trained, the run that does so, of which they fit.

    That run is as it was begun, where the one `resumed` has come so far.
    """
    if not config.after:
        if config.model.pretrained:
            load_encoder(model, config, class_names)
        elif config.model.frozen != "none" and not config.model.backbone and is_main():
            logger.warning(
                "model.frozen is %s, and what is frozen stays as it was drawn at random: give --model.pretrained",
                config.model.frozen,
            )
        elif is_main() and (told := lacks_weights(config)):
            logger.warning("%s", told)
        return None
    if resumed is not None and holds_run(resumed / FIRST):
        first = read_config(resumed / FIRST)
    else:
        first = _with_absolute_paths(first_stage(config))
    check_start(model, config, first, class_names)
    return first


def _train_first(world: World, config: RunConfig, run: Path) -> Path:
    """The first stage of `run`, in a folder of its own there, which is the answer; done, gone on with, or begun."""
    folder = run / FIRST
    if run_on_main(lambda: is_done(folder)):
        return folder
    begun = run_on_main(lambda: holds_run(folder))
    try:
        with ExitStack() as held:
            _train_in(world, config, folder, overwrite=False, resume=begun, held=held)
    except RunInterrupted as stopped:
        raise RunInterrupted(run, stopped.step) from stopped
    return folder


def run_config(run: str | Path) -> RunConfig:
    """The configuration that a run was started with, or of a saved model."""
    folder = Path(run)
    is_saved = not holds_run(folder) and holds_saved_model(folder)
    return read_saved_config(folder) if is_saved else read_config(folder)


def evaluate(
    run: str | Path,
    *,
    val: str = "",
    name: str = "",
    checkpoint: str | Path = "",
    config: RunConfig | None = None,
    device: str = "auto",
    on_batch: Told | None = None,
) -> ClassificationResult | PairResult:
    """Test a run and write RUN/eval/NAME.json; under torchrun all ranks share the work.

    Args:
        run: its folder, or that of a saved model, which has no list of its own.
        val: list to test on; empty: the run's own validation list.
        checkpoint: weights; empty: the run's newest.
        name: of the result; empty: "val", where list, tokens, views and weights are the run's own.
        config: the run's configuration with other data, tokens or views.
        on_batch: called on the first rank with (batches done, batches of this rank).

    Raises:
        ConfigError: settings differ from the run's and the result has no name of its own.
    """
    own = run_config(run)
    config = config or own
    config = replace(config, data=replace(config.data, val=_absolute(val or config.data.val)))
    if not name and (config != own or checkpoint):
        raise ConfigError(
            f"these are not the settings that {run} was trained and tested with: give the result a --name"
        )
    name = name or RESULT
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            f"the name of a result is {name!r}; allowed: letters, digits, '_', '-', '.'"
        )
    if not config.data.val:
        raise ConfigError(f"{run} names no validation list: give --data.val LIST")
    with distributed(device) as world:
        weights, told = checkpoint or run, on_batch if world.rank == 0 else None
        if build.learns_pairs(config):
            test = Validation(config, Path(run), (), world)
            towers = load_dual_encoder(weights, config).model
            return test.result(towers.to(world.device), name, checkpoint, told)
        trained = load(weights, config)
        test = Validation(config, Path(run), trained.class_names, world)
        return test.result(trained.model.to(world.device), name, checkpoint, told)
