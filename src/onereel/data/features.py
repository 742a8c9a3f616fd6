"""Features of frozen weights on disk: written once, shard by shard, and read in place of clips ever after.

A cache is a folder: `key.json`, which says what the features are of, and shards `view000-000-00000.safetensors`, each
with some samples of one view. A shard is there whole or not at all, so a cache that was being made when the
process died is made further, and is read through memory maps.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from onereel.data.annotations import Record
from onereel.data.dataset import ClipReader, Sample
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.files import write_atomically
from onereel.types import FrameFeatures, SampleKey, TubeletGrid

FORMAT = 1
"""Raised when shards, or what is done to pixels before they are encoded, change their meaning."""
KEY = "key.json"
QUARANTINE = "quarantine.csv"
SHARDS = "view[0-9]*-[0-9]*-[0-9]*.safetensors"
SHARD_BYTES = 32 << 20
"""Features that a shard holds before it is written, and so what a killed process loses at most."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
NOT_THERE, FAILED = -1, -2
KEPT_SHARDS = 8192
"""Shards that a process holds memory maps of: Linux allows 65,530 maps, and large features have more shards."""

Key = Mapping[str, Any]
"""What features depend on: names of settings, or of what was hashed, to JSON values."""


def is_cache_of(folder: Path, key: Key, unknown: Collection[str] = ()) -> bool:
    """Whether `folder` holds features of `key`, as far as its names are not yet `unknown`; False: it holds nothing.

    Raises ConfigError where it holds something else, or other features, with each difference.
    """
    path = folder / KEY
    if path.exists():
        _check_same(folder, _read_key(path), {"format": FORMAT, **key}, unknown)
        return True
    if folder.is_dir() and any(folder.glob("[!.]*")):
        raise ConfigError(f"{folder} is not empty and holds no features; give another data.cache")
    return False


def claim(folder: Path, key: Key, *, discard: bool = False) -> None:
    """Make `folder` the cache of `key`, or see that it is. One process calls it.

    Raises ConfigError as `is_cache_of`; with `discard` other features are removed, and what else lies there stays.
    """
    path = folder / KEY
    try:
        if is_cache_of(folder, key):
            return
    except ConfigError:
        if not (discard and path.exists()):
            raise
        remove_features(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"format": FORMAT, **key}, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"data.cache {folder} cannot be written: {error.strerror}; give another folder"
        ) from error


def remove_features(folder: Path) -> None:
    """Remove from a cache's folder what the cache wrote there, and nothing else."""
    # The key last: by it, what is left of an attempt that was killed is known for a cache.
    for name in (SHARDS, f".{SHARDS}*.partial", QUARANTINE, KEY):
        for path in folder.glob(name):
            path.unlink(missing_ok=True)


def _read_key(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete {path.parent}") from error


def _check_same(folder: Path, then: Key, now: Key, unknown: Collection[str]) -> None:
    now = json.loads(json.dumps(now))  # tuples are lists on disk
    if re.fullmatch(r"[0-9a-f]{64}", str(then.get("store"))):
        raise ConfigError(
            f"{folder} holds features that an earlier version of onereel made, which knew their clips by all of the "
            f"store; give another folder (--data.cache), or delete {folder} to have them made anew"
        )
    changes = [
        f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*then, *now} - {*unknown})
        if then.get(name) != now.get(name)
    ]
    if changes:
        raise ConfigError(
            f"{folder} holds features of another run: {'; '.join(changes)}. Set back what you didn't mean to change, "
            f"give another folder (--data.cache), or delete {folder} to have them made anew"
        )


class _Places(NamedTuple):
    """Where each sample of a view lies: `(num_samples,)` each.

    Attributes:
        shards: its number in the cache's list of shards, NOT_THERE, or FAILED: it could not be read.
        firsts: its first row there.
        lengths: its rows.
    """

    shards: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray


class FeatureCache:
    """The features of `num_views` views of each sample; what is written after the first `read` is not seen.

    Picklable, and cheap to send to a worker process.

    Args:
        folder: of a cache that was claimed.
        num_samples: records of the list.
        num_views: K; epoch e of a run reads view e mod K.
        grid: that of the features, (gt, 1, 1).
        embed_dim: D.
        dtype: a name of DTYPES.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_samples: int,
        num_views: int,
        grid: TubeletGrid,
        embed_dim: int,
        dtype: str,
    ) -> None:
        self.folder, self.num_samples, self.num_views = folder, num_samples, num_views
        self.grid, self.embed_dim, self.dtype = grid, embed_dim, DTYPES[dtype]
        self._places: list[_Places] | None = None
        self._shards: list[Path] = []
        self._open: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": None, "_shards": [], "_open": OrderedDict()}

    @property
    def bytes_per_clip(self) -> int:
        """Of the features of a view of a sample; less where tokens are selected and a frame has none."""
        return self.grid.gt * self.embed_dim * self.dtype.itemsize

    def done(self, view: int) -> np.ndarray:
        """bool `(num_samples,)`: whose features of this view are there, or known not to be had.

        Raises DataError for a damaged shard.
        """
        done = np.zeros(self.num_samples, dtype=bool)
        for path in self._paths(view):
            header = _read_header(path)
            done[header.samples] = done[header.failed] = True
        return done

    def writer(self, view: int, rank: int) -> ShardWriter:
        """What adds samples to a view; `rank` tells apart the files of processes that write at the same time."""
        names = [path.name for path in self._paths(view, f"{rank:03d}")]
        first = int(names[-1].split("-")[2].split(".")[0]) + 1 if names else 0
        return ShardWriter(self, f"view{view:03d}-{rank:03d}", first)

    def read(self, sample: int, epoch: int) -> tuple[Tensor, Tensor] | None:
        """Features `(L, D)` of one clip and their places in time `(L,)`; None where it could not be read.

        Raises DataError where they were never made, or a shard is damaged.
        """
        view = epoch % self.num_views
        shard, first, length = (int(column[sample]) for column in self._index()[view])
        if shard == FAILED:
            return None
        if shard == NOT_THERE:
            raise DataError(
                f"{self.folder} lacks view {view} of sample {sample}: start the run again"
            )
        values, frames = self._shard(shard)
        return values[first : first + length], frames[first : first + length]

    def _shard(self, number: int) -> tuple[Tensor, Tensor]:
        """Values and frames of a shard: one of those used last, or mapped now."""
        opened = self._open.pop(number, None)
        if opened is None:
            values, frames = _read(self._shards[number], "values", "frames")
            opened = values, frames
        self._open[number] = opened
        if len(self._open) > KEPT_SHARDS:
            self._open.popitem(last=False)
        return opened

    def _paths(self, view: int, rank: str = "*") -> list[Path]:
        return sorted(self.folder.glob(f"view{view:03d}-{rank}-*.safetensors"))

    def _index(self) -> list[_Places]:
        """Where everything is, by view; made of the shards' headers when it is first asked for."""
        if self._places is None:
            self._places = [self._find(view) for view in range(self.num_views)]
        return self._places

    def _find(self, view: int) -> _Places:
        shards, firsts, lengths = np.full((3, self.num_samples), NOT_THERE)
        for path in self._paths(view):
            header = _read_header(path)
            shards[header.failed] = FAILED
            shards[header.samples] = len(self._shards)
            firsts[header.samples] = np.cumsum(header.lengths) - header.lengths
            lengths[header.samples] = header.lengths
            self._shards.append(path)
        return _Places(shards, firsts, lengths)


class ShardWriter:
    """Gathers samples of one view and writes them shard by shard; `flush` writes the rest."""

    def __init__(self, cache: FeatureCache, prefix: str, number: int) -> None:
        self.cache, self.prefix, self.number = cache, prefix, number
        self._clear()

    def _clear(self) -> None:
        self._values: list[Tensor] = [torch.empty(0, self.cache.embed_dim, dtype=self.cache.dtype)]
        self._frames: list[Tensor] = [torch.empty(0, dtype=torch.int32)]
        self._lengths: list[int] = []
        self._samples: list[int] = []
        self._failed: list[int] = []
        self._bytes = 0

    def add(self, samples: Sequence[int], features: FrameFeatures, failed: Sequence[int]) -> None:
        """Keep the features of `samples`, in their order, and the `failed` ones that could not be read.

        Raises:
            DataError: a feature doesn't fit the cache's dtype.
            OSError: the disk is full.
        """
        self._failed += failed
        if samples:
            self._values.append(self._stored(features.values, samples))
            self._frames.append(features.coordinates[:, 0].to("cpu", torch.int32))
            self._lengths += features.lengths
            self._samples += samples
            self._bytes += self._values[-1].nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def _stored(self, values: Tensor, samples: Sequence[int]) -> Tensor:
        stored = values.detach().to("cpu", self.cache.dtype)
        if not stored.isfinite().all():
            name = str(self.cache.dtype).removeprefix("torch.")
            raise DataError(
                f"features of samples {', '.join(map(str, samples))} are not finite in {name}: set data.cache_dtype to "
                "bfloat16 or float32, or, where that doesn't help, look at the frozen weights"
            )
        return stored

    def flush(self) -> None:
        """Write what is gathered. Raises OSError."""
        if not self._samples and not self._failed:
            return
        tensors = {
            "values": torch.cat(self._values),
            "frames": torch.cat(self._frames),
            "lengths": torch.tensor(self._lengths, dtype=torch.int64),
            "samples": torch.tensor(self._samples, dtype=torch.int64),
            "failed": torch.tensor(self._failed, dtype=torch.int64),
        }
        name = f"{self.prefix}-{self.number:05d}.safetensors"
        write_atomically(self.cache.folder / name, save(tensors))
        self.number += 1
        self._clear()


class _Header(NamedTuple):
    """What an index needs of a shard: int64 arrays."""

    samples: np.ndarray
    lengths: np.ndarray
    failed: np.ndarray


def _read_header(path: Path) -> _Header:
    return _Header(*(part.numpy() for part in _read(path, *_Header._fields)))


def _read(path: Path, *names: str) -> list[Tensor]:
    try:
        with safe_open(path, "pt") as shard:
            return [shard.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read: {error}; delete it, and the next run makes its features again"
        ) from error


@dataclass(frozen=True, slots=True)
class FeatureSample(Sample):
    """A sample whose `clip` is the features `(L, D)` of its frames.

    Attributes:
        frames: int32 `(L,)`, the place in time of each.
    """

    clip: Tensor
    frames: Tensor


@dataclass(frozen=True)
class FeatureReader:
    """Reads features where a `ClipReader` reads clips; labels and captions are those of the clips."""

    cache: FeatureCache
    clips: ClipReader

    def read(self, record: Record, keys: Sequence[SampleKey]) -> list[Sample]:
        """The features of a sample in the epoch of its keys. Raises DecodeError where the clip could not be read."""
        return [self._sample(self._rows(record, key), record, key) for key in keys]

    def _rows(self, record: Record, key: SampleKey) -> tuple[Tensor, Tensor]:
        rows = self.cache.read(key.index, key.epoch)
        if rows is None:
            where = self.cache.folder / QUARANTINE
            raise DecodeError(record.path, f"unreadable when its features were made, see {where}")
        return rows

    def blank(self, record: Record, keys: Sequence[SampleKey]) -> Sample:
        """One frame of zeros, in place of a batch of which nothing could be read."""
        cache = self.cache
        rows = torch.zeros(1, cache.embed_dim, dtype=cache.dtype), torch.zeros(1).int()
        return self._sample(rows, record, keys[0])

    def _sample(self, rows: tuple[Tensor, Tensor], record: Record, key: SampleKey) -> Sample:
        label, caption = self.clips.label_id(record), self.clips.caption(record, key)
        return FeatureSample(key, rows[0], label, caption, rows[1])

    def batch(self, samples: Sequence[Sample]) -> FrameFeatures:
        """The samples back to back, in memory of their own."""
        rows = [sample for sample in samples if isinstance(sample, FeatureSample)]
        lengths = tuple(len(sample.frames) for sample in rows)
        coordinates = torch.zeros(sum(lengths), 3, dtype=torch.int64)
        coordinates[:, 0] = torch.cat([sample.frames for sample in rows])
        return FrameFeatures(
            values=torch.cat([sample.clip for sample in rows]),
            lengths=lengths,
            cu_seqlens=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
            coordinates=coordinates,
            grid=self.cache.grid,
        )
