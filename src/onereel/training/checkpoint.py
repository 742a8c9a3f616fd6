"""Checkpoints: written whole or not at all, read back with `weights_only=True`.

A checkpoint is a dictionary of plain containers and tensors:
    model         state of the objective (its model's weights under `model.`)
    optimizer     state of the optimiser
    ema           moving averages by parameter name, or None
    step          optimiser steps done
    epoch         step // steps_per_epoch;   position: steps done within that epoch
    steps_per_epoch, global_batch_size       what the order of samples depends on
    meter         sums of the log window that was open
    config        the run's config as nested dictionaries
    class_names   list of class names
    versions      versions of what the result depends on
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from onereel.archives import read_archive
from onereel.errors import DataError, OnereelError
from onereel.files import written_aside

logger = logging.getLogger(__name__)

FORMAT = "step_{:08d}.pt"
REQUIRED = {"model", "ema", "step", "config", "class_names"}


class CheckpointError(OnereelError, RuntimeError):
    """A checkpoint could not be written or read."""


def save_checkpoint(run: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as `checkpoints/step_XXXXXXXX.pt` and remove all but the `keep` newest.

    The file is written aside, flushed to the disk and renamed, so that a crash at any moment leaves either all of it
    or nothing.

    Raises:
        CheckpointError: the disk is full or not writable; the partial file is gone and older checkpoints stay.
    """
    path = run / "checkpoints" / FORMAT.format(state["step"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as partial, partial.open("wb") as file:
            _write(state, file)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports some failed writes as RuntimeError
        raise CheckpointError(
            f"checkpoint {path} could not be written: {error}. Checkpoints before it are untouched. "
            "Free disk space, or lower train.keep_checkpoints."
        ) from error
    for old in list_checkpoints(run)[: -max(1, keep)]:
        old.unlink(missing_ok=True)
    return path


def list_checkpoints(run: str | Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((Path(run) / "checkpoints").glob("step_*.pt"))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in one file, on the CPU, every byte checked.

    Raises:
        CheckpointError: the file is missing, cut short, damaged, or not a checkpoint.
    """
    try:
        state = read_archive(path)
    except DataError as error:
        raise CheckpointError(f"checkpoint {error}") from error
    if not is_checkpoint(state):
        missing = REQUIRED - state.keys() if isinstance(state, dict) else REQUIRED
        raise CheckpointError(
            f"{path} is not a checkpoint of onereel: it lacks {', '.join(sorted(missing))}"
        )
    return state


def is_checkpoint(state: Any) -> bool:
    """Whether what a file holds is a checkpoint of onereel."""
    return isinstance(state, dict) and state.keys() >= REQUIRED


def latest_valid(run: str | Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read, and its state; a damaged one is named in the log and passed over.

    Raises:
        CheckpointError: the run has none.
    """
    paths = list_checkpoints(run)
    if not paths:
        raise CheckpointError(
            f"{run} has no checkpoint yet: its training goes on, or stopped before the first was written. Wait for it, "
            f"or start it again from the beginning: onereel train --resume {run}"
        )
    for path in reversed(paths):
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; using the one before it", error)
    raise CheckpointError(
        f"{run} cannot be used: none of its {len(paths)} checkpoints can be read. Start the run again with --overwrite."
    )


def is_done(run: str | Path) -> bool:
    """Whether the folder holds a run that has made all its steps."""
    if not list_checkpoints(run):
        return False
    state = latest_valid(run)[1]
    return state["epoch"] >= state["config"]["train"]["epochs"]


def resume_state(run: str | Path) -> dict[str, Any] | None:
    """What `fit(resume=…)` continues from; None where the run stopped before its first checkpoint was written.

    Raises:
        CheckpointError: there are checkpoints and none can be read.
    """
    for partial in (Path(run) / "checkpoints").glob(".step_*.partial"):
        partial.unlink(missing_ok=True)
    if not list_checkpoints(run):
        logger.warning("%s has no checkpoint yet; starting from step 0", run)
        return None
    used, state = latest_valid(run)
    for damaged in list_checkpoints(run):
        # Out of the way: as the newest, they would outlive the good ones when old checkpoints are removed.
        if damaged > used:
            damaged.rename(damaged.with_suffix(".damaged"))
    return state


def _write(state: dict[str, Any], file: BinaryIO) -> None:
    torch.save(state, file)


def _sync_folder(folder: Path) -> None:
    """Make the rename durable, where folders can be synchronised (POSIX)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
