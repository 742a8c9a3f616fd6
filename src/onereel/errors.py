"""The errors a user can meet. Each says what was given, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OnereelError(Exception):
    """Base of every error that is the input's fault, not ours: the CLI prints it without a traceback."""


class ConfigError(OnereelError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(OnereelError, ValueError):
    """An annotation file, a store or a batch is not what it must be."""


class DecodeError(OnereelError, RuntimeError):
    """A video could not give the frames that were asked for.

    Args:
        path: the file.
        reason: one clause, lower case, without a full stop.
        frame: the first frame (display order, from 0) that could not be read, if one is known.
    """

    def __init__(self, path: str, reason: str, frame: int | None = None) -> None:
        self.path, self.reason, self.frame = str(path), reason, frame
        where = self.path if frame is None else f"{self.path}, frame {frame}"
        super().__init__(f"{where}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str, int | None]]:
        # Workers send errors through pickle, which would otherwise pass the message as `path`.
        return type(self), (self.path, self.reason, self.frame)


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`" Did you mean 'train'?"`, or the empty string where nothing allowed is close."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def may_be(wanted: str, given: Iterable[str]) -> str:
    """`" If 'video_path' is it, name it 'path'."`, or the empty string where nothing given is close."""
    close = difflib.get_close_matches(wanted, list(given), n=1, cutoff=0.5)
    return f" If {close[0]!r} is it, name it {wanted!r}." if close else ""


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of `allowed`, naming the nearest."""
    allowed = sorted(allowed)
    return ConfigError(
        f"unknown {kind} {given!r}.{did_you_mean(given, allowed)} Known: {', '.join(allowed)}."
    )
