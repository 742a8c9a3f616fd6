"""A text, and the moments that it describes best: as a list, and as a page of thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from onereel.config import DataConfig
from onereel.data.sampling import frame_span, segment_frames
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.evaluation.inference import evaluating
from onereel.files import write_atomically
from onereel.loading import load_dual_encoder
from onereel.moments.index import Moment, MomentIndex, fingerprint, nearest
from onereel.report.pictures import frame_picture
from onereel.report.search_page import PageEntry, render_search_page
from onereel.types import ClipSpec, CropBox
from onereel.video.library import VideoLibrary, open_library

NUM_THUMBNAILS = 3
THUMBNAIL_HEIGHT = 120


@dataclass(frozen=True)
class Found:
    """A moment, and its cosine similarity to the text, -1 to 1."""

    moment: Moment
    score: float


def search(run: str | Path, text: str, *, index: str | Path, top_k: int = 10) -> list[Found]:
    """The moments of an index that a text describes best, best first.

    Args:
        run: the video-language run that the index was embedded by.
        index: what `embed` wrote.

    Raises:
        OnereelError: there is no such run or index, or they are not of the same model.
    """
    if top_k < 1:
        raise ConfigError(f"--top-k is {top_k}; allowed: 1 or more")
    if not text.strip():
        raise ConfigError("the text to search for is empty")
    moments = MomentIndex.read(index)
    model = load_dual_encoder(run).model
    if fingerprint(model) != moments.facts.model:
        raise DataError(
            f"{index} was embedded by other weights than the newest of {run}; embed again: onereel embed {run} LIST "
            f"--out {index}"
        )
    with evaluating(model):
        query = model.encode_text([text])[0].numpy()
    return [
        Found(moments.moment(row), score)
        for row, score in nearest(moments.embeddings, query, top_k)
    ]


def write_page(path: str | Path, text: str, found: Sequence[Found], index: str | Path) -> Path:
    """Write what was found as a page with thumbnails of each moment; its path is the answer.

    A moment whose video can no longer be read is shown with the reason in their place.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html is {str(path)!r}; the page needs a name that ends in .html")
    facts = MomentIndex.read(index).facts
    timeout = DataConfig().timeout_seconds
    library = open_library(facts.store, root=facts.root, timeout_seconds=timeout)
    entries = [_entry(library, one) for one in found]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_search_page(text, entries))
    return path


def _entry(library: VideoLibrary, found: Found) -> PageEntry:
    moment = found.moment
    pictures: tuple[Image.Image, ...] = ()
    problem = ""
    try:
        pictures = tuple(_thumbnails(library, moment))
    except (DecodeError, DataError) as error:
        problem = str(error)
    return PageEntry(
        moment.path, moment.start, moment.end, moment.caption, found.score, pictures, problem
    )


def _thumbnails(library: VideoLibrary, moment: Moment) -> list[Image.Image]:
    """A few frames spread over the moment. Raises DecodeError, DataError."""
    info = library.info(moment.path)
    frames = segment_frames(*frame_span(info, moment.start, moment.end), NUM_THUMBNAILS)
    height, width = info.height // 2 * 2, info.width // 2 * 2
    size = (THUMBNAIL_HEIGHT, max(2, round(THUMBNAIL_HEIGHT * width / height)))
    clip = library.read(ClipSpec(moment.path, frames, CropBox(0, 0, height, width), size))
    return [frame_picture(frame) for frame in torch.unbind(clip)]
