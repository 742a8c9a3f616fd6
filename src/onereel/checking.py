"""A list of videos examined with the clips that a recipe asks for, and written without what cannot be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onereel import build
from onereel.config import RunConfig
from onereel.data.annotation_check import AnnotationReport
from onereel.data.annotation_check import check_annotations as _check_annotations
from onereel.data.writing import check_list_path, write_records
from onereel.recipes import load_recipe
from onereel.video.prepare import refusals


def check_annotations(
    path: str,
    *,
    root: str = "",
    store: str = "",
    labels: str = "",
    recipe: str = "",
    usable: str | Path = "",
) -> AnnotationReport:
    """Examine a list: missing files, unknown labels, clips shorter than the span, class counts.

    Args:
        labels: training list whose labels are the known ones; empty: all are.
        recipe: whose clips are asked for; empty: 16 frames over the whole video.
        usable: where to write the records that can be used, as a list of its own: .csv, or .jsonl where records have
            several captions. Nothing is written where there are none.
    """
    config = load_recipe(recipe) if recipe else RunConfig()
    config = replace(config, data=replace(config.data, root=root, store=store))
    annotations = build.build_annotations(config, path)
    if usable:
        check_list_path(usable, annotations)
    data = config.data
    rate = data.sampling_rate if data.sampling == "dense" else 1
    library = build.build_library(config, annotations)
    known = build.build_annotations(config, labels).label_names() if labels else None
    frames, refused = build.frames_read(config), refusals(store) if store else (lambda video: "")
    found = _check_annotations(annotations, library, frames, rate, known, refused)
    if usable and found.usable:
        write_records(annotations, found.usable, usable, in_store=bool(store))
    return found
