"""Ctrl-C and SIGTERM as a request that the loop answers at the end of its step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from onereel.errors import OnereelError


class RunInterrupted(OnereelError):  # noqa: N818
    """A run was asked to stop, saved, and can be resumed; a program that ends by it exits with `exit_code`."""

    exit_code = 130

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step
        super().__init__(
            f"interrupted and saved at step {step}. Resume: onereel train --resume {run}"
        )

    def __reduce__(self) -> tuple[type, tuple[Path, int]]:
        return type(self), (self.run, self.step)


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, the first SIGINT or SIGTERM sets `requested`; a second SIGINT interrupts at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        request.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
