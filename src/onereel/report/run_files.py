"""What a run folder says, read into plain records; whatever is not there yet is empty."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onereel.config import check_is_of_run
from onereel.errors import ConfigError
from onereel.report.budget_view import NEEDED
from onereel.report.measures import MEASURES, Measure, measure_of

FIRST = ("dense", "run-length", "random")
"""Evaluations of these names lead the table; the others follow by name."""


@dataclass(frozen=True)
class Evaluation:
    """One file `eval/NAME.json`.

    Attributes:
        values: the file's own numbers, under its own keys.
        measure: what they are of.
    """

    name: str
    values: dict[str, Any]
    measure: Measure

    @property
    def class_names(self) -> list[str]:
        return [str(name) for name in self.values.get("class_names", [])]

    @property
    def gflops_per_view(self) -> float | None:
        """2 x MACs, in billions."""
        macs = self.values.get("macs_per_view")
        return None if macs is None else 2 * macs / 1e9

    @property
    def busy_seconds(self) -> float | None:
        """Wall clock without the time that was spent waiting for the loader."""
        seconds = self.values.get("seconds")
        return None if seconds is None else seconds * (1 - self.values.get("data_wait", 0.0))

    @property
    def figure(self) -> float:
        """The one that comes first, a share of 1."""
        return self.values[self.measure.key]

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.measure.interval(self.values)


@dataclass(frozen=True)
class RunFiles:
    """Everything that the report is made from.

    Attributes:
        train, eval: the records of that kind in `metrics.jsonl`, in order.
        quarantine: rows of `quarantine.csv`, the header first.
        examples: entries of `examples/examples.json`.
        budgets: what `onereel tune-budget` measured.
        unreadable: files or lines that were there but could not be used, and why.
    """

    folder: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    train: list[dict[str, Any]]
    eval: list[dict[str, Any]]
    evaluations: list[Evaluation]
    quarantine: list[list[str]]
    examples: list[dict[str, Any]]
    budgets: dict[str, Any]
    unreadable: list[str]


def read_run(folder: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        ConfigError: there is no run in the folder, or a saved model.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no run: there is no config.json in it")
    unreadable: list[str] = []
    config = _read_json(folder / "config.json", dict, unreadable)
    check_is_of_run(folder, config)
    metrics = _read_metrics(folder / "metrics.jsonl", unreadable)
    return RunFiles(
        folder=folder,
        config=config,
        versions=_read_json(folder / "versions.json", dict, unreadable),
        train=[record for record in metrics if record["kind"] == "train"],
        eval=[record for record in metrics if record["kind"] == "eval"],
        evaluations=_read_evaluations(folder / "eval", unreadable),
        quarantine=_read_rows(folder / "quarantine.csv"),
        examples=_read_json(folder / "examples" / "examples.json", list, unreadable),
        budgets=_read_budgets(folder / "budgets.json", unreadable),
        unreadable=unreadable,
    )


def _read_budgets(path: Path, unreadable: list[str]) -> dict[str, Any]:
    """The table of budgets; empty where it is absent or lacks what the report shows."""
    values = _read_json(path, dict, unreadable)
    rows = values.get("rows", [])
    if not all(isinstance(row, dict) and row.keys() >= NEEDED for row in rows):
        unreadable.append(f"{path.name}: rows lack what `onereel tune-budget` writes")
        return {}
    return values


def _read_json(path: Path, kind: type, unreadable: list[str]) -> Any:
    """The value in the file; an empty `kind` where the file is absent or holds something else."""
    if not path.is_file():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        unreadable.append(f"{path.name}: {error}")
        return kind()
    if not isinstance(value, kind):
        unreadable.append(f"{path.name}: holds no {kind.__name__}")
        return kind()
    return value


def _read_metrics(path: Path, unreadable: list[str]) -> list[dict[str, Any]]:
    """Records with a kind and a step; a line that was cut short, as a killed run leaves, is named and skipped."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            unreadable.append(f"{path.name}, line {number}: not JSON")
            continue
        if isinstance(record, dict) and {"kind", "step"} <= record.keys():
            records.append(record)
        else:
            unreadable.append(f"{path.name}, line {number}: no kind or step")
    return records


def _read_evaluations(folder: Path, unreadable: list[str]) -> list[Evaluation]:
    found = []
    for path in sorted(folder.glob("*.json")):
        values = _read_json(path, dict, unreadable)
        measure = measure_of(values)
        if measure is not None:
            found.append(Evaluation(path.stem, values, measure))
        elif values:
            marks = ", ".join(one.mark for one in MEASURES)
            unreadable.append(f"{path.name}: it has none of the figures {marks}")
    return sorted(found, key=lambda one: (_rank(one.name), one.name))


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _read_rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))
