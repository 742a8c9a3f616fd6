"""A run under the row of its table that a user's wish picks, and what that row promises."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from onereel.config import RunConfig, TokensConfig, from_dict
from onereel.errors import ConfigError
from onereel.evaluation.budget_table import TABLE, BudgetRow, BudgetTable, Setting, Wanted
from onereel.evaluation.predict import Answer
from onereel.loading import TrainedModel
from onereel.tuning.circumstances import machine_of, weights_of
from onereel.tuning.settings import at_setting, fit_to, for_budgets
from onereel.types import Prediction, TubeletGrid

logger = logging.getLogger(__name__)

SPREAD = 0.15
"""By how much a measured latency may exceed the promised one."""


@dataclass(frozen=True)
class Choice:
    """A row, the table it is of, and the wish that it was picked for."""

    row: BudgetRow
    table: BudgetTable
    wanted: Wanted

    @property
    def num_threads(self) -> int:
        return self.table.conditions["num_threads"]

    def config(self, own: RunConfig) -> RunConfig:
        """The run's configuration under this row."""
        conditions = self.table.conditions
        tokens = from_dict(TokensConfig, conditions["tokens"])
        views = replace(
            own.eval, num_clips=conditions["num_clips"], num_crops=conditions["num_crops"]
        )
        config = replace(for_budgets(own), tokens=tokens, eval=views)
        return at_setting(config, self.row.setting)

    def apply(self, trained: TrainedModel) -> TrainedModel:
        """The same model, which now selects as this row says."""
        config = self.config(trained.config)
        fit_to(trained.model, config)
        return replace(trained, config=config)

    def __str__(self) -> str:
        row, table = self.row, self.table
        kept = f"{row.token_budget} of {row.num_tokens}"
        said = "of videos in a chunk store" if table.from_store else "promised"
        return (
            f"{self.wanted}: {row.num_frames} frames of {row.size} px, {kept} tokens; top-1 {row.accuracy:.1%} ± "
            f"{row.standard_error:.1%} on {table.measured_on}\n"
            f"{said}: {table.latency_ms(row):.1f} ms per video (median, {_whose(table)}; {table.index_ms:.1f} to "
            f"index a file that is new, {row.video_ms:.1f} to read, select and classify its {_views(table.num_views)}; "
            f"95 % within {table.index_ms + row.video_p95_ms:.1f})"
        )

    def measured(self, answers: Sequence[Answer]) -> str:
        """What the answers took, beside what was promised; empty where none was timed."""
        timed = [one for one in answers if isinstance(one, Prediction)]
        index = [one.index_ms for one in timed if one.index_ms is not None]
        answer = [one.answer_ms for one in timed if one.answer_ms is not None]
        wall = [one.wall_ms for one in timed if one.wall_ms is not None]
        if not (index and answer and wall):
            return ""
        known, took, waited = map(statistics.median, (index, answer, wall))
        text = (
            f"measured: {known + took:.1f} ms per video (median of {len(answer)}; {known:.1f} + {took:.1f}), "
            f"{waited:.1f} by the wall clock"
        )
        if not self.table.from_store and took > (1 + SPREAD) * self.row.video_ms:
            text += (
                f"\n{took / self.row.video_ms - 1:.0%} above the promise for reading, selecting and classifying: these "
                "videos are costlier to read than those of the list"
            )
        if waited > (1 + SPREAD) * (known + took):
            text += (
                f"\nother processes, or the disk, made it wait for {1 - (known + took) / waited:.0%} of the time: the "
                "promise is for a machine that does nothing else"
            )
        return text


def _whose(table: BudgetTable) -> str:
    """What the times of a table are."""
    if table.conditions["device"] != "cpu":
        return "wall clock"
    return "while nothing else wants the processor"


def _views(count: int) -> str:
    return f"{count} views" if count > 1 else "one view"


def choose(run: str | Path, trained: TrainedModel, wanted: Wanted, device: torch.device) -> Choice:
    """The row of RUN/budgets.json that `wanted` picks. What the promise may not hold for is a warning in the log.

    Raises ConfigError where there is no table, it was measured for other weights, or no row fits.
    """
    table = read_table(run, trained)
    here = {**machine_of(device), "precision": trained.config.train.precision}
    there = {name: table.conditions.get(name) for name in here}
    if here != there:
        logger.warning(
            "%s was measured on another machine (%s; here: %s): its latencies need not hold here",
            *(Path(run) / TABLE, ", ".join(map(str, there.values())), ", ".join(here.values())),
        )
    for caveat in table.caveats:
        logger.warning("%s", caveat)
    if not table.complete:
        logger.warning("the search was stopped: `onereel tune-budget` goes on with it")
    return Choice(table.pick(wanted), table, wanted)


def read_table(run: str | Path, trained: TrainedModel) -> BudgetTable:
    """RUN/budgets.json, for these weights. Raises ConfigError where there is none."""
    path = Path(run) / TABLE
    if not path.is_file():
        raise ConfigError(
            f"{path} is not there: measure first what budgets cost and bring, with `onereel tune-budget {run} --val "
            "LIST`"
        )
    table = BudgetTable.load(path)
    weights = weights_of(trained)
    if table.conditions.get("weights") != weights:
        raise ConfigError(
            f"{path} was measured for other weights ({table.conditions.get('weights')}; the run's are {weights}): "
            f"measure anew with `onereel tune-budget {run} --val LIST --overwrite`"
        )
    if not table.rows:
        raise ConfigError(
            f"{path} has no rows yet: `onereel tune-budget {run} --val LIST` adds them"
        )
    return table


def with_budget(
    run: str | Path, trained: TrainedModel, budget: int
) -> tuple[TrainedModel, TubeletGrid, str]:
    """The model that keeps exactly `budget` tokens of every clip, the grid of the clips, and a line that says which.

    By the most accurate row of RUN/budgets.json with that budget; where there is no table, by the run's own selector,
    frames and size.

    Raises ConfigError where the table has no such row, clips have fewer tokens, or the model takes whole frames alone.
    """
    if budget < 1:
        raise ConfigError(f"budget is {budget}; allowed: 1 or more")
    own = for_budgets(trained.config)
    if (Path(run) / TABLE).is_file():
        table = read_table(run, trained)
        row = table.with_exactly(budget)
        tokens = from_dict(TokensConfig, table.conditions["tokens"])
        own, setting, why = replace(own, tokens=tokens), row.setting, f"{row} ({TABLE})"
    else:
        setting = Setting(own.data.num_frames, own.data.size, budget)
        why = (
            f"{setting}: the run's own clips; `onereel tune-budget` finds better ones for a budget"
        )
    config = at_setting(own, setting)
    read, _ = fit_to(trained.model, config)
    return replace(trained, config=config), read, why
