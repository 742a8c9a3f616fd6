"""The Python API, which is also what the verbs call: prepare, inspect, train, resume, evaluate, predict, load, ..."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.config import RunConfig, from_dict, to_dict
from onereel.data.annotation_check import AnnotationReport
from onereel.data.annotation_check import check_annotations as _check_annotations
from onereel.data.dataset import ClipDataset, Sample
from onereel.errors import ConfigError, DataError, DecodeError, OnereelError
from onereel.evaluation.classification import ClassificationResult, evaluate_classification
from onereel.evaluation.inference import evaluating, view_probabilities
from onereel.evaluation.predict import Answer
from onereel.evaluation.predict import predict as _predict
from onereel.inspection.pages import inspect as inspect
from onereel.loading import load, load_encoder
from onereel.models.video_model import VideoModel
from onereel.recipes import load_recipe
from onereel.report.examples import write_examples
from onereel.report.run_report import write_report
from onereel.tokens.packing import kept_tokens
from onereel.training import (
    World,
    create_optimizer,
    create_run,
    create_schedule,
    distributed,
    fit,
    is_main,
    pick_device,
    plan_steps,
    read_config,
    resume_state,
    run_lock,
    run_on_main,
)
from onereel.types import Batch, SampleKey
from onereel.video.library import open_library
from onereel.video.prepare import PrepareReport
from onereel.video.prepare import prepare as _prepare

logger = logging.getLogger(__name__)

RESULT = "val"
"""Name of the evaluation that a run makes of itself."""
NUM_EXAMPLES, EXAMPLES_SEARCHED = 6, 64
"""Clips shown in the report, of different classes, and how many to look through for them."""


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
    """
    data = {key: options.pop(key) for key in ("num_frames", "size") if key in options}
    data.setdefault("size", int(name.rsplit("_", 1)[-1]) if name[-1:].isdigit() else 224)
    tokens = {"kind": options.pop("tokens")} if "tokens" in options else {}
    values = {"data": data, "tokens": tokens, "model": {"name": name, **options}}
    return build.build_model(from_dict(RunConfig, values), num_classes)


def prepare(source: str | Path, out: str | Path, **options: Any) -> PrepareReport:
    """Cut videos into a chunk store: see `onereel.video.prepare.prepare`."""
    return _prepare(str(source), str(out), **options)


def check_annotations(
    path: str, *, root: str = "", store: str = "", labels: str = "", recipe: str = ""
) -> AnnotationReport:
    """Examine a list: missing files, unknown labels, clips shorter than the span, class counts.

    Args:
        labels: training list whose labels are the known ones; empty: all are.
        recipe: whose clips are asked for; empty: 16 frames over the whole video.
    """
    config = load_recipe(recipe) if recipe else RunConfig()
    config = replace(config, data=replace(config.data, root=root, store=store))
    annotations = build.build_annotations(config, path)
    data = config.data
    rate = data.sampling_rate if data.sampling == "dense" else 1
    library = build.build_library(config, annotations)
    known = build.build_annotations(config, labels).label_names() if labels else None
    return _check_annotations(annotations, library, build.frames_read(config), rate, known)


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
        train=_absolute(data or config.data.train),
        val=_absolute(val or config.data.val),
        store=_absolute(store or config.data.store),
        root=_absolute(config.data.root),
    )
    weights = config.model.pretrained
    if os.path.exists(weights):  # else the name of a model on the Hub
        weights = _absolute(weights)
    config = replace(config, data=lists, model=replace(config.model, pretrained=weights))
    run = Path(out or Path("runs") / (Path(config.recipe).stem or "run"))
    return _train(config, run, overwrite=overwrite, resume=False)


def _absolute(path: str) -> str:
    """So that the run can be resumed from any folder."""
    return os.path.abspath(path) if path else ""


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
    world: World, config: RunConfig, run: Path, overwrite: bool, resume: bool, held: ExitStack
) -> TrainResult:
    annotations = build.build_annotations(config, config.data.train)
    class_names = build.class_names(config, annotations)
    if not class_names:
        raise DataError(f"{annotations.source} has no labels; classification needs a label column")
    _warn_of_rare_classes(annotations.label_counts(), config.data.train)
    dataset = build.build_dataset(config, annotations, class_names, training=True)
    loader = build.build_train_loader(config, dataset, world=world, run=run)
    augment = build.build_augment(config, len(class_names), training=True)
    evaluate = _Evaluation(config, run, class_names, world) if config.data.val else None
    model = build.build_model(config, len(class_names))
    if config.model.pretrained and not resume:
        load_encoder(model, config)
    objective = build.build_objective(config, model).to(world.device)
    if config.train.compile:
        model.encoder.compile(dynamic=True)
    plan = plan_steps(config, loader.num_batches, world.world_size)
    run_on_main(lambda: held.enter_context(run_lock(run)))
    run_on_main(lambda: create_run(run, config, overwrite=overwrite, resume=resume))
    result = fit(
        objective,
        loader,
        augment,
        create_optimizer(objective, config.optim),
        create_schedule(config.optim, plan),
        config=config,
        run=run,
        device=world.device,
        class_names=class_names,
        evaluate=(lambda step, epoch: evaluate(model)) if evaluate else None,
        resume=resume_state(run) if resume else None,
    )
    run_on_main(lambda: _try_report(run, config, model, evaluate.dataset if evaluate else dataset))
    return TrainResult(run, result.step, result.metrics)


def _warn_of_rare_classes(counts: Mapping[str, int], source: str) -> None:
    rare = [name for name, count in counts.items() if count == 1]
    if rare and is_main():
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        logger.warning("%s: one clip only of %s%s", source, ", ".join(map(repr, rare[:5])), more)


def _caption(dataset: ClipDataset, sample: Sample) -> str:
    record = dataset.annotations.record(sample.key.index)
    return f"{record.label}: {record.caption}" if record.caption else record.label or record.path


def _check_present(dataset: ClipDataset) -> None:
    """Raise DataError, before hours of training, where videos of a test list are not there."""
    annotations, library = dataset.annotations, dataset.reader.library
    paths = dict.fromkeys(annotations.record(i).path for i in range(len(annotations)))
    missing = [path for path in paths if path not in library]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{annotations.source}: {len(missing)} of {len(paths)} videos are not there: "
            f"{', '.join(missing[:5])}{more}. Correct the list, data.root or data.store; "
            "`onereel prepare --check LIST` names all"
        )


class _Evaluation:
    """The run's test of itself: `evaluate(model)` gives numbers and writes RUN/eval/val.json.

    The list is read and checked when this is made, before anything is trained or overwritten.
    """

    def __init__(
        self, config: RunConfig, run: Path, class_names: tuple[str, ...], world: World
    ) -> None:
        self.config, self.run, self.class_names, self.world = config, run, class_names, world
        annotations = build.build_annotations(config, config.data.val)
        annotations.check_labels(class_names)
        self.dataset = build.build_dataset(config, annotations, class_names, training=False)
        _check_present(self.dataset)
        self.loader = build.build_eval_loader(config, self.dataset, world=world)
        self.augment = build.build_augment(config, len(class_names), training=False)

    def result(
        self, model: VideoModel, name: str, weights: str | Path = ""
    ) -> ClassificationResult:
        result = evaluate_classification(
            model,
            self.loader,
            self.augment,
            class_names=self.class_names,
            device=self.world.device,
            num_views=self.config.eval.num_clips * self.config.eval.num_crops,
            precision=self.config.train.precision,
            seed=self.config.seed,
        )
        settings = {
            "weights": str(weights or self.run),
            **{part: to_dict(getattr(self.config, part)) for part in ("data", "tokens", "eval")},
        }
        run_on_main(lambda: result.save(self.run / "eval" / f"{name}.json", settings))
        return result

    def __call__(self, model: VideoModel) -> dict[str, float]:
        """The numbers for the log. A test that fails is said, and costs no training: `onereel eval` repeats it."""
        try:
            return self.result(model, RESULT).figures()
        except OnereelError as error:
            logger.error("the evaluation failed, training goes on: %s", error)
            return {}


def _try_report(run: Path, config: RunConfig, model: VideoModel, dataset: ClipDataset) -> None:
    """The training is done and saved: a report that cannot be written is no reason to fail."""
    try:
        _write_pictures_and_report(run, config, model, dataset)
    except (OSError, OnereelError) as error:
        logger.warning("the report could not be written (%s); try `onereel report %s`", error, run)


def _write_pictures_and_report(
    run: Path, config: RunConfig, model: VideoModel, dataset: ClipDataset
) -> None:
    """The report, with the first clips of different classes and what the selector dropped of them."""
    first_of_class: dict[int | None, Sample] = {}
    for index in range(min(len(dataset), EXAMPLES_SEARCHED)):
        try:
            sample = dataset[SampleKey(0, index)]
        except DecodeError:
            continue  # counted, named and quarantined where it was trained on
        first_of_class.setdefault(sample.label, sample)
        if len(first_of_class) == NUM_EXAMPLES:
            break
    samples = list(first_of_class.values())
    if not samples:
        write_report(run)
        return
    batch = Batch(
        torch.stack([s.clip for s in samples]), [s.key for s in samples], num_clips=len(samples)
    )
    normalise = build.build_augment(config, 0, training=False)
    device = next(model.parameters()).device
    with evaluating(model):
        batch = normalise(batch, device)
        _, output = view_probabilities(model, batch, precision=config.train.precision, seed=0)
    features = output.features
    write_examples(
        run,
        [sample.clip for sample in samples],
        list(kept_tokens(features)),
        [_caption(dataset, sample) for sample in samples],
        grid=features.grid,
        tubelet_size=model.encoder.tubelet_size,
        patch_size=model.encoder.patch_size,
    )
    write_report(run)


def run_config(run: str | Path) -> RunConfig:
    """The configuration that a run was started with."""
    return read_config(run)


def evaluate(
    run: str | Path,
    *,
    val: str = "",
    name: str = "",
    checkpoint: str | Path = "",
    config: RunConfig | None = None,
    device: str = "auto",
) -> ClassificationResult:
    """Test a run and write RUN/eval/NAME.json; under torchrun all ranks share the work.

    Args:
        val: list to test on; empty: the run's own validation list.
        checkpoint: weights; empty: the run's newest.
        name: of the result; empty: "val", where list, tokens, views and weights are the run's own.
        config: the run's configuration with other data, tokens or views.

    Raises:
        ConfigError: settings differ from the run's and the result has no name of its own.
    """
    own = read_config(run)
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
        raise ConfigError(f"{run} was trained without a validation list: give --data.val LIST")
    with distributed(device) as world:
        trained = load(checkpoint or run, config)
        test = _Evaluation(config, Path(run), trained.class_names, world)
        return test.result(trained.model.to(world.device), name, checkpoint)


def predict(
    run: str | Path,
    videos: Sequence[str | Path],
    *,
    top_k: int = 5,
    num_clips: int | None = None,
    num_crops: int | None = None,
    device: str = "auto",
) -> list[Answer]:
    """Label raw video files, one answer each; a file that cannot be read is answered with its reason."""
    trained = load(run)
    data, views = trained.config.data, trained.config.eval
    views = replace(
        views,
        num_clips=views.num_clips if num_clips is None else num_clips,
        num_crops=views.num_crops if num_crops is None else num_crops,
    )
    chosen = pick_device(device)
    return _predict(
        trained.model.to(chosen),
        open_library(timeout_seconds=data.timeout_seconds),
        [str(video) for video in videos],
        class_names=trained.class_names,
        num_frames=build.frames_read(trained.config),
        size=data.size,
        sampling=data.sampling,
        sampling_rate=data.sampling_rate,
        num_clips=views.num_clips,
        num_crops=views.num_crops,
        top_k=top_k,
        device=chosen,
        precision=trained.config.train.precision,
        augment=trained.config.augment,
        seed=trained.config.seed,
    )
