"""The bar of what takes a while: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from onereel.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work() -> None:
    with progress_bar("working") as told:
        for done in range(1, 4):
            told(done, 3)


@pytest.mark.parametrize("out", [io.StringIO(), Terminal()])
def test_a_bar_is_shown_on_a_terminal_alone(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    work()
    assert sys.stdout is out
    if out.isatty():
        assert "working" in out.getvalue()
        assert "3 of 3" in out.getvalue()
    else:
        assert out.getvalue() == ""


def test_what_never_begins_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(ValueError, match="a mistake"), progress_bar("working"):
        raise ValueError("a mistake")
    assert out.getvalue() == ""
