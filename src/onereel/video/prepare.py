"""`onereel prepare`: long videos of any kind into a store of short chunks that are cheap to read.

The store is a folder:

    store.json         settings, versions, the folder that names are relative to
    chunks/…           one folder per video, one MP4 file per chunk
    packets.arrow      one row per chunk with its packet index: what `ChunkStore` reads
    manifest.parquet   the same rows without packets, for people
    quarantine.csv     path, reason, frame of every file that the last run could not use

A file that fails anywhere (its header, or any frame of it) is quarantined whole: half a video would be a silent
change of the data. A run that was killed is finished by the same command: chunks are written aside and renamed, and
every few chunks are recorded in `parts/` until the index files are merged at the end. Files that were quarantined
are tried again by every run; files whose size changed are made again, beside the chunks that they replace. What an
earlier run finished stays until it is replaced, also where its source is gone or cannot be read any more: then only
`quarantine.csv` says so.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from onereel.errors import ConfigError, DataError, unknown_name
from onereel.files import write_atomically
from onereel.types import Quarantined
from onereel.video.chunking import Settings, exact_rate
from onereel.video.encode import PROFILES
from onereel.video.manifest import (
    RowsByVideo,
    has_chunks,
    merge,
    part_path,
    read_rows,
    spare_folder,
    video_folder,
)
from onereel.video.marker import open_store, read_marker
from onereel.video.schedule import Outcome, run_all
from onereel.video.sources import Source, file_size, list_sources, looked_at


@dataclass(frozen=True)
class PrepareReport:
    """What a store holds after `prepare`, and what the run did.

    Attributes:
        store: the folder.
        videos: in the store.
        chunks: in the store.
        quarantined: files that this run could not use.
        video_seconds: of all videos of the store.
        source_bytes: of their files (all streams, sound included).
        store_bytes: of the chunks.
        psnr: dB, luma, mean over chunks: the quality lost by encoding, scaling apart. Measured on every 7th frame.
        encoded_seconds: of video, encoded by this run (less than `video_seconds` where it was resumed).
        wall_seconds: of this run.
        uneven: videos of this run whose frame rate varies so much that most frames are repeated or left out, and how.
    """

    store: str
    videos: int
    chunks: int
    quarantined: tuple[Quarantined, ...]
    video_seconds: float
    source_bytes: int
    store_bytes: int
    psnr: float
    encoded_seconds: float
    wall_seconds: float
    uneven: tuple[str, ...] = ()

    @property
    def size_ratio(self) -> float:
        """Bytes of the store over bytes of the sources."""
        return self.store_bytes / self.source_bytes if self.source_bytes else 0.0

    @property
    def speed(self) -> float:
        """Seconds of video encoded per second."""
        return self.encoded_seconds / self.wall_seconds

    def __str__(self) -> str:
        lines = [
            f"store        {self.store}",
            f"videos       {self.videos} in {self.chunks} chunks, {self.video_seconds:.1f} s",
            f"size         {self.store_bytes / 1e6:.1f} MB,"
            f" {self.size_ratio:.2f}x the source's {self.source_bytes / 1e6:.1f} MB",
            f"quality      {self.psnr:.1f} dB luma PSNR against the scaled source (sampled)",
            f"this run     {self.encoded_seconds:.1f} s of video in {self.wall_seconds:.1f} s ({self.speed:.1f}x)",
            f"quarantined  {len(self.quarantined)}",
        ]
        shown = self.quarantined[:10]
        lines += [f"  {q.path}: {q.reason}" for q in shown]
        if len(shown) < len(self.quarantined):
            lines.append(f"  … all in {os.path.join(self.store, 'quarantine.csv')}")
        if self.uneven:
            lines.append(f"uneven       {len(self.uneven)}; another rate for all: --fps")
            lines += [f"  {told}" for told in self.uneven[:10]]
            lines += [f"  … {len(self.uneven) - 10} more"] * (len(self.uneven) > 10)
        return "\n".join(lines)


def prepare(
    source: str | os.PathLike[str] | Sequence[str],
    out: str | os.PathLike[str],
    *,
    root: str = "",
    chunk_seconds: float = 15.0,
    short_side: int = 288,
    fps: float | None = None,
    profile: str = "fast",
    crf: float | None = None,
    num_workers: int = 0,
    stream: int | None = None,
    progress: bool = True,
) -> PrepareReport:
    """Make, finish or extend the chunk store `out`.


    Args:
        source: a folder, a list or CSV (column `path`), one video, or paths.
        out: the store; new, empty, or made before with the same settings.
        root: folder that relative paths of a list start from; empty: the folder of the list.
        chunk_seconds: length of a chunk.
        short_side: pixels; larger pictures are scaled down to it, smaller ones keep their size.
        fps: frames per second of the store; None: each video's own average rate, pauses apart.
        profile: how to encode, a key of `onereel.video.encode.PROFILES`.
        crf: x264's quality, lower is better; None: the profile's.
        num_workers: processes; 0: one per core.
        stream: number of the video stream to take; None: the best of each file.
        progress: show a progress bar.

    Raises:
        ConfigError: a setting is out of range, or differs from that of the existing store.
        DataError: `source` names no video, or `out` is a folder of something else or cannot be written.
    """
    started = time.perf_counter()
    settings = _settings(chunk_seconds, short_side, fps, profile, crf, stream)
    if num_workers < 0:
        raise ConfigError(f"num_workers is {num_workers}; allowed: 0 (one per core) or more")
    store = Path(os.path.abspath(out))
    folder, sources = list_sources(source, root, str(store))
    outcome = Outcome()
    try:
        with open_store(store, settings, folder):
            existing = _complete_videos(store)
            looks = looked_at(partial(_todo, store, existing), sources)
            todo = [source for source in looks if source is not None]
            try:
                run_all(todo, settings, store, num_workers, progress, outcome)
            finally:
                _commit(store, existing, todo, outcome)
            return _report(store, outcome, time.perf_counter() - started)
    except OSError as error:
        raise DataError(
            f"{store} cannot be written ({error}); finished chunks are kept: run the same command again"
        ) from error


def _settings(
    chunk_seconds: float,
    short_side: int,
    fps: float | None,
    profile: str,
    crf: float | None,
    stream: int | None,
) -> Settings:
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    crf = PROFILES[profile].crf if crf is None else float(crf)
    for name, value, good, allowed in (
        ("chunk_seconds", chunk_seconds, chunk_seconds > 0, "above 0"),
        ("short_side", short_side, short_side >= 16, "16 or more"),
        ("fps", fps, fps is None or fps > 0, "above 0"),
        ("crf", crf, 0 <= crf <= 51, "0 to 51"),
        ("stream", stream, stream is None or stream >= 0, "0 or more"),
    ):
        if not good:
            raise ConfigError(f"{name} is {value!r}; allowed: {allowed}")
    rate = None if fps is None else str(exact_rate(fps))
    return Settings(float(chunk_seconds), short_side, rate, profile, crf, stream)


def _complete_videos(store: Path) -> Mapping[str, pa.Table]:
    """The rows of each video that an earlier run finished."""
    path = store / "packets.arrow"
    return RowsByVideo(read_rows(path)) if path.exists() else {}


def _todo(store: Path, existing: Mapping[str, pa.Table], source: Source) -> Source | None:
    """The source if its chunks must be made, with the folder where that harms no chunk that still serves."""
    rows = existing.get(source.name)
    if rows is None:
        return source
    folder = _folder(rows)
    source_bytes = file_size(source.path)
    if source_bytes != rows["source_bytes"][0].as_py():
        return source._replace(folder=spare_folder(folder))
    return None if has_chunks(store, rows, source_bytes) else source._replace(folder=folder)


def _folder(rows: pa.Table) -> str:
    return os.path.dirname(rows["path"][0].as_py())


def _commit(
    store: Path, existing: Mapping[str, pa.Table], tried: list[Source], outcome: Outcome
) -> None:
    """Merge what is complete into the index files, then remove what nothing refers to.

    The rows of an earlier run are dropped only where this run made others for the same video.
    """
    finished = outcome.finished
    _write_quarantine(store, outcome)
    if finished or not (store / "packets.arrow").exists():
        keep = (existing[name] for name in sorted(existing.keys() - finished.keys()))
        parts = (
            [part_path(store, name, chunk) for chunk in finished[name]] for name in sorted(finished)
        )
        merge(store, keep, parts)
    made = {source.name: source.folder for source in tried}
    used = {name: _folder(rows) for name, rows in existing.items()}
    used |= {name: made[name] for name in finished}
    interrupted = made.keys() - finished.keys() - outcome.quarantined.keys()
    shared = {
        store / parent for folder in used.values() for parent in PurePosixPath(folder).parents
    }
    for name in (made.keys() | used.keys()) - interrupted:
        _remove(store / "parts" / video_folder(name), shared)
        _remove(store / (spare_folder(used[name]) if name in used else made[name]), shared)


def _remove(folder: Path, shared: set[Path]) -> None:
    """Remove a video's folder, and the folders above it that are empty then.

    Of a folder in `shared`, which other videos' folders lie in (older stores have such), only the files.
    """
    if not folder.exists():
        return
    if folder not in shared:
        shutil.rmtree(folder)
    else:
        for file in filter(Path.is_file, list(folder.iterdir())):
            file.unlink()
    with contextlib.suppress(OSError):
        os.removedirs(folder.parent)


def _write_quarantine(store: Path, outcome: Outcome) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "reason", "frame"])
    for name in sorted(outcome.quarantined):
        bad = outcome.quarantined[name]
        writer.writerow([bad.path, bad.reason, "" if bad.frame is None else bad.frame])
    content = text.getvalue().encode(errors="backslashreplace")
    write_atomically(store / "quarantine.csv", content)


def refusals(store: str | os.PathLike[str]) -> Callable[[str], str]:
    """A function that says why `store` lacks a video, by its name in a list, or its id; nothing where no file could
    not be used. Raises DataError where there is no store."""
    path = Path(os.path.abspath(store))
    root = read_marker(path)["settings"]["root"]
    by_path, by_id = {}, {}
    with contextlib.suppress(FileNotFoundError):
        text = (path / "quarantine.csv").read_text(encoding="utf-8")
        for row in csv.DictReader(io.StringIO(text)):
            by_path[os.path.normpath(os.path.join(root, row["path"]))] = row["reason"]
            by_id[Path(row["path"]).stem] = row["reason"]

    def refused(video: str) -> str:
        return by_path.get(os.path.normpath(os.path.join(root, video))) or by_id.get(video, "")

    return refused


_SUMMED = ("chunk", "source_bytes", "start_seconds", "end_seconds", "bytes", "psnr")


def _report(store: Path, outcome: Outcome, wall_seconds: float) -> PrepareReport:
    # Only what is summed: a filter copies, and the packets of a large store are gigabytes.
    rows = read_rows(store / "packets.arrow").select(_SUMMED)
    videos = rows.filter(pc.equal(rows["chunk"], 0))
    seconds = pc.subtract(rows["end_seconds"], rows["start_seconds"])
    return PrepareReport(
        store=str(store),
        videos=videos.num_rows,
        chunks=rows.num_rows,
        quarantined=tuple(outcome.quarantined[name] for name in sorted(outcome.quarantined)),
        video_seconds=pc.sum(seconds).as_py() or 0.0,
        source_bytes=pc.sum(videos["source_bytes"]).as_py() or 0,
        store_bytes=pc.sum(rows["bytes"]).as_py() or 0,
        psnr=pc.mean(rows["psnr"]).as_py() or 0.0,
        encoded_seconds=outcome.seconds,
        wall_seconds=wall_seconds,
        uneven=tuple(f"{name}: {outcome.uneven[name]}" for name in sorted(outcome.uneven)),
    )
