"""A folder per class: `ROOT/class name/any/depth/video.mp4`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from onereel.errors import DataError
from onereel.video.probe import VIDEO_SUFFIXES
from onereel.video.sources import files_below


def read_folder(folder: Path) -> pa.Table:
    """Columns path (relative to `folder`, sorted) and label (name of the class folder), of what `prepare` takes too.

    Raises DataError.
    """
    parts = sorted(path.split("/") for path in files_below(str(folder)))
    paths = ["/".join(part) for part in parts]
    for path, part in zip(paths, parts):
        if len(part) == 1:
            raise DataError(
                f"{folder / path}: a video beside the class folders has no class; "
                f"move it into {folder}/CLASS/, or write a CSV with path,label"
            )
        if path != path.encode(errors="replace").decode():
            shown = path.encode(errors="backslashreplace").decode()
            raise DataError(f"{folder}: the name of {shown} is not valid UTF-8; rename it")
    if not paths:
        raise DataError(
            f"{folder}: no video in any class folder; allowed: {folder}/CLASS/video with suffix "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    labels = [part[0] for part in parts]
    return pa.table({"path": pa.array(paths, pa.string()), "label": pa.array(labels, pa.string())})
