"""From a run's files to what each part of the report shows; words and numbers, no HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onereel.report.charts import Chart, Series, line_chart
from onereel.report.measures import TOP1, Measure, measure_of
from onereel.report.run_files import Evaluation, RunFiles
from onereel.report.text import percent, short_percent

MATRIX_CLASSES = 24
"""Confusion matrices of more classes are shown as the list of their most frequent errors."""
TOP_ERRORS = 20
STEP = "optimiser step"
PAIR_KINDS = ("contrastive", "sigmoid", "max-margin")
"""Objectives of video and language."""


@dataclass(frozen=True)
class Tile:
    """One large number at the top of the page."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the table of evaluations; None where the files don't say."""

    name: str
    values: dict[str, Any]
    measure: Measure
    interval: tuple[float, float] | None
    gflops_per_view: float | None
    speed_up: float | None
    busy_speed_up: float | None


@dataclass(frozen=True)
class Confusion:
    """Where one evaluation errs: the whole matrix for few classes, and the most frequent errors.

    Attributes:
        rows: (true class, [(samples, share of the true class)] per predicted class); empty for many classes.
        errors: (true class, predicted class, samples, samples of the true class), most frequent first.
    """

    name: str
    class_names: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    errors: list[tuple[str, str, int, int]]


def main_evaluation(files: RunFiles) -> Evaluation | None:
    """The evaluation that the headline quotes: with the tokens of training, else `val`, else the first."""
    by_name = {one.name: one for one in files.evaluations}
    kind = files.config.get("tokens", {}).get("kind", "all")
    for name in ("dense" if kind == "all" else kind, "val"):
        if name in by_name:
            return by_name[name]
    return files.evaluations[0] if files.evaluations else None


def dense_evaluation(files: RunFiles) -> Evaluation | None:
    """The one that speed-ups refer to: called `dense`, else the first that kept every token."""
    dense = [one for one in files.evaluations if one.name == "dense"]
    whole = [one for one in files.evaluations if one.values.get("kept_ratio") == 1]
    return next(iter(dense + whole), None)


def figure_columns(files: RunFiles) -> dict[str, str]:
    """The figures of all evaluations, by their titles: a run may be tested in several ways."""
    return {title: key for one in files.evaluations for title, key in one.measure.columns.items()}


def is_pretraining(files: RunFiles) -> bool:
    """Whether the run learned pixels or a teacher's features, and so has no classes."""
    return files.config.get("objective", {}).get("kind") in ("masked", "distillation")


def learns_pairs(files: RunFiles) -> bool:
    """Whether the run learned which text goes with which clip, and so has no classes either."""
    return files.config.get("objective", {}).get("kind") in PAIR_KINDS


def headline(files: RunFiles) -> str:
    """What was trained, on what, and what came out, in a sentence or two."""
    config = files.config
    model, data, train = (config.get(part, {}) for part in ("model", "data", "train"))
    what = str(model.get("name", "A model"))
    source = str(data.get("train", "")).replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    if source:
        what += f", trained on {source}"
    main = main_evaluation(files)
    if main is not None:
        share, count = main.values.get("kept_ratio"), main.measure.num_items(main.values)
        tested = f" on {count} {main.measure.items}" if count else ""
        tokens = "" if share is None else f" with {percent(share)} of the tokens"
        return f"{what}: {percent(main.figure)} {main.measure.words}{tested}{tokens}."
    logged = measure_of(files.eval[-1]) if files.eval else None
    if logged is not None:
        last = files.eval[-1]
        return f"{what}: {percent(last[logged.key])} {logged.words} at step {last['step']:,}."
    objective = config.get("objective", {})
    if is_pretraining(files) and files.train and "loss" in files.train[-1]:
        last = files.train[-1]
        learned = "hidden patches" if objective["kind"] == "masked" else "the teacher's features"
        return (
            f"{what} without labels: loss {last['loss']:.4f} on {learned} at step {last['step']:,}."
        )
    if files.train:
        last = files.train[-1]
        where = f"step {last['step']:,}, epoch {last.get('epoch', 0):.2f}"
        return f"{what}: {where} of {train.get('epochs', '?')}; not evaluated yet."
    return f"{what}: nothing logged yet."


def tiles(files: RunFiles) -> list[Tile]:
    """The large numbers; fewer for a run that has got less far."""
    found = []
    main, dense = main_evaluation(files), dense_evaluation(files)
    if main is not None:
        interval = main.interval
        detail = main.name
        if interval:
            detail += f"; 95 % interval {percent(interval[0])} to {percent(interval[1])}"
        found.append(Tile(main.measure.title, percent(main.figure), detail))
        if "kept_ratio" in main.values:
            kept = percent(main.values["kept_ratio"])
            found.append(Tile("Tokens kept", kept, f"{main.name}, mean over views"))
    if main is not None and dense is not None and main is not dense:
        row = evaluation_row(main, dense)
        if row.speed_up is not None:
            detail = f"wall clock, {main.name} against {dense.name}"
            found.append(Tile("Evaluation speed‑up", f"{row.speed_up:.2f} ×", detail))
    if files.train:
        last = files.train[-1]
        found.append(Tile("Trained", f"{last['step']:,} steps", f"{last.get('epoch', 0):g} epochs"))
        if "loss" in last:
            found.append(Tile("Last training loss", f"{last['loss']:.4f}", f"step {last['step']}"))
    return found


def charts(files: RunFiles) -> list[Chart]:
    """Learning curves and speeds, as far as they were logged."""
    loss = [_series(files, "train", "loss", "training"), _series(files, "eval", "loss", "test")]
    tested = measure_of(files.eval[-1] if files.eval else {}) or TOP1
    figure = [
        _series(files, kind, tested.key, name)
        for kind, name in (("train", "training"), ("eval", "test"))
    ]
    spent = [
        _series(files, "train", "data_wait", "waiting for data"),
        _series(files, "train", "mfu", "of peak FLOP/s (MFU)"),
        _series(files, "train", "kept_ratio", "tokens kept"),
    ]
    speed = [_series(files, "train", "clips_per_second", "clips/s")]
    rate = [_series(files, "train", "lr", "learning rate")]
    norm = [_series(files, "train", "grad_norm", "gradient norm")]
    found = [
        line_chart("Loss", STEP, "loss", loss),
        line_chart(
            tested.title, STEP, f"{tested.words} (%)", figure, y_range=(0, 1), number=short_percent
        ),
        line_chart("Throughput per device", STEP, "clips per second", speed),
        line_chart(
            "Where time and tokens go",
            STEP,
            "share (%)",
            spent,
            y_range=(0, 1),
            number=short_percent,
        ),
        line_chart("Learning rate", STEP, "learning rate", rate),
        line_chart("Gradient norm", STEP, "norm", norm),
    ]
    return [chart for chart in found if chart is not None]


def evaluation_row(one: Evaluation, dense: Evaluation | None) -> EvaluationRow:
    return EvaluationRow(
        name=one.name,
        values=one.values,
        measure=one.measure,
        interval=one.interval,
        gflops_per_view=one.gflops_per_view,
        speed_up=_ratio(dense.values.get("seconds"), one.values.get("seconds")) if dense else None,
        busy_speed_up=_ratio(dense.busy_seconds, one.busy_seconds) if dense else None,
    )


def confusion(one: Evaluation) -> Confusion:
    names = one.class_names
    entries = [tuple(entry) for entry in one.values.get("confusion", [])]
    totals = [0] * len(names)
    for true, _, count in entries:
        totals[true] += count
    rows = []
    if len(names) <= MATRIX_CLASSES:
        counts = {(true, predicted): count for true, predicted, count in entries}
        for true, name in enumerate(names):
            line = [counts.get((true, predicted), 0) for predicted in range(len(names))]
            rows.append((name, [(count, count / max(1, totals[true])) for count in line]))
    wrong = sorted((e for e in entries if e[0] != e[1]), key=lambda e: (-e[2], e[0], e[1]))
    errors = [(names[t], names[p], count, totals[t]) for t, p, count in wrong[:TOP_ERRORS]]
    return Confusion(one.name, names, rows, errors)


def class_rows(files: RunFiles) -> list[tuple[str, int, list[float | None]]]:
    """(class, test samples, top-1 per evaluation) in the order of the main evaluation's classes."""
    main = main_evaluation(files)
    if main is None or "class_accuracy" not in main.values:
        return []
    per_evaluation = [
        dict(zip(one.class_names, one.values.get("class_accuracy", [])))
        for one in files.evaluations
    ]
    counts = main.values.get("class_counts", [0] * len(main.class_names))
    return [
        (name, count, [accuracy.get(name) for accuracy in per_evaluation])
        for name, count in zip(main.class_names, counts)
    ]


def settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Every field of the configuration by its dotted name."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += [(f"{key}.{name}", text) for name, text in settings(value)]
        elif isinstance(value, list):
            found.append((key, ", ".join(str(part) for part in value)))
        else:
            found.append((key, str(value)))
    return found


def _series(files: RunFiles, kind: str, key: str, name: str) -> Series:
    records = files.train if kind == "train" else files.eval
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return Series(name, points, dots=kind == "eval")


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None
