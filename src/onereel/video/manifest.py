"""What a store knows of its chunks: one row each, written in parts while it grows, merged into two files at the end.

`packets.arrow` is the truth: uncompressed Arrow IPC, memory-mapped by readers, rows sorted by (video, chunk), in
record batches of `BATCH_ROWS` rows (the last may be shorter), so that row r is found without a search. Each row has
the facts of a chunk and its packet index. `manifest.parquet` repeats the facts, for people and their tools.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onereel.errors import DataError
from onereel.files import written_aside
from onereel.video.index import PacketIndex
from onereel.video.probe import VIDEO_SUFFIXES

BATCH_ROWS = 2048
MAX_NAME = 120
"""Longest folder name taken over from a source, in characters ..."""
MAX_BYTES = 240
"""... and in bytes: file systems allow 255, and a hash and a `~` may come on top."""

FACTS = pa.schema(
    {
        "video": pa.string(),
        "chunk": pa.int32(),
        "num_chunks": pa.int32(),
        "path": pa.string(),
        "source": pa.string(),
        "source_bytes": pa.int64(),
        "source_rotation": pa.int16(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "first_frame": pa.int64(),
        "num_frames": pa.int32(),
        "video_frames": pa.int64(),
        "fps_numerator": pa.int32(),
        "fps_denominator": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "bytes": pa.int64(),
        "checksum": pa.string(),
        "psnr": pa.float32(),
    }
)
"""A row of `manifest.parquet`. `psnr`: luma, in dB, of the encode against its scaled input, on every 7th frame.
`num_chunks` and `video_frames` are those of the whole video; `source_rotation` is the clockwise turn applied."""

PACKETS = pa.schema(
    {
        "codec": pa.string(),
        "extradata": pa.binary(),
        "pixel_format": pa.string(),
        "color_space": pa.string(),
        "color_range": pa.string(),
        "time_base_numerator": pa.int32(),
        "time_base_denominator": pa.int32(),
        "first_pts": pa.int64(),
        "pts_step": pa.int64(),
        "rank": pa.list_(pa.int32()),
        "position": pa.list_(pa.int64()),
        "size": pa.list_(pa.int32()),
        "key": pa.list_(pa.bool_()),
        "reference": pa.list_(pa.bool_()),
    }
)
"""What `packets.arrow` adds. The packet of display rank r has pts `first_pts + r * pts_step`."""

ROWS = pa.schema([*FACTS, *PACKETS])


def video_folder(name: str) -> str:
    """The folder of a video's chunks, below the store: the source's path, made safe, different for every name.

    None lies within another: each ends in a video's suffix or a hash, and no folder above it does.
    """
    parts = [p for p in PurePosixPath(name).parts if p not in ("/", ".", "..")]
    *parents, last = map(_safe, parts or [""])
    parents = [p.replace(".", "_") if _is_video(p) else p for p in parents]
    safe = "/".join([*parents, last])
    if safe != name or not _is_video(last):
        safe += "-" + hashlib.blake2b(os.fsencode(name), digest_size=5).hexdigest()
    return f"chunks/{safe}"


def _safe(part: str) -> str:
    """One name of a path, in characters that every file system takes."""
    safe = re.sub(r"[^\w.,+=@ -]", "_", part)[:MAX_NAME]
    safe = safe.encode()[:MAX_BYTES].decode(errors="ignore").strip()
    return "_" if safe in ("", ".", "..") else safe


def _is_video(part: str) -> bool:
    return Path(part).suffix.lower() in VIDEO_SUFFIXES


def spare_folder(used: str) -> str:
    """Where the chunks of a video that changed are made, while those in the folder `used` still serve."""
    return used[:-1] if used.endswith("~") else used + "~"  # no `video_folder` ends like this


def chunk_row(facts: dict[str, Any], index: PacketIndex) -> dict[str, Any]:
    """The row of a chunk whose file has the packet index `index`."""
    shown = index.pts[index.packet_of_frame]
    step = int(shown[1] - shown[0]) if len(shown) > 1 else 1
    if (np.diff(shown) != step).any() or index.num_packets != index.num_frames:
        raise AssertionError(f"{facts['path']} is not one packet per tick")
    columns = ("rank", "position", "size", "key", "reference")
    return {
        **facts,
        "num_frames": index.num_frames,
        "height": index.height,
        "width": index.width,
        "codec": index.codec,
        "extradata": index.extradata,
        "pixel_format": index.pixel_format,
        "color_space": index.color_space,
        "color_range": index.color_range,
        "time_base_numerator": index.time_base.numerator,
        "time_base_denominator": index.time_base.denominator,
        "first_pts": int(shown[0]),
        "pts_step": step,
        **{name: getattr(index, name) for name in columns},
    }


def write_part(rows: list[dict[str, Any]], out: Path, video: str, first_chunk: int) -> None:
    """Record finished chunks so that a later run finds them."""
    table = pa.Table.from_pylist(rows, schema=ROWS)
    target = part_path(out, video, first_chunk)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        written_aside(target) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, ROWS) as writer,
    ):
        writer.write_table(table)


def read_part(path: Path) -> pa.Table | None:
    """The rows of a part; None where there is none, or one that is damaged, and its chunks must be made (again)."""
    if not path.exists():
        return None
    try:
        rows = read_rows(path)
    except DataError:
        return None
    return rows if rows.schema == ROWS and rows.num_rows else None


def part_path(out: Path, video: str, first_chunk: int) -> Path:
    return out / "parts" / video_folder(video) / f"{first_chunk:06d}.arrow"


def made_parts(out: Path, video: str, source: str, folder: str) -> list[int] | None:
    """The first chunks of a video's parts where these hold all of it, as its file `source` is now; else None.

    Its chunks must lie in `folder`, below the store.
    """
    paths = sorted(part_path(out, video, 0).parent.glob("*.arrow"))
    parts = [read_part(path) for path in paths]
    found = [rows for rows in parts if rows is not None]
    if not found or len(found) < len(parts) or not os.path.isfile(source):
        return None
    rows = pa.concat_tables(found)
    same = ("num_chunks", "video_frames", "fps_numerator", "fps_denominator", "source_bytes")
    whole = rows["chunk"].to_pylist() == list(range(rows["num_chunks"][0].as_py()))
    if not whole or any(len(rows[name].unique()) > 1 for name in same):
        return None
    if {os.path.dirname(path) for path in rows["path"].to_pylist()} != {folder}:
        return None
    firsts = [part["chunk"][0].as_py() for part in found]
    return firsts if has_chunks(out, rows, os.path.getsize(source)) else None


def read_rows(path: Path) -> pa.Table:
    """All rows of an Arrow file of this store, memory-mapped. Raises DataError where it is damaged."""
    try:
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is damaged ({error}); restore it, or delete it and run the same `onereel prepare` command again, "
            "which then makes all chunks again"
        ) from error


class RowsByVideo(Mapping[str, pa.Table]):
    """The rows of each video of a table, sorted by (video, chunk). A slice is 16 kB: none is kept."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        self._starts = np.flatnonzero(rows["chunk"].to_numpy() == 0)
        names = rows["video"].take(pa.array(self._starts)).to_pylist()
        self._places = {name: place for place, name in enumerate(names)}

    def __getitem__(self, video: str) -> pa.Table:
        place = self._places[video]
        start, *after = self._starts[place : place + 2].tolist()
        stop = after[0] if after else self._rows.num_rows
        return self._rows.slice(start, stop - start)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Rows:
    """The rows of `packets.arrow`, memory-mapped: nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        table = read_rows(path)
        self.num_rows = table.num_rows
        self._columns: dict[str, pa.ChunkedArray] = {name: table[name] for name in ROWS.names}

    def value(self, name: str, row: int) -> Any:
        """One cell."""
        batch, i = divmod(row, BATCH_ROWS)
        return self._columns[name].chunk(batch)[i].as_py()

    def videos(self) -> list[str]:
        """The names of all videos, sorted."""
        starts = np.flatnonzero(self._columns["chunk"].to_numpy() == 0)
        return self._columns["video"].take(pa.array(starts)).to_pylist()

    def find(self, video: str) -> int | None:
        """The row of the first chunk of the video with that name, or None."""
        row = bisect_left(range(self.num_rows), video, key=lambda r: self.value("video", r))
        return row if row < self.num_rows and self.value("video", row) == video else None

    def packet_index(self, row: int) -> PacketIndex:
        """The packet index of the chunk of `row`."""
        value = {name: self.value(name, row) for name in _INDEX_CELLS}
        rank, fps = self._numbers("rank", row), value["fps_numerator"] / value["fps_denominator"]
        return PacketIndex(
            **{name: value[name] for name in _INDEX_CELLS[:7]},
            rotation=0,
            time_base=Fraction(value["time_base_numerator"], value["time_base_denominator"]),
            stream=0,
            position=self._numbers("position", row),
            size=self._numbers("size", row),
            rank=rank,
            key=self._numbers("key", row),
            reference=self._numbers("reference", row),
            pts=value["first_pts"] + rank.astype(np.int64) * value["pts_step"],
            frame_times=np.arange(len(rank)) / fps,
            constant_rate=True,
            fps=fps,
            addressable=True,
            file_size=value["bytes"],
            mtime_ns=0,  # not compared: a store may be copied
        )

    def _numbers(self, name: str, row: int) -> np.ndarray:
        batch, i = divmod(row, BATCH_ROWS)
        return self._columns[name].chunk(batch)[i].values.to_numpy(zero_copy_only=False)


_INDEX_CELLS = (
    *("codec", "extradata", "width", "height", "pixel_format", "color_space", "color_range"),
    *("time_base_numerator", "time_base_denominator", "first_pts", "pts_step"),
    *("fps_numerator", "fps_denominator", "bytes"),
)


def has_chunks(out: Path, rows: pa.Table, source_bytes: int) -> bool:
    """Whether the chunk files of `rows` are in place, and were made from a source of that size."""
    if rows["source_bytes"][0].as_py() != source_bytes:
        return False
    files = zip(rows["path"].to_pylist(), rows["bytes"].to_pylist())
    return all(_size(out / path) == size for path, size in files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def merge(out: Path, keep: Iterable[pa.Table], parts: Iterable[list[Path]]) -> None:
    """Write `packets.arrow` and `manifest.parquet`.

    Args:
        out: the store.
        keep: the rows of one video each, sorted by video.
        parts: the part files of one video each, in order, sorted by video; none of those in `keep`.
    """
    added = (pa.concat_tables([read_rows(path) for path in paths]) for paths in parts)
    tables = heapq.merge(keep, added, key=lambda table: table["video"][0].as_py())
    packets, manifest = out / "packets.arrow", out / "manifest.parquet"
    # The truth last: a run killed in between finds its parts again and merges once more.
    with (
        written_aside(packets) as packets_aside,
        written_aside(manifest) as manifest_aside,
        pa.OSFile(str(packets_aside), "wb") as file,
        pa.ipc.new_file(file, ROWS) as rows,
        pq.ParquetWriter(str(manifest_aside), FACTS) as facts,
    ):
        for batch in _rebatched(tables):
            rows.write_batch(batch)
            facts.write_batch(batch.select(FACTS.names))


def _rebatched(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    """The rows of `tables` in record batches of `BATCH_ROWS` rows."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    for table in tables:
        waiting.append(table)
        num_waiting += table.num_rows
        while num_waiting >= BATCH_ROWS:
            joined = pa.concat_tables(waiting)
            yield _one_batch(joined.slice(0, BATCH_ROWS))
            waiting, num_waiting = [joined.slice(BATCH_ROWS)], num_waiting - BATCH_ROWS
    if num_waiting:
        yield _one_batch(pa.concat_tables(waiting))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]
