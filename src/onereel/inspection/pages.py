"""Pages for videos, and an index where there are several; a video that cannot be read is listed with its reason."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from rich.console import Console
from rich.progress import track

from onereel.errors import ConfigError, DataError, DecodeError, did_you_mean
from onereel.files import write_atomically
from onereel.inspection.clip import inspect_clip
from onereel.inspection.options import ClipOptions
from onereel.inspection.reading import ClipReading, clip_reading
from onereel.report.inspect_index import VideoEntry, render_index, video_entry
from onereel.report.inspect_page import render_page
from onereel.report.text import printable
from onereel.types import Quarantined
from onereel.video.library import VideoLibrary, open_library
from onereel.video.sources import list_sources

LONGEST_NAME = 80


@dataclass(frozen=True)
class InspectReport:
    """What was written: the page, or the index of several."""

    page: Path
    num_pages: int
    broken: tuple[Quarantined, ...] = ()

    def __str__(self) -> str:
        lines = [f"not read: {one.path}: {one.reason}" for one in self.broken]
        pages = f" ({self.num_pages} videos)" if self.num_pages > 1 or self.broken else ""
        return "\n".join([*lines, f"wrote {self.page}{pages}"])


def inspect(
    source: str | Path = "",
    *,
    store: str | Path = "",
    run: str | Path = "",
    out: str | Path = "inspect.html",
    clip: ClipOptions | None = None,
) -> InspectReport:
    """Write a page on which every selector can be tried on a clip; for several videos, one each and an index.

    Args:
        source: a video, a folder, or a list of videos; with `store`, a video or folder of it (empty: all).
        store: chunk store to read from.
        run: whose token selection to begin with, and whose patch embedding, clips and normalisation to use; empty:
            run-length at 0.1, raw pixels, 16 frames, 4 apart, 224 px.
        out: the page, NAME.html. Pages of several videos go to the folder NAME_pages beside it.
        clip: which clip of each video.

    Raises:
        ConfigError, DataError: the source, store, run or settings cannot be used.
        DecodeError: the one video cannot be read; of several, those are listed with their reasons.
    """
    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out is {str(out)!r}; the page needs a name that ends in .html")
    reading = clip_reading(clip or ClipOptions(), run)
    library, names, single = _videos(str(source), str(store))
    page.parent.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        if not single:
            return _write_all(library, names, reading, page, str(source or store))
        write_atomically(page, render_page(inspect_clip(library, names[0], reading)))
    return InspectReport(page, 1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The tensors of one clip are small: threads that wait for one another would cost several times what they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_all(
    library: VideoLibrary, names: Sequence[str], reading: ClipReading, page: Path, source: str
) -> InspectReport:
    """A page per video, and the index of them at `page`."""
    folder = page.with_name(f"{page.stem}_pages")
    folder.mkdir(exist_ok=True)
    entries: list[VideoEntry] = []
    broken: list[Quarantined] = []
    for result in _write_pages(library, names, reading, folder, page.name):
        if isinstance(result, Quarantined):
            broken.append(result)
        else:
            entries.append(result)
    chooser = "The run" if reading.own else "Run-length"
    index = render_index(printable(source), entries, broken, reading.describe(), chooser)
    write_atomically(page, index)
    return InspectReport(page, len(entries), tuple(broken))


def _write_pages(
    library: VideoLibrary, names: Sequence[str], reading: ClipReading, folder: Path, index: str
) -> Iterator[VideoEntry | Quarantined]:
    """Write each video's page into `folder`; its line of the index, or why there is none."""
    shown = Console(stderr=True)
    for name in track(
        names, "inspect", console=shown, disable=not shown.is_terminal, transient=True
    ):
        try:
            clip = inspect_clip(library, name, reading)
        except DecodeError as error:
            yield Quarantined(printable(name), error.reason, error.frame, where="inspect")
            continue
        except OSError as error:
            yield Quarantined(printable(name), error.strerror or str(error), where="inspect")
            continue
        file = page_name(name)
        write_atomically(folder / file, render_page(clip, index=f"../{quote(index)}"))
        yield video_entry(clip, f"{quote(folder.name)}/{quote(file)}")


def page_name(video: str) -> str:
    """The file of a video's page: its name made safe, different for every video."""
    safe = re.sub(r"[^\w.=+@-]+", "_", video)[-LONGEST_NAME:].lstrip("._-")
    if safe != video:
        safe += (
            "-" + hashlib.blake2b(video.encode(errors="surrogateescape"), digest_size=4).hexdigest()
        )
    return f"{safe}.html"


def _videos(source: str, store: str) -> tuple[VideoLibrary, Sequence[str], bool]:
    """Where the videos are read from, their names, and whether exactly one was asked for."""
    if store:
        return _stored_videos(source, store)
    if not source:
        raise ConfigError(
            "inspect needs a video or a folder: onereel inspect VIDEO (or --store STORE for all videos of a store)"
        )
    root, sources = list_sources(source)
    names = [one.name for one in sources]
    single = len(names) == 1 and Path(source).is_file() and Path(source).name == names[0]
    return open_library(root=root), names, single


def _stored_videos(source: str, store: str) -> tuple[VideoLibrary, Sequence[str], bool]:
    from onereel.video.store import ChunkStore

    library = ChunkStore(store)
    names = library.videos()
    if not source:
        return library, names, False
    if source in library:
        return library, [source], True
    inside = [name for name in names if name.startswith(f"{source.rstrip('/')}/")]
    if not inside:
        raise DataError(
            f"{store} holds no video or folder {source!r}.{did_you_mean(source, names)} It has {len(names)} videos"
        )
    return library, inside, False
