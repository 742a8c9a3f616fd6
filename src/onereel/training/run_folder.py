"""The folder of a run: what lies in it, and who may write into it.

`config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `quarantine.csv`, `report.html`, `eval/`; of a
video-language run `tokenizer.json`; of one in two stages `first/`, a run folder too; of one that `onereel tune-budget`
has measured, `budgets.json`; of one that `onereel export` wrote, `model.pt2` or `model.onnx` (with `model.onnx.data`
where it is large); of one that caches features there `features/`, which `onereel.caching` looks after.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onereel
from onereel.config import RunConfig, check_is_of_run, from_json, to_json
from onereel.errors import ConfigError
from onereel.files import write_atomically

logger = logging.getLogger(__name__)

CONTENTS = (
    *("config.json", "versions.json", "metrics.jsonl", "quarantine.csv", "report.html"),
    *("tokenizer.json", "budgets.json"),
    *("model.pt2", "model.onnx", "model.onnx.data"),
)
LOCK = ".lock"
FIRST = "first"
"""The run that this one started from, where one recipe is two stages."""
FOLDERS = ("tensorboard", "checkpoints", "eval", "examples", FIRST)


def create_run(
    out: str | Path, config: RunConfig, *, overwrite: bool = False, resume: bool = False
) -> Path:
    """Make the folder and write `config.json` and `versions.json` into it; the folder's path is the answer.

    With `overwrite` the files of the run that was there are removed (those of a run, no others); with `resume` they
    stay, and so does its `config.json`.

    One process calls it: `run_on_main(lambda: create_run(...))`.

    Raises:
        ConfigError: the folder holds a run and neither option is given, it is a file, or it cannot be written.
    """
    run = Path(out)
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file; give the path of a folder")
    if holds_run(run):
        if resume:
            return run
        if not overwrite and _has_begun(run):
            raise ConfigError(
                f"{run} already holds a run. Continue it with --resume {run}, replace it with --overwrite, "
                "or give another folder."
            )
        _remove_run(run)
    elif run.is_dir() and any(path.name != LOCK for path in run.iterdir()):
        raise ConfigError(f"{run} is not empty and holds no run of onereel; give another folder.")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / "versions.json", json.dumps(versions(), indent=2) + "\n")
        write_atomically(run / "config.json", to_json(config))
    except OSError as error:
        raise ConfigError(f"{run} cannot be written: {error}; give another folder") from error
    return run


@contextmanager
def run_lock(run: str | Path, doing: str = "training") -> Iterator[None]:
    """Hold the folder for one process that is `doing` something in it.

    Raises:
        ConfigError: another process is, or the folder cannot be written.
    """
    path = Path(run) / LOCK
    made = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise ConfigError(
            f"{run} cannot be written: {error.strerror}; give another folder"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(
            f"another process is {doing} in {run}; wait for it, or give another folder"
        ) from error
    except OSError as error:  # a file system without locks: some parallel ones, some mounts
        logger.warning(
            "%s cannot be locked (%s): see to it that no other run writes to it",
            *(run, error.strerror),
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        if made:
            with suppress(OSError):
                path.parent.rmdir()  # only where nothing was written after all


def _has_begun(run: Path) -> bool:
    """Whether anything was trained, its first stage included: a run that failed before a first step is no loss."""
    metrics = run / "metrics.jsonl"
    return (
        any(run.glob("checkpoints/step_*.pt"))
        or (metrics.exists() and metrics.stat().st_size > 0)
        or (holds_run(run / FIRST) and _has_begun(run / FIRST))
    )


def holds_run(run: str | Path) -> bool:
    """Whether the folder holds a run, finished or not."""
    run = Path(run)
    is_ours = (run / "config.json").exists() and (run / "versions.json").exists()
    return is_ours or any(run.glob("checkpoints/step_*.pt"))


def read_config(run: str | Path) -> RunConfig:
    """The config that the run was started with.

    Raises:
        ConfigError: there is no run in the folder, but a saved model or nothing, or its config.json cannot be read.
    """
    path = Path(run) / "config.json"
    if not path.exists():
        raise ConfigError(f"{run} holds no run: there is no config.json in it")
    try:
        text = path.read_text()
        values = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    check_is_of_run(run, values)
    try:
        return from_json(text)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error} Was it written by another version of onereel?"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the git commit of this code where it runs from a checkout."""
    names = ("torch", "numpy", "av")
    found = {name: importlib.metadata.version(name) for name in names}
    return {
        "onereel": onereel.__version__,
        **found,
        "python": platform.python_version(),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """The commit, or "" where this file is not one that the surrounding repository tracks."""
    here = Path(__file__)
    command = ["git", "-C", str(here.parent), "rev-parse", "HEAD", f"HEAD:./{here.name}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.split()[0] if answer.returncode == 0 else ""


def _remove_run(run: Path) -> None:
    for name in CONTENTS:
        (run / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
