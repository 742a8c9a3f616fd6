"""The index of several videos' pages: thumbnails with kept shares, and what could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from onereel.report.examples import render_selection
from onereel.report.inspect_page import InspectedClip
from onereel.report.pictures import jpeg_uri
from onereel.report.templates import environment
from onereel.types import TubeletGrid

if TYPE_CHECKING:
    from onereel.types import Quarantined

THUMBNAIL_PIXELS = 224
THUMBNAIL_QUALITY = 72


@dataclass(frozen=True)
class VideoEntry:
    """One video of the index.

    Attributes:
        page: relative address of its page.
        kept_ratio: share that is kept of its clip to begin with.
        thumbnail: a frame as a data URI, dropped patches greyed.
    """

    name: str
    page: str
    kept_ratio: float
    thumbnail: str


def video_entry(clip: InspectedClip, page: str) -> VideoEntry:
    """The line of the index for a clip whose page is at `page`: what is kept of it there to begin with, by the run, or
    by run-length at its threshold."""
    _, gh, gw = clip.grid
    if clip.own is not None:
        whole = clip.own.keep_mask.view(*clip.grid)
    else:
        whole = clip.adjacent.new_ones(*clip.grid).bool()
        whole[1:] = clip.adjacent > clip.threshold
    kept, num_kept = whole[1:], int(whole.sum())
    # Of the tubelets that can drop anything, the one that keeps most: there is something to be seen in it.
    k = int(kept.flatten(1).sum(dim=1).argmax()) if len(kept) else -1
    mask = whole[k + 1]
    frame = clip.frames[(k + 1) * clip.tubelet_size][None]
    pixels = frame.shape[-1] // gw
    picture = render_selection(frame, mask, TubeletGrid(1, gh, gw), 1, pixels)
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return VideoEntry(
        name=clip.name,
        page=page,
        kept_ratio=num_kept / clip.grid.num_tokens,
        thumbnail=jpeg_uri(picture, THUMBNAIL_QUALITY),
    )


def render_index(
    source: str,
    entries: Sequence[VideoEntry],
    broken: Sequence[Quarantined],
    note: str,
    chooser: str = "Run-length",
) -> str:
    """The index as text.

    Args:
        source: what was asked for.
        note: a sentence that says which clip of each video was scored, and how.
        chooser: what keeps tokens there to begin with.
    """
    return (
        environment()
        .get_template("inspect_index.html.jinja")
        .render(
            source=source,
            entries=entries,
            broken=broken,
            note=note,
            chooser=chooser,
            mean=fmean(entry.kept_ratio for entry in entries) if entries else None,
        )
    )
