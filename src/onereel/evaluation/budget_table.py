"""What each frames x size x budget brings and costs: the table of `onereel tune-budget`, and the choice of a row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from onereel.config import from_dict
from onereel.errors import ConfigError, DataError
from onereel.files import write_atomically
from onereel.fronts import pareto_front

TABLE = "budgets.json"
"""In the run's folder."""
UNREAD = "-"
FILES, STORE = "files", "chunk store"
"""Where videos were read on the clock (`conditions["timed_from"]`)."""


class Setting(NamedTuple):
    """What is chosen at deployment: frames of a clip, their height and width in pixels, tokens kept of each clip."""

    num_frames: int
    size: int
    token_budget: int

    def __str__(self) -> str:
        return f"{self.num_frames} frames of {self.size} px, {self.token_budget} tokens"


@dataclass(frozen=True)
class BudgetRow:
    """One setting, measured; times are by `efficiency.own_clock`.

    Attributes:
        num_frames, size, token_budget: see `Setting`.
        num_tokens: tokens of such a clip before selection.
        accuracy: top-1 on the list, over the records that could be read under every setting.
        standard_error: of `accuracy`, sqrt(p (1 - p) / n).
        random_accuracy: the same with as many tokens chosen at random.
        macs_per_clip: exact multiply-adds of one clip; FLOPs are twice as many.
        clip_ms, clip_p95_ms: median and 95th percentile of one clip's forward pass, selection included.
        video_ms, video_p95_ms: of a video's answer: reading, selection and forward pass of all its views.
        clips_per_second: forward passes in batches of the run's evaluation, selection included.
        peak_memory_bytes: of such a batch, as of `Throughput`.
        correct, random_correct: per record of the list 1, 0, or - where it could not be read.
    """

    num_frames: int
    size: int
    token_budget: int
    num_tokens: int
    accuracy: float
    standard_error: float
    random_accuracy: float
    macs_per_clip: int
    clip_ms: float
    clip_p95_ms: float
    video_ms: float
    video_p95_ms: float
    clips_per_second: float
    peak_memory_bytes: int | None
    correct: str
    random_correct: str

    @property
    def setting(self) -> Setting:
        return Setting(self.num_frames, self.size, self.token_budget)

    @property
    def gflops_per_clip(self) -> float:
        """2 x MACs, in billions; the "GFLOPs" of many papers are MACs, half of this."""
        return 2 * self.macs_per_clip / 1e9

    def __str__(self) -> str:
        return f"{self.setting}: top-1 {self.accuracy:.1%} ± {self.standard_error:.1%}"


@dataclass(frozen=True)
class Wanted:
    """What a user asks of a table: exactly one of a budget of tokens, a latency and an accuracy (a share)."""

    budget: int | None = None
    latency_ms: float | None = None
    target_accuracy: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ConfigError(
                f"given are {', '.join(given) or 'none'}; allowed: exactly one of budget, latency_ms, target_accuracy"
            )
        ((name, value),) = given.items()
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}; allowed: above 0")
        if name == "target_accuracy" and value > 1:
            raise ConfigError(
                f"target_accuracy is {value}; allowed: above 0, up to 1 (0.9 is 90 %)"
            )

    def __str__(self) -> str:
        if self.budget is not None:
            return f"the most accurate of at most {self.budget} tokens per clip"
        if self.latency_ms is not None:
            return f"the most accurate within {self.latency_ms:g} ms per video"
        return f"the quickest that reaches {self.target_accuracy:.1%}"


@dataclass(frozen=True)
class BudgetTable:
    """All rows of a search, and under what circumstances they were measured.

    Attributes:
        conditions: what a row depends on, by name: weights, list and whether it was held out of training, views,
            selector, machine, where videos were read.
        versions, date: of the last measurement.
        own: the run's own frames, size and tokens; all tokens where their number depends on the clip.
        index_ms: what a file costs in addition when it is seen for the first time (its packet index), median; 0 where
            videos were read from a chunk store.
        left_out: records that could not be read under some setting, by their number in the list, and why.
        caveats: what a reader of the accuracies must know.
        complete: whether every setting that was asked for has its row.
    """

    conditions: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    own: Setting
    index_ms: float
    left_out: Mapping[str, str]
    caveats: tuple[str, ...]
    complete: bool
    rows: tuple[BudgetRow, ...]

    @property
    def num_videos(self) -> int:
        """Records that the accuracies are of."""
        return len(self.rows[0].correct) - len(self.left_out) if self.rows else 0

    @property
    def measured_on(self) -> str:
        """What the accuracies are of."""
        part = "held out of" if self.conditions.get("held_out") else "of"
        return f"{self.num_videos} records {part} {Path(self.conditions['list']).name}"

    @property
    def from_store(self) -> bool:
        """Whether videos were read from a chunk store on the clock, which takes less time than `predict` does."""
        return self.conditions.get("timed_from") == STORE

    @property
    def num_views(self) -> int:
        return self.conditions["num_clips"] * self.conditions["num_crops"]

    def latency_ms(self, row: BudgetRow) -> float:
        """What is promised for a video that was never seen before: its index and its answer, medians."""
        return self.index_ms + row.video_ms

    def front(self) -> list[BudgetRow]:
        """Rows that none beats in both latency and accuracy, quickest first."""
        return pareto_front(self.rows, lambda row: row.video_ms, lambda row: row.accuracy)

    def pick(self, wanted: Wanted) -> BudgetRow:
        """The row for `wanted`; of equally accurate ones the quickest. Raises ConfigError where none fits."""
        if wanted.latency_ms is not None and self.from_store:
            raise ConfigError(
                "the table's latencies are of videos in a chunk store, and files, which `onereel predict` reads, take "
                "longer: measure anew on a list whose files are there (`onereel tune-budget RUN --val LIST "
                "--overwrite`), or ask for a budget or an accuracy"
            )
        if wanted.target_accuracy is not None:
            good = [row for row in self.rows if row.accuracy >= wanted.target_accuracy]
            if good:
                return min(good, key=lambda row: (row.video_ms, -row.accuracy))
        elif wanted.budget is not None:
            good = [row for row in self.rows if row.token_budget <= wanted.budget]
        else:
            limit = wanted.latency_ms or 0.0
            good = [row for row in self.rows if self.latency_ms(row) <= limit]
        if not good:
            raise ConfigError(self._nothing_fits(wanted))
        return max(good, key=lambda row: (row.accuracy, -row.video_ms))

    def with_exactly(self, budget: int) -> BudgetRow:
        """The most accurate row of that budget. Raises ConfigError where there is none."""
        good = [row for row in self.rows if row.token_budget == budget]
        if not good:
            known = ", ".join(map(str, sorted({row.token_budget for row in self.rows})))
            raise ConfigError(
                f"no row of the table keeps exactly {budget} tokens; measured are {known}. Ask for one of these, or "
                f"measure it: `onereel tune-budget RUN --val LIST --budgets {budget}`"
            )
        return max(good, key=lambda row: (row.accuracy, -row.video_ms))

    def _nothing_fits(self, wanted: Wanted) -> str:
        if wanted.target_accuracy is not None:
            best = max(self.rows, key=lambda row: row.accuracy)
            return (
                f"nothing in the table reaches {wanted.target_accuracy:.1%}; the most accurate there is: {best}, "
                f"{self.latency_ms(best):.1f} ms per video. Ask for less, or measure more settings with "
                "`onereel tune-budget` (more --frames, larger --budgets)"
            )
        if wanted.budget is not None:
            fewest = min(self.rows, key=lambda row: row.token_budget)
            return (
                f"nothing in the table keeps {wanted.budget} tokens or fewer; the fewest there are: {fewest}. Ask for "
                f"--budget {fewest.token_budget} or more, or measure smaller --budgets with `onereel tune-budget`"
            )
        fastest = min(self.rows, key=lambda row: row.video_ms)
        return (
            f"nothing in the table answers a video within {wanted.latency_ms:g} ms; the fastest there is takes "
            f"{self.latency_ms(fastest):.1f} ms ({fastest}). Allow more, or measure cheaper settings with "
            "`onereel tune-budget` (fewer --frames, smaller --sizes and --budgets)"
        )

    def save(self, path: Path) -> None:
        """Write the JSON file whole or not at all."""
        rows = [{**asdict(row), "gflops_per_clip": row.gflops_per_clip} for row in self.rows]
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"rows": rows}
        write_atomically(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> BudgetTable:
        """The table that `save` wrote. Raises DataError where the file holds something else."""
        try:
            values = json.loads(path.read_text())
            rows = [
                {k: v for k, v in row.items() if k != "gflops_per_clip"} for row in values["rows"]
            ]
            return cls(
                **{
                    **values,
                    "own": Setting(*values["own"]),
                    "caveats": tuple(values["caveats"]),
                    "rows": tuple(from_dict(BudgetRow, row) for row in rows),
                }
            )
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{path} is no table of budgets ({error}); `onereel tune-budget --overwrite` writes it anew"
            ) from error


def score(rows: Iterable[BudgetRow]) -> tuple[BudgetRow, ...]:
    """The rows with their accuracies, all over the same records: those that every row has read.

    Raises DataError where there is none.
    """
    rows = tuple(rows)
    marks = [marks for row in rows for marks in (row.correct, row.random_correct)]
    read = [i for i, column in enumerate(zip(*marks, strict=True)) if UNREAD not in column]
    if rows and not read:
        raise DataError("no video of the list could be read under every setting")

    def share(marks: str) -> float:
        return sum(marks[i] == "1" for i in read) / len(read)

    return tuple(
        replace(
            row,
            accuracy=(p := share(row.correct)),
            standard_error=math.sqrt(p * (1 - p) / len(read)),
            random_accuracy=share(row.random_correct),
        )
        for row in rows
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> list[str]:
    """In which conditions two measurements differ, in words; of those that have parts, in which parts."""
    found = []
    for name in dict.fromkeys([*old, *new]):
        was, now = old.get(name), new.get(name)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{within}{name}.")
        elif was != now:
            found.append(f"{within}{name} was {was}, is {now}")
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
