"""A folder per class: `ROOT/class name/any/depth/video.mp4`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from onereel.errors import DataError
from onereel.video.probe import VIDEO_SUFFIXES


def read_folder(folder: Path) -> pa.Table:
    """Columns path (relative to `folder`, sorted) and label (name of the class folder). Raises DataError."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    beside = next((p for p in sorted(folder.iterdir()) if _is_video(p)), None)
    if beside is not None:
        raise DataError(
            f"{beside}: a video beside the class folders has no class; "
            f"move it into {folder}/CLASS/, or write a CSV with path,label"
        )
    found = [
        (str(video.relative_to(folder)), class_folder.name)
        for class_folder in classes
        for video in sorted(class_folder.rglob("*"))
        if _is_video(video)
    ]
    if not found:
        raise DataError(
            f"{folder}: no video in any class folder; allowed: {folder}/CLASS/video with suffix "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    paths, labels = zip(*found)
    return pa.table({"path": pa.array(paths, pa.string()), "label": pa.array(labels, pa.string())})


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and path.name[0] != "."
