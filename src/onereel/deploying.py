"""The verbs that answer within a budget: tune-budget, predict.

Options are the parameters of the plain functions below; tyro turns their types and docstrings into `--help`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from onereel.errors import ConfigError
from onereel.progress import progress_bar
from onereel.types import Prediction, Quarantined

if TYPE_CHECKING:
    from onereel.evaluation.budget_table import BudgetRow, BudgetTable
    from onereel.tuning import Choice

Run = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
WIDE = 118
"""Columns of the table where there is no terminal that says."""


def tune_budget(
    run: Run,
    /,
    val: str = "",
    frames: tuple[int, ...] = (),
    sizes: tuple[int, ...] = (),
    budgets: tuple[int, ...] = (),
    tokens_kind: str = "",
    num_clips: int | None = None,
    num_crops: Literal[1, 3] | None = None,
    num_threads: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> int:
    """Measure a run under every frames x size x tokens: accuracy, and cost on this machine; into RUN/budgets.json.

    Example: onereel tune-budget runs/actions --val tune.csv --frames 8 16 --budgets 784 392

    The list must not be the test list: the setting is chosen on it, so its accuracy there is no result. Take videos
    that the run has not trained on: a list of their own, or those that --data.hold-out-ratio 0.1 kept from training.
    `onereel predict RUN --latency-ms 50` (or --budget, --target-accuracy) then picks from the table. Stopped and
    started again, the search goes on where it stopped.

    Args:
        run: run folder.
        val: list with labels; empty: what data.hold_out_ratio kept from training.
        frames: frames of a clip; default: half, once and twice the run's.
        sizes: height and width of a clip in pixels; default: three quarters and all of the run's.
        budgets: tokens kept of a clip; default: the run's, and all, 1/2, 1/4 and 1/8 of its clip's.
        tokens_kind: selector; default: the run's (group-dynamic where it keeps all tokens).
        num_clips: clips spread over each video; default: the run's.
        num_crops: 1 (centre) or 3; default: the run's.
        num_threads: CPU threads of an answer; 0: all cores but one.
        device: auto, cpu or cuda.
        overwrite: measure anew what was measured under other conditions.
    """
    from onereel import api
    from onereel.report.run_report import write_report
    from onereel.training import holds_run

    table = api.tune_budget(
        run,
        val=val,
        frames=frames,
        sizes=sizes,
        budgets=budgets,
        tokens_kind=tokens_kind,
        num_clips=num_clips,
        num_crops=num_crops,
        num_threads=num_threads,
        device=device,
        overwrite=overwrite,
        say=lambda line: print(line, flush=True),
    )
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(budget_table(table))
    console.print("\n".join(remarks(table)), highlight=False, markup=False)
    if holds_run(run):
        print(f"{Path(run) / 'budgets.json'}; as a plot in {write_report(run)}")
    return 0


def tune_budget_command(argv: Sequence[str]) -> int:
    return tyro.cli(tune_budget, prog="onereel tune-budget", args=list(argv))


def budget_table(table: BudgetTable) -> Table:
    """All rows by frames, size and tokens; those that none beats in both latency and accuracy are marked."""
    front = {row.setting for row in table.front()}
    shown = Table(box=None, pad_edge=False)
    shown.add_column("")
    for name in ("frames", "size", "tokens", "top-1", "random", "GFLOPs"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("clip ms", "video ms", "clips/s", "MB"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in table.rows:
        marked = row.setting in front
        cells = _cells(row, table)
        shown.add_row("●" if marked else "", *cells, style="bold" if marked else None)
    return shown


def _cells(row: BudgetRow, table: BudgetTable) -> list[str]:
    memory = row.peak_memory_bytes
    return [
        str(row.num_frames),
        str(row.size),
        f"{row.token_budget} of {row.num_tokens}",
        f"{row.accuracy:.1%} ± {row.standard_error:.1%}",
        f"{row.random_accuracy:.1%}" if row.token_budget < row.num_tokens else "all kept",
        f"{row.gflops_per_clip:.3g}",
        f"{row.clip_ms:.1f} ({row.clip_p95_ms:.1f})",
        f"{table.latency_ms(row):.1f} ({table.index_ms + row.video_p95_ms:.1f})",
        f"{row.clips_per_second:.3g}",
        "?" if memory is None else f"{memory / 1e6:.0f}",
    ]


def remarks(table: BudgetTable) -> list[str]:
    """What a reader of the table must know."""
    conditions = table.conditions
    threads, device = conditions["num_threads"], conditions["device"]
    where = f"{threads} CPU thread{'s' * (threads > 1)}" if device == "cpu" else device
    lines = [
        "● none is both quicker and more accurate. random: as many tokens, chosen at random. top-1 ± standard error "
        f"on {table.measured_on}.",
        "GFLOPs are 2 x MACs of a clip. clip: forward pass with selection. video: an answer from the file on, "
        f"{table.num_views} view{'s' * (table.num_views > 1)} ({table.index_ms:.1f} ms of it index a file that is "
        f"new). Median (95th percentile), warm, one at a time; {where}.",
        "Times are what the machine does for the answer: other processes and a slow disk come on top."
        if device == "cpu"
        else "Times are by the wall clock.",
        "These settings are chosen on this list: report accuracy on another one.",
    ]
    lines += [f"Note: {caveat}." for caveat in table.caveats]
    if table.left_out:
        reasons = ", ".join(table.left_out.values())
        lines.append(f"Left out everywhere, for they could not be read: {reasons}.")
    return lines


def predict(
    run: Run,
    videos: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="VIDEO...")],
    /,
    out: str = "",
    top_k: int = 5,
    num_clips: int | None = None,
    num_crops: Literal[1, 3] | None = None,
    budget: int | None = None,
    latency_ms: float | None = None,
    target_accuracy: float | None = None,
    device: str = "auto",
    num_workers: int | None = None,
) -> int:
    """Label videos with a trained run.

    Example: onereel predict runs/actions holiday.mp4 sports.mkv --out labels.csv

    Once `onereel tune-budget RUN` has measured this machine, one of --budget, --latency-ms and --target-accuracy picks
    frames, size and tokens from its table.

    Args:
        run: run folder.
        videos: video files, folders (searched recursively), lists or CSVs with a path column.
        out: also write the answers here: .json or .csv; until all are there, NAME.partial.jsonl has those so
            far, and the same command goes on from them.
        top_k: classes per video.
        num_clips: clips spread over each video; default: the run's.
        num_crops: 1 (centre) or 3; default: the run's.
        budget: the most accurate with at most so many tokens per clip.
        latency_ms: the most accurate whose median latency per video, from the file to the answer, is within this.
        target_accuracy: the quickest that reaches this share of right answers on the table's list, 0.9 for 90 %.
        device: auto, cpu or cuda.
        num_workers: processes that read ahead; default: on CUDA, of many videos, the cores left over, else none.
    """
    from onereel import api
    from onereel.evaluation.answer_journal import journal_beside
    from onereel.evaluation.predict import check_predictions_path, exit_code, write_predictions
    from onereel.video.sources import named_videos

    if not videos:
        raise ConfigError("predict needs videos: onereel predict RUN VIDEO...")
    if top_k < 1:
        raise ConfigError(f"--top-k is {top_k}; allowed: 1 or more")
    if out:
        check_predictions_path(out)
    files = named_videos(videos)
    journal = journal_beside(out) if out else None
    console = Console()
    choices: list[Choice] = []
    answers: list[Prediction | Quarantined] = []
    with progress_bar("predict") as told, _said_where(journal, answers):

        def show(answer: Prediction | Quarantined) -> None:
            _print_answer(console, answer)
            answers.append(answer)
            told(len(answers), len(files))

        api.predict(
            run,
            files,
            top_k=top_k,
            num_clips=num_clips,
            num_crops=num_crops,
            device=device,
            num_workers=num_workers,
            budget=budget,
            latency_ms=latency_ms,
            target_accuracy=target_accuracy,
            journal=journal or "",
            on_choice=choices.append,
            on_answer=show,
        )
        if journal is not None:
            write_predictions(answers, out)
            journal.unlink(missing_ok=True)
    for choice in choices:
        text = f"{choice}\n{choice.measured(answers)}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return exit_code(answers)


@contextmanager
def _said_where(journal: Path | None, answers: list[Prediction | Quarantined]) -> Iterator[None]:
    """Say, where the block ends early, what is kept of its answers."""
    try:
        yield
    except BaseException:
        if journal is not None and answers:
            print(
                f"{len(answers)} answers until then: {journal}; the same command goes on from there",
                file=sys.stderr,
            )
        raise


def _print_answer(console: Console, answer: Prediction | Quarantined) -> None:
    if isinstance(answer, Quarantined):
        print(f"{answer.path}: not read: {answer.reason}", file=sys.stderr)
        return
    console.print(answer.video, style="bold", highlight=False, markup=False, soft_wrap=True)
    for label, probability in zip(answer.labels, answer.probabilities):
        console.print(f"  {probability:6.1%}  {label}", highlight=False, markup=False)


def predict_command(argv: Sequence[str]) -> int:
    return tyro.cli(predict, prog="onereel predict", args=list(argv))
