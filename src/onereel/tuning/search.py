"""The search: every frames x size x budget on a held-out list, written into the run as it goes."""

from __future__ import annotations

import csv
import datetime
import itertools
import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onereel import build
from onereel.config import RunConfig, TokensConfig
from onereel.data.annotations import Annotations
from onereel.data.dataset import ClipDataset
from onereel.errors import ConfigError, DecodeError
from onereel.evaluation.budget_table import (
    FILES,
    STORE,
    TABLE,
    UNREAD,
    BudgetRow,
    BudgetTable,
    Setting,
    differences,
    score,
)
from onereel.evaluation.efficiency import own_clock
from onereel.evaluation.token_optimisation import Bench, Candidate, measure_grid
from onereel.loading import TrainedModel, load
from onereel.training import World, pick_device, versions
from onereel.tuning.circumstances import conditions_of, list_to_choose_on
from onereel.tuning.settings import (
    at_setting,
    budget_tokens,
    default_threads,
    fit_to,
    for_budgets,
    own_setting,
    settings_to_measure,
    threads,
)
from onereel.video.library import VideoLibrary, open_library
from onereel.video.raw import RawVideos

NUM_TIMED = 16
"""Answers on the clock: of as many videos of the list, or of those there are in turn."""

NO_FILES = (
    "not one file of the list is there, so its videos were read from the chunk store; `onereel predict` reads files, "
    "which takes longer"
)

logger = logging.getLogger("onereel")
"""The loader's: what it says of a broken video."""


def tune_budget(
    run: str | Path,
    *,
    val: str = "",
    frames: Sequence[int] = (),
    sizes: Sequence[int] = (),
    budgets: Sequence[int] = (),
    tokens_kind: str = "",
    num_clips: int | None = None,
    num_crops: int | None = None,
    num_threads: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    say: Callable[[str], None] = logger.info,
) -> BudgetTable:
    """Measure every frames x size x budget of a trained classifier, and write RUN/budgets.json.

    A search that was stopped goes on with what lacks; settings that are new are added to a table of the same
    conditions.

    Args:
        run: run folder, or saved folder.
        val: labelled videos that the run has neither trained on nor is tested on; empty: those that
            data.hold_out_ratio kept from its training.
        frames, sizes, budgets: to combine; empty: see `settings_to_measure`.
        tokens_kind: selector; empty: the run's own, or group-dynamic where it keeps all tokens.
        num_clips, num_crops: views of each video; None: the run's.
        num_threads: CPU threads of an answer; 0: all cores but one.
        overwrite: measure anew what was measured under other conditions.
        say: called with a line for each grid.

    Raises:
        OnereelError: a setting doesn't fit the run, the list is the one it trained on, or the table that is there was
            measured under other conditions.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ConfigError(f"{run} is no folder; budgets.json is written into a run's folder")
    trained = load(run)
    config = _config(trained.config, tokens_kind, num_clips, num_crops)
    settings = settings_to_measure(trained, frames, sizes, budgets)
    own = own_setting(trained)
    for setting in settings:
        fit_to(trained.model, at_setting(config, setting))
    annotations, caveats = list_to_choose_on(trained.config, val)
    chosen, count = pick_device(device), num_threads or default_threads()
    with threads(count):
        search = _Search.of(trained, config, annotations, chosen)
        conditions = search.conditions(held_out=not val)
        caveats = (*caveats, *search.caveats)
        table = _table_so_far(folder / TABLE, conditions, caveats, own, overwrite)
        if not table.rows:
            table = replace(table, index_ms=search.index_ms())
        table = _measure(search, table, settings, folder / TABLE, say)
    return table


def _config(own: RunConfig, kind: str, num_clips: int | None, num_crops: int | None) -> RunConfig:
    """The run's configuration with the views and the selector of the search; its budget is still open."""
    views = replace(
        own.eval,
        num_clips=own.eval.num_clips if num_clips is None else num_clips,
        num_crops=own.eval.num_crops if num_crops is None else num_crops,
    )
    if kind == "all":
        raise ConfigError(
            "tokens_kind is 'all', which has no budget; allowed: another selector, under whose largest budget all "
            "tokens are kept and measured too"
        )
    tokens = budget_tokens(own.tokens, kind, 0)
    return replace(for_budgets(own), eval=views, tokens=tokens)


def _table_so_far(
    path: Path,
    conditions: dict[str, Any],
    caveats: tuple[str, ...],
    own: Setting,
    overwrite: bool,
) -> BudgetTable:
    """The table to add to: the one that is there, or an empty one."""
    empty = BudgetTable(
        conditions,
        versions(),
        "",
        own,
        index_ms=0.0,
        left_out={},
        caveats=caveats,
        complete=False,
        rows=(),
    )
    if overwrite or not path.exists():
        return empty
    table = BudgetTable.load(path)
    changed = differences(table.conditions, conditions)
    if changed:
        raise ConfigError(
            f"{path} was measured under other conditions: {'; '.join(changed)}. Measure anew with --overwrite"
        )
    return replace(table, caveats=caveats)


def _measure(
    search: _Search,
    table: BudgetTable,
    settings: Sequence[Setting],
    path: Path,
    say: Callable[[str], None],
) -> BudgetTable:
    """Add the rows that lack, grid by grid, and write the table after each."""
    done = {row.setting for row in table.rows}
    lacking = [setting for setting in settings if setting not in done]
    table = replace(table, complete=table.complete and not lacking)
    if done & set(settings):
        say(f"{len(done & set(settings))} of {len(settings)} settings are measured already")
    once = _SaidOnce()
    logger.addFilter(once)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            quarantine = Path(scratch) / "quarantine.csv"
            for (f, s), grid in itertools.groupby(lacking, key=lambda one: one[:2]):
                wanted = list(grid)
                budgets = ", ".join(str(one.token_budget) for one in wanted)
                say(f"{f} frames of {s} px: {budgets} tokens")
                rows = score([*table.rows, *search.measure(wanted, quarantine)])
                table = replace(
                    table,
                    rows=tuple(sorted(rows, key=lambda row: row.setting)),
                    left_out={**table.left_out, **_reasons(quarantine, rows)},
                    versions=versions(),
                    date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                )
                table.save(path)
    finally:
        logger.removeFilter(once)
    table = replace(table, complete=True)
    table.save(path)
    return table


class _SaidOnce(logging.Filter):
    """Lets every message through once: a broken video is met under each grid."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self.said
        self.said.add(message)
        return is_new


def _reasons(quarantine: Path, rows: Sequence[BudgetRow]) -> dict[str, str]:
    """Why records could not be read, by their number."""
    if not quarantine.exists():
        return {}
    with quarantine.open(newline="", encoding="utf-8") as file:
        found = {row["index"]: f"{row['path']}: {row['reason']}" for row in csv.DictReader(file)}
    return {
        index: why
        for index, why in found.items()
        if any(r.correct[int(index)] == UNREAD for r in rows)
    }


@dataclass(frozen=True)
class _Search:
    """What all grids share.

    Attributes:
        videos, library: whole videos, as `onereel predict` reads them; from the store where not one file is there.
        timed: which of them are answered on the clock; none whose file is missing, where others' are there.
    """

    trained: TrainedModel
    config: RunConfig
    annotations: Annotations
    videos: Annotations
    library: VideoLibrary
    timed: Sequence[int]
    device: torch.device

    @classmethod
    def of(
        cls,
        trained: TrainedModel,
        config: RunConfig,
        annotations: Annotations,
        device: torch.device,
    ) -> _Search:
        paths = list(dict.fromkeys(annotations.table["path"].to_pylist()))
        library = open_library(root=annotations.root, timeout_seconds=config.data.timeout_seconds)
        there = [index for index, path in enumerate(paths) if path in library]
        if not there:
            library, there = build.build_library(config, annotations), list(range(len(paths)))
        step = max(1, len(there) // NUM_TIMED)
        timed = [there[turn * step % len(there)] for turn in range(NUM_TIMED)]
        videos = Annotations.of_videos(paths, annotations.root)
        trained.model.to(device)
        return cls(trained, config, annotations, videos, library, timed, device)

    @property
    def timed_from(self) -> str:
        """Where videos are read on the clock."""
        return FILES if isinstance(self.library, RawVideos) else STORE

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of the latencies must know."""
        return (NO_FILES,) if self.timed_from == STORE else ()

    def conditions(self, *, held_out: bool) -> dict[str, Any]:
        """What a row depends on, as JSON has it; `held_out`: the records were kept from the run's own training."""
        own = conditions_of(self.trained, self.config, self.annotations, self.device)
        return {**own, "held_out": held_out, "timed_from": self.timed_from}

    def index_ms(self) -> float:
        """Median of what it takes to index one of the timed files for the first time; 0 for a chunk store."""
        if not isinstance(self.library, RawVideos):
            return 0.0
        found, clock = [], own_clock(self.device)
        for index in set(self.timed):
            with tempfile.TemporaryDirectory() as empty:
                library = RawVideos(self.library.root, cache=empty)
                start = clock()
                try:
                    library.info(self.videos.record(index).path)
                except DecodeError:
                    continue
                found.append(1e3 * (clock() - start))
        return statistics.median(found) if found else 0.0

    def measure(self, settings: Sequence[Setting], quarantine: Path) -> list[BudgetRow]:
        """Rows of settings that share frames and size."""
        config, model = at_setting(self.config, settings[0]), self.trained.model
        names = self.trained.class_names
        dataset = build.build_dataset(config, self.annotations, names, training=False)
        bench = Bench(
            model,
            build.build_augment(config, len(names), training=False),
            dataset.num_views,
            self.device,
            config.train.precision,
            config.seed,
        )
        world = World(0, 1, self.device)
        return measure_grid(
            bench,
            [self._candidate(setting) for setting in settings],
            build.build_eval_loader(config, dataset, world=world, quarantine=quarantine),
            self._whole_videos(config),
            self.timed,
            len(self.annotations),
        )

    def _candidate(self, setting: Setting) -> Candidate:
        model = self.trained.model
        read, given = fit_to(model, at_setting(self.config, setting))
        selector, control, kept = model.selector, None, setting.token_budget
        if kept < given.num_tokens:
            tokens = TokensConfig(kind="random", token_budget=kept)
            encoder = model.encoder
            control = build.build_selector(tokens, encoder.tubelet_size, encoder.patch_size)
        return Candidate(setting, selector, control, given.num_tokens, model.macs((kept,), read))

    def _whole_videos(self, config: RunConfig) -> ClipDataset:
        data, views = config.data, config.eval
        return ClipDataset(
            self.videos,
            self.library,
            num_frames=build.frames_read(config),
            sampling=data.sampling,
            sampling_rate=data.sampling_rate,
            size=data.size,
            crop="center",
            seed=config.seed,
            training=False,
            label_names=None,
            num_clips=views.num_clips,
            num_crops=views.num_crops,
        )
