"""The verbs that find moments of videos by a text: embed, search.

Options are the parameters of the plain functions below; tyro turns their types and docstrings into `--help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from onereel.progress import progress_bar

Run = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]


def embed(
    run: Run,
    source: Annotated[Positional[str], tyro.conf.arg(metavar="LIST")] = "",
    /,
    *,
    out: str,
    store: str = "",
    root: str = "",
    window_seconds: float = 0.0,
    device: str = "auto",
) -> int:
    """Embed moments of videos by a video-language run, for `onereel search`.

    Example: onereel embed runs/language_demo videos --window-seconds 3 --out features.parquet

    Interrupted and started again by the same command, it goes on where it stopped.

    Args:
        run: run folder, or a checkpoint in it.
        source: list of moments; with --window-seconds, a video, a folder or a list of videos (with --store, empty:
            all of them).
        out: Parquet file to write: path, start, end, caption, embedding. What cannot be read is in OUT_quarantine.csv.
        store: chunk store to read from; empty: the files themselves.
        root: folder that relative paths of a list start from, and of videos that it names by id; empty: the list's own.
        window_seconds: cut every video into moments of this length; 0: the moments that the list names.
        device: auto, cpu or cuda.
    """
    from onereel import moments

    with progress_bar("embed") as told:
        report = moments.embed(
            run,
            source,
            out=out,
            store=store,
            root=root,
            window_seconds=window_seconds,
            device=device,
            on_batch=told,
        )
    print(report)
    return int(bool(report.num_failed or report.broken))


def embed_command(argv: Sequence[str]) -> int:
    return tyro.cli(embed, prog="onereel embed", args=list(argv))


def search(
    run: Run,
    text: Annotated[Positional[str], tyro.conf.arg(metavar="TEXT")],
    /,
    *,
    index: str,
    top_k: int = 10,
    html: str = "",
) -> int:
    """Find the moments that a text describes best, in a file that `onereel embed` wrote.

    Example: onereel search runs/language_demo "a red square moves right" --index features.parquet --html found.html

    Args:
        run: the run that the file was embedded by.
        text: what to look for.
        index: file of embedded moments.
        top_k: moments to show.
        html: also write a page with thumbnails here.
    """
    from onereel import moments
    from onereel.report.search_page import span_text

    found = moments.search(run, text, index=index, top_k=top_k)
    table = Table("", "similarity", "time", "video", "caption", box=None, pad_edge=False)
    for place, one in enumerate(found, 1):
        moment = one.moment
        span = span_text(moment.start, moment.end)
        table.add_row(
            str(place), f"{one.score:.3f}", span, moment.path, moment.caption or "", style=None
        )
    Console(markup=False, emoji=False).print(table)
    if html:
        print(moments.write_page(html, text, found, index))
    return 0


def search_command(argv: Sequence[str]) -> int:
    return tyro.cli(search, prog="onereel search", args=list(argv))
