"""The command line: finds the verb, runs it, and turns a user's mistake into one clear line.

Nothing heavy is imported here: `onereel --help` answers at once. What each verb does is in `commands.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from onereel import __version__
from onereel.errors import OnereelError, did_you_mean


class Verb(NamedTuple):
    group: str
    summary: str


VERBS = {
    "doctor": Verb("Before you start", "what this machine can do, and what will limit a run"),
    "recipes": Verb("Before you start", "the runs that can be named, and the models"),
    "plan": Verb("Before you start", "time and bottleneck of a recipe on your videos"),
    "prepare": Verb("Data", "long videos -> chunk store; --check LIST examines annotations"),
    "inspect": Verb("Data", "a page that shows which tokens of a video are kept"),
    "train": Verb("Training", "train a recipe, or --resume a run"),
    "eval": Verb("Using a model", "test a run: views, token budgets, confusion matrix"),
    "predict": Verb(
        "Using a model", "label videos: table, JSON or CSV; within a budget or a latency"
    ),
    "tune-budget": Verb(
        "Using a model", "accuracy and cost of frames x size x tokens, to choose from"
    ),
    "embed": Verb("Using a model", "embed moments of videos, to be searched by a text"),
    "search": Verb("Using a model", "text -> moments: table, page of thumbnails"),
    "convert": Verb(
        "Using a model", "write a model for others: own folder with a card, or VideoMAE's"
    ),
    "export": Verb("Using a model", "a graph that runs without onereel: torch.export, ONNX"),
    "report": Verb("Using a model", "write a run's report.html again"),
}
SHARED = ("train", "eval")
"""Verbs whose work the processes of torchrun divide among them."""
INTERRUPTED = 130


def usage() -> str:
    lines = [
        "usage: onereel VERB ...",
        "",
        "Train a large video model on one machine, in a day.",
        "",
    ]
    for group in dict.fromkeys(verb.group for verb in VERBS.values()):
        lines.append(f"{group}:")
        lines += [f"  {name:12} {v.summary}" for name, v in VERBS.items() if v.group == group]
        lines.append("")
    lines.append(
        "`onereel VERB --help` tells more. First steps: onereel prepare VIDEOS --out STORE,"
    )
    lines.append("then onereel train RECIPE --data.train LIST.csv --data.store STORE.")
    return "\n".join(lines)


def fail(message: str) -> int:
    print(f"onereel: error: {message}", file=sys.stderr)
    return 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is 0, 2 for a user's mistake, 130 when interrupted."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] == ["help"] and len(argv) > 1:
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"onereel {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        return fail(
            f"unknown verb {verb!r}.{did_you_mean(verb, VERBS)} `onereel --help` lists the verbs."
        )
    count = os.environ.get("WORLD_SIZE", "1")
    if verb not in SHARED and count.isdecimal() and int(count) > 1 and "--help" not in argv:
        return fail(
            f"`onereel {verb}` is the work of one process, and WORLD_SIZE is {count}: start it without torchrun (or "
            f"unset WORLD_SIZE); the processes of torchrun share the work of `{'` and `'.join(SHARED)}` only"
        )
    from onereel import commands

    try:
        return getattr(commands, f"{verb.replace('-', '_')}_command")(argv[1:]) or 0
    except OnereelError as error:
        # A run that was asked to stop, and saved, is no error but has an exit code of its own.
        code = getattr(error, "exit_code", None)
        if code is None:
            return fail(str(error))
        print(f"onereel: {error}", file=sys.stderr)
        return code
    except BrokenPipeError:
        return 0
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("onereel: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
