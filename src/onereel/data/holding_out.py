"""Part of a list, by video: what is trained on, and what is kept back from training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from onereel.data.annotations import Annotations
from onereel.errors import ConfigError, DataError
from onereel.seeding import stable_seed


def hold_out(annotations: Annotations, ratio: float, seed: int) -> tuple[Annotations, Annotations]:
    """The list without some of its videos, and the records of these: `ratio` of the videos, at least one.

    Which ones depends on their names and the seed alone. All records of a video lie on one side.

    Raises ConfigError for a retrieval or multiple-choice list, DataError where one side would be empty.
    """
    if annotations.origin.sentences is not None or annotations.origin.questions is not None:
        raise ConfigError(
            f"{annotations.source}: videos can be held out of lists of labels only; set data.hold_out_ratio to 0"
        )
    videos = pc.unique(annotations.table["path"]).to_pylist()
    drawn = sorted(videos, key=lambda path: stable_seed(seed, path, "hold-out"))
    count = max(1, round(ratio * len(videos)))
    if count >= len(videos):
        raise DataError(
            f"{annotations.source} has {len(videos)} video{'s' * (len(videos) > 1)}: data.hold_out_ratio {ratio} "
            "leaves none to train on; lower it, or give more videos"
        )
    is_held = pc.is_in(annotations.table["path"], pa.array(drawn[:count], pa.string()))
    held = np.asarray(is_held.to_numpy(zero_copy_only=False), bool)
    return _part(annotations, ~held), _part(annotations, held)


def _part(annotations: Annotations, wanted: np.ndarray) -> Annotations:
    origin = annotations.origin
    if origin.line_of is not None:
        rows = wanted.nonzero()[0].tolist()
        origin = replace(origin, line_of=partial(_line_of, origin.line_of, rows))
    table = annotations.table.filter(pa.array(wanted))
    return Annotations(table, annotations.source, annotations.root, origin)


def _line_of(whole: Callable[[Path, int], int], rows: list[int], path: Path, index: int) -> int:
    return whole(path, rows[index])
