"""The page of a search: each moment with thumbnails, its time in the video, and how alike it is to the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from onereel.report.pictures import jpeg_uri
from onereel.report.templates import environment

QUALITY = 78


@dataclass(frozen=True)
class PageEntry:
    """One moment.

    Attributes:
        start, end: seconds; None: the video's.
        score: cosine similarity to the text.
        pictures: frames in their order; empty where there is a `problem`.
    """

    path: str
    start: float | None
    end: float | None
    caption: str | None
    score: float
    pictures: tuple[Image.Image, ...]
    problem: str = ""

    @property
    def span(self) -> str:
        return span_text(self.start, self.end)


def span_text(start: float | None, end: float | None) -> str:
    """Seconds as `1:02.5 – 1:06.0`, or what of it is known."""
    if start is None and end is None:
        return "the whole video"
    return f"{clock(start or 0.0)} – {'end' if end is None else clock(end)}"


def clock(seconds: float) -> str:
    """`1:02.5` or `1:01:02.5`."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    hand = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{hand}:{rest // 10:02d}.{rest % 10}"


def render_search_page(text: str, entries: Sequence[PageEntry]) -> str:
    """The page as text; everything it shows is in it."""
    rows = [
        {"entry": entry, "pictures": [jpeg_uri(one, QUALITY) for one in entry.pictures]}
        for entry in entries
    ]
    return environment().get_template("search_page.html.jinja").render(text=text, rows=rows)
