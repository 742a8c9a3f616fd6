"""What each verb does: parse its options, call the Python API, print the answer.

Options are the parameters of the plain functions below; tyro turns their types and docstrings into `--help`.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from onereel.config import DataConfig, EvalConfig, RunConfig, TokensConfig
from onereel.deploying import predict_command as predict_command
from onereel.deploying import tune_budget_command as tune_budget_command
from onereel.errors import ConfigError
from onereel.finding import embed_command as embed_command
from onereel.finding import search_command as search_command
from onereel.inspection.options import InspectOptions
from onereel.progress import progress_bar
from onereel.recipes import RECIPES, describe, load_recipe
from onereel.recipes.stages import stages
from onereel.sharing import convert_command as convert_command
from onereel.sharing import export_command as export_command

TRAIN_HELP = """usage:
  onereel train RECIPE --data.train LIST [--data.val LIST] [--data.store STORE] [--out RUN] [--FIELD VALUE]
  onereel train --resume RUN

Train a recipe (a name from `onereel recipes`, or a .py file with a function `recipe()`).

  --data.train LIST     CSV with path,label[,start,end], a "path label" list, or a folder per class
  --data.val LIST       tested at the end, and every --train.eval-every epochs
  --data.store STORE    read from this chunk store; without it, the raw files are indexed on first use
  --out RUN             run folder (default runs/RECIPE)
  --overwrite           replace the run that is already there
  --resume RUN          go on where a run stopped; needs nothing else

Any field of the configuration can be given by name, for example
  onereel train actions --data.train train.csv --tokens.kind run-length --optim.lr 3e-4
`onereel train RECIPE --help` lists all fields with that recipe's values.
Several devices of one machine: torchrun --nproc-per-node 8 -m onereel.cli train RECIPE ..."""


Run = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]


def _parse(verb: str, function: Callable[..., Any], argv: Sequence[str], **options: Any) -> Any:
    return tyro.cli(function, prog=f"onereel {verb}", args=list(argv), **options)


# ---------------------------------------------------------------------------------------------------------- data


def prepare(
    source: Annotated[Positional[str], tyro.conf.arg(metavar="SOURCE")] = "",
    out: str = "",
    check: str = "",
    root: str = "",
    chunk_seconds: float = 15.0,
    short_side: int = 288,
    fps: float | None = None,
    profile: Literal["fast", "balanced", "small", "intra"] = "fast",
    crf: float | None = None,
    stream: int | None = None,
    num_workers: int = 0,
    store: str = "",
    labels: str = "",
    recipe: str = "",
    usable: str = "",
) -> int:
    """Cut long videos into a chunk store; or, with --check, examine an annotation list.

    Example: onereel prepare ~/videos --out store --short-side 256

    Killed and started again, it goes on where it stopped. Files that cannot be used are listed, with the reason,
    in the store's quarantine.csv.

    Args:
        source: folder (searched recursively), list, CSV with a path column, or one video.
        out: folder of the store.
        check: annotation list to examine instead: missing files, unknown labels, short clips, class counts.
        root: folder that relative paths of a list start from; empty: the list's own folder.
        chunk_seconds: length of a chunk.
        short_side: shorter side of the stored picture in pixels; smaller videos are not enlarged.
        fps: constant frame rate of the store; default: each source's own.
        profile: how chunks are encoded, see above.
        crf: x264 quality, lower is better; default: 23.
        stream: video stream of files that have several; default: the best.
        num_workers: processes; 0: one per core.
        store: with --check: the store that the clips will be read from.
        labels: with --check: training list whose labels are the known ones.
        recipe: with --check: recipe whose clips the videos must be long enough for.
        usable: with --check: write the records that can be used, a list of their own: .csv, or .jsonl where they have
            several captions each.
    """
    from onereel import api

    if check and (source or out):
        raise ConfigError(
            "--check examines a list and prepares nothing: give either it, or a source and --out"
        )
    if check:
        findings = api.check_annotations(
            check, root=root, store=store, labels=labels, recipe=recipe, usable=usable
        )
        print(findings)
        wrote = bool(usable and findings.usable)
        if wrote:
            print(f"wrote {usable}: {len(findings.usable)} of {findings.num_records} records")
        return 0 if findings.ok or wrote else 1
    if store or labels or recipe or usable:
        raise ConfigError(
            "--store, --labels, --recipe and --usable go with --check LIST; a new store is --out"
        )
    if not source or not out:
        raise ConfigError(
            "prepare needs a source and --out: onereel prepare VIDEOS --out STORE (or --check LIST)"
        )
    report = api.prepare(
        source,
        out,
        root=root,
        chunk_seconds=chunk_seconds,
        short_side=short_side,
        fps=fps,
        profile=profile,
        crf=crf,
        stream=stream,
        num_workers=num_workers,
    )
    print(report)
    return 0 if report.chunks else 1


def prepare_command(argv: Sequence[str]) -> int:
    if not {"-h", "--help"} & set(argv):
        return _parse("prepare", prepare, argv)
    # Only the help needs the profiles, and their module needs PyTorch.
    from onereel.video.encode import PROFILES

    lines = [f"  {name:9} {profile.description}" for name, profile in PROFILES.items()]
    summary = (prepare.__doc__ or "").split("Args:")[0]
    profiles = "\n".join(
        ["Profiles (one core, 4 frames of a second / 16 frames 4 apart; 288 px):", *lines]
    )
    return _parse(
        "prepare", prepare, argv, description=f"{inspect.cleandoc(summary)}\n\n{profiles}"
    )


def inspect_command(argv: Sequence[str]) -> int:
    from onereel import api

    options = _parse("inspect", InspectOptions, argv)
    report = api.inspect(
        options.source, store=options.store, run=options.run, out=options.out, clip=options.clip
    )
    print(report)
    return 0 if report.num_pages else 1


# ------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class PlanOptions:
    """Forecast a recipe."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True)
class TrainOptions(PlanOptions):
    """Train a recipe."""

    out: str = ""
    """Run folder; default: runs/RECIPE."""
    overwrite: bool = False
    """Replace the run that is already there."""


def _recipe(argv: Sequence[str]) -> RunConfig:
    """The recipe that `argv` begins with; a model of another family than its own brings that family's fields."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model.name", dest="model", default="")
    return load_recipe(argv[0], parser.parse_known_args(argv[1:])[0].model)


def train_command(argv: Sequence[str]) -> int:
    from onereel import api
    from onereel.build.selection import check_given

    if not argv or argv[0] in ("-h", "--help"):
        print(TRAIN_HELP)
        return 0
    if argv[0] == "--resume":
        if len(argv) != 2:
            raise ConfigError(
                "`onereel train --resume RUN` takes the run folder and nothing else: the run's own "
                "config.json says the rest, and is where a list, a root or a store that was moved is corrected. "
                "To change settings, start a new run."
            )
        api.resume(argv[1])
        return 0
    if argv[0].startswith("-"):
        raise ConfigError(
            "`onereel train` wants the recipe first: onereel train RECIPE --FIELD VALUE"
        )
    default = TrainOptions(config=_recipe(argv))
    options = _parse(f"train {argv[0]}", TrainOptions, argv[1:], default=default)
    check_given(options.config.tokens, default.config.tokens)
    result = api.train(options.config, out=options.out, overwrite=options.overwrite)
    print(f"trained {result.step} steps: {result.run / 'report.html'}")
    return 0


def recipes(models: bool = False) -> None:
    """List the recipes, or with --models the models.

    Example: onereel recipes --models
    """
    if models:
        from onereel.models.registry import list_models

        print("\n".join(list_models()))
        return
    table = Table("recipe", "what it is", box=None, pad_edge=False)
    for name in RECIPES:
        table.add_row(name, describe(name))
    Console().print(table)


def recipes_command(argv: Sequence[str]) -> int:
    _parse("recipes", recipes, argv)
    return 0


# --------------------------------------------------------------------------------------------------- using a model


EVAL_HELP = """usage: onereel eval RUN [--name NAME] [--data.val LIST] [--tokens.kind KIND] [--FIELD VALUE]

Test a run on its validation list, or on another, with the run's settings or with others. Of a saved model's folder,
in the place of RUN, give --data.val and --name.

  --name NAME           the result is written to RUN/eval/NAME.json; needed where settings are not the run's own
  --data.val LIST       another list
  --tokens.kind KIND    other tokens: all, random, tube, run-length, redundancy, group-dynamic
  --eval.num-clips 5 --eval.num-crops 3      views per video
  --checkpoint FILE     weights (default: the newest of the run)

Example: onereel eval runs/actions --tokens.kind random --tokens.keep-ratio 0.2 --name random20

`onereel eval RUN --help` lists all fields with that run's values; those of data that only training uses are refused."""


@dataclass(frozen=True)
class EvalOptions:
    """Test a run."""

    run: Run
    """Run folder."""
    name: str = ""
    """The result is written to RUN/eval/NAME.json; needed where the settings are not the run's own."""
    checkpoint: str = ""
    """Checkpoint file; default: the newest of the run."""
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def eval_command(argv: Sequence[str]) -> int:
    from onereel import api
    from onereel.build.data import check_tested
    from onereel.build.selection import check_given

    if argv and argv[0] in ("-h", "--help"):
        print(EVAL_HELP)
        return 0
    if not argv or argv[0].startswith("-"):
        raise ConfigError("`onereel eval` wants the run folder first: onereel eval RUN")
    if len(argv) > 1 and not argv[1].startswith("-"):
        raise ConfigError(
            f"`onereel eval` takes one run at a time: test {argv[0]} and {argv[1]} by a command each"
        )
    config = api.run_config(argv[0])
    default = EvalOptions(run=argv[0], data=config.data, tokens=config.tokens, eval=config.eval)
    options = _parse("eval", EvalOptions, argv, default=default)
    check_given(options.tokens, config.tokens)
    check_tested(options.data, config.data)
    with progress_bar("eval") as told:
        result = api.evaluate(
            options.run,
            name=options.name,
            checkpoint=options.checkpoint,
            device=options.device,
            config=replace(config, data=options.data, tokens=options.tokens, eval=options.eval),
            on_batch=told,
        )
    print(result)
    return 0


def report(run: Run, /) -> None:
    """Write RUN/report.html again from the run's own files.

    Example: onereel report runs/actions
    """
    from onereel.report.run_report import write_report

    print(write_report(run))


def report_command(argv: Sequence[str]) -> int:
    _parse("report", report, argv)
    return 0


# ---------------------------------------------------------------------------------------------------- this machine


def _print_as_it_is(report: Any) -> None:
    """Names may hold brackets and colons, which are neither styles nor pictures."""
    Console(markup=False, emoji=False).print(report)


def doctor(
    folder: str = ".", store: str = "", videos: str = "", root: str = "", recipe: str = ""
) -> None:
    """Say what this machine can do: decoders, devices, arithmetic peak, disk; with videos, what reading them costs.

    Example: onereel doctor --store store

    Args:
        folder: where the disk is measured, if neither store nor videos is given.
        store: chunk store to decode some clips of.
        videos: annotation list to decode some clips of.
        root: folder that relative paths of the list start from; empty: the list's own folder.
        recipe: whose clips are read; where it freezes a half, what a cache of features takes, and whether it pays.
    """
    from onereel.doctor import run_doctor

    if recipe and not (store or videos):
        raise ConfigError("--recipe says which clips are read: give --videos or --store too")
    if root and not videos:
        raise ConfigError("--root is where the paths of a list start: give --videos LIST too")
    config = load_recipe(recipe) if recipe else None
    _print_as_it_is(run_doctor(store=store, list=videos, config=config, folder=folder, root=root))


def doctor_command(argv: Sequence[str]) -> int:
    _parse("doctor", doctor, argv)
    return 0


def plan_command(argv: Sequence[str]) -> int:
    """`onereel plan RECIPE --data.train LIST --data.store STORE`: the fields are those of `train`."""
    if not argv or argv[0].startswith("-"):
        print(
            "usage: onereel plan RECIPE --data.train LIST [--data.store STORE] [--FIELD VALUE ...]\n\n"
            "Predict the time of a run and what limits it (disk, CPU or device), from short measurements.\n\n"
            "Example: onereel plan actions --data.train train.csv --data.store store"
        )
        return 0 if argv[:1] in ([], ["-h"], ["--help"]) else 2
    default = PlanOptions(config=_recipe(argv))
    options = _parse(f"plan {argv[0]}", PlanOptions, argv[1:], default=default)
    from onereel.build.selection import check_given
    from onereel.doctor import plan_run

    check_given(options.config.tokens, default.config.tokens)
    for stage in stages(options.config):
        if options.config.after:
            print(f"\n{stage.recipe}:")
        _print_as_it_is(plan_run(stage))
    return 0
