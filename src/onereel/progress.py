"""A bar on the terminal for what takes a while; elsewhere, nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Told = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


@contextmanager
def progress_bar(doing: str) -> Iterator[Told]:
    """Yields what moves the bar; it appears when that is first called, and nothing is left of it.

    What is printed to the terminal meanwhile goes above it. Where stdout is no terminal, nothing is shown.
    """
    console = Console()
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.completed:g} of {task.total:g}, left:"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)

    def move(done: int, total: int) -> None:
        if not bar.tasks:
            bar.add_task(doing, total=total)
            bar.start()
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield move
    finally:
        if bar.tasks:
            bar.stop()
