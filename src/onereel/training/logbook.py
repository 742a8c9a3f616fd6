"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from onereel.files import write_atomically

logger = logging.getLogger(__name__)

SHOWN = (
    ("loss", "loss {:.4f}"),
    ("top1", "top1 {:.3f}"),
    ("lr", "lr {:.2e}"),
    ("grad_norm", "grad {:.2f}"),
    ("clips_per_second", "{:.1f} clips/s"),
    ("tokens_per_second", "{:,.0f} tokens/s"),
    ("mfu", "mfu {:.1%}"),
    ("data_wait", "data wait {:.1%}"),
    ("kept_ratio", "kept {:.1%}"),
    ("peak_memory_gib", "{:.2f} GiB"),
)


class Logbook:
    """Writes records, one JSON object per line of `metrics.jsonl`; use as a context manager.

    Args:
        run: the run's folder.
        total_steps: length of the progress bar, which appears on a terminal; elsewhere each record is a line.
        first_step: the step that the run continues from; records of later steps are cut, so no step is there twice.
        enabled: False on all processes but one, which then write nothing.
    """

    def __init__(
        self, run: Path, total_steps: int, first_step: int = 0, enabled: bool = True
    ) -> None:
        self._path = run / "metrics.jsonl"
        self._total_steps = total_steps
        self._first_step = first_step
        self._enabled = enabled
        self._unwritten: list[str] = []
        self._tensorboard: Any = None
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if not self._enabled:
            return self
        cut_metrics(self._path, self._first_step)
        # Imported here because it costs a fifth of a second, and only the main process of a training run needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard = SummaryWriter(
            str(self._path.parent / "tensorboard"), purge_step=self._first_step + 1
        )
        console = Console()
        if console.is_terminal:
            columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=console)
            self._progress.add_task("", total=self._total_steps, completed=self._first_step)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._tensorboard is not None:
            self._to_tensorboard(None, {})

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=step)

    def note(self, text: str) -> None:
        """Say something once, above the bar."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        elif self._enabled:
            print(text, flush=True)

    def write(self, kind: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Write one record of kind train or eval."""
        if not self._enabled:
            return
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), **values}
        self._append(json.dumps(record))
        self._to_tensorboard(step, {f"{kind}/{name}": value for name, value in values.items()})
        line = self._line(record)
        if kind == "train" and self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=line)
        else:
            self.note(line)

    def _line(self, record: Mapping[str, Any]) -> str:
        head = f"step {record['step']}/{self._total_steps}  epoch {record['epoch']:.2f}"
        if record["kind"] != "train":
            numbers = [
                f"{k} {v:.4g}" for k, v in record.items() if k not in ("kind", "step", "epoch")
            ]
            return "  ".join([f"{record['kind']} at {head}", *numbers])
        shown = [text.format(record[name]) for name, text in SHOWN if name in record]
        left = timedelta(seconds=round(record.get("eta_seconds", 0)))
        return "  ".join([head, *shown, f"{left} left"])

    def _append(self, line: str) -> None:
        """A full disk must not end a run: lines that could not be written wait for the next one."""
        self._unwritten.append(line)
        text = "".join(f"{line}\n" for line in self._unwritten)
        try:
            with self._path.open("a") as file:
                file.write(text)
        except OSError as error:
            logger.warning("%s could not be written: %s; trying again later", self._path, error)
        else:
            self._unwritten.clear()

    def _to_tensorboard(self, step: int | None, values: Mapping[str, float]) -> None:
        """Add scalars, or close where `step` is None; given up at the first failure."""
        if self._tensorboard is None:
            return
        try:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
            if step is None:
                self._tensorboard.close()
        except OSError as error:
            logger.warning("TensorBoard files could not be written (%s); going on without", error)
            self._tensorboard = None


def cut_metrics(path: Path, step: int) -> None:
    """Keep the train records up to `step`, and the evaluations before it (one due at `step` is made again).

    A last line that was cut short is dropped.
    """
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _belongs_before(line, step)]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _belongs_before(line: str, step: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False
    return record["step"] <= step if record["kind"] == "train" else record["step"] < step
