"""Class probabilities for videos nobody has labelled, one video at a time."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onereel.config import AugmentConfig
from onereel.data.annotations import Annotations, Record
from onereel.data.augment import BatchAugment
from onereel.data.dataset import ClipDataset, ClipReader
from onereel.data.workers import main_hidden_from, received, worker_options
from onereel.data.yuv import stacked
from onereel.errors import ConfigError, DecodeError
from onereel.evaluation.classification import top_predictions
from onereel.evaluation.efficiency import own_clock
from onereel.evaluation.inference import BatchTransform, evaluating, view_probabilities
from onereel.evaluation.scores import ViewSums
from onereel.files import write_atomically
from onereel.types import Batch, Prediction, Quarantined, SampleKey

if TYPE_CHECKING:
    from onereel.models.video_model import VideoModel
    from onereel.video.library import VideoLibrary

Answer = Prediction | Quarantined
Job = tuple[Record, list[SampleKey]]
"""A video and the views of it that are averaged."""
READ_AHEAD = 2
"""Videos that each worker has ready."""
TIMES = ("index_ms", "answer_ms", "wall_ms")


def predict(
    model: VideoModel,
    library: VideoLibrary,
    videos: Sequence[str],
    *,
    class_names: Sequence[str],
    num_frames: int,
    size: int,
    sampling: str = "segment",
    sampling_rate: int = 4,
    num_clips: int = 1,
    num_crops: int = 1,
    top_k: int = 5,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    augment: AugmentConfig | None = None,
    batch_size: int = 8,
    seed: int = 0,
    num_workers: int = 0,
    timed: bool = False,
) -> Iterator[Answer]:
    """The answers of `iter_predictions` for `videos`, in their order.

    Args:
        library: where the names in `videos` are looked up.
        num_frames, size, sampling, sampling_rate: as the model was trained.
        num_clips, num_crops: views per video, whose probabilities are averaged.
        augment: of which only mean and std are used; default: ImageNet's.
    """
    dataset = ClipDataset(
        Annotations.of_videos(videos),
        library,
        num_frames=num_frames,
        sampling=sampling,
        sampling_rate=sampling_rate,
        size=size,
        crop="center",
        seed=seed,
        training=False,
        label_names=None,
        num_clips=num_clips,
        num_crops=num_crops,
    )
    return iter_predictions(
        model,
        dataset,
        BatchAugment(augment or AugmentConfig(), None, seed, training=False),
        class_names=class_names,
        top_k=top_k,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        num_workers=num_workers,
        timed=timed,
    )


def iter_predictions(
    model: VideoModel,
    dataset: ClipDataset,
    augment: BatchTransform,
    *,
    class_names: Sequence[str],
    top_k: int = 5,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
    num_workers: int = 0,
    timed: bool = False,
) -> Iterator[Answer]:
    """One answer per record of `dataset`, as soon as it is known; memory holds the views of one video, or of two for
    each worker.

    A video that cannot be read in one of its views is answered with Quarantined, which names the reason, and the
    others go on: part of the views would be another, silently worse, test.

    Args:
        num_workers: processes that read ahead; the answers are the same with any.
        timed: say in each answer how long it took, without workers; the first video is answered twice, since the first
            forward pass and the first decode of a process take longer.
    """
    jobs = [
        (dataset.annotations.record(index), views_of(index, dataset.num_views))
        for index in range(len(dataset))
    ]
    probabilities = partial(
        mean_probabilities,
        model,
        augment,
        device=torch.device(device),
        precision=precision,
        batch_size=batch_size,
        seed=seed,
    )

    def answer(read: Batch | Quarantined) -> Answer:
        if isinstance(read, Quarantined):
            return read
        path = jobs[read.keys[0].index][0].path
        return top_predictions(path, probabilities(read), class_names, top_k)

    reader = _VideoReader(dataset.reader)
    if timed:
        clock = own_clock(torch.device(device))
        return _timed(jobs, dataset.library, lambda job: answer(reader[job]), clock)
    return map(answer, _reads(reader, jobs, num_workers))


def _timed(
    jobs: Iterable[Job],
    library: VideoLibrary,
    reply: Callable[[Job], Answer],
    clock: Callable[[], float],
) -> Iterator[Answer]:
    warm = False
    for job in jobs:
        start = _now(clock)
        with suppress(DecodeError, OSError):  # what is wrong is said when it is read
            library.info(job[0].path)
        indexed = _now(clock)
        warm = warm or isinstance(reply(job), Prediction)
        began = _now(clock)
        answer = reply(job)
        answered = _now(clock)
        if isinstance(answer, Prediction):
            index_ms, wall = (indexed - start).tolist()
            answer_ms, more = (answered - began).tolist()
            answer = replace(answer, index_ms=index_ms, answer_ms=answer_ms, wall_ms=wall + more)
        yield answer


def _now(clock: Callable[[], float]) -> np.ndarray:
    """Milliseconds by `clock` and by the wall clock."""
    return 1e3 * np.array([clock(), time.perf_counter()])


class _VideoReader(Dataset):
    """All views of a video as a batch, or why there is none; in a worker or here."""

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader

    def __getitem__(self, job: Job) -> Batch | Quarantined:
        record, keys = job
        try:
            return _read(self.reader, record, keys)
        except DecodeError as error:
            return Quarantined(record.path, error.reason, error.frame, where="predict")
        except OSError as error:
            return Quarantined(record.path, error.strerror or str(error), where="predict")


def _reads(
    reader: _VideoReader, jobs: list[Job], num_workers: int
) -> Iterator[Batch | Quarantined]:
    """What `reader` makes of `jobs`, in their order. Raises DataError where a worker was killed."""
    if not num_workers:
        yield from map(reader.__getitem__, jobs)
        return
    library = reader.reader.library
    # Strange to typing: a job is no index.
    sampler: Any = jobs
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=sampler,
        collate_fn=_unchanged,
        **worker_options(num_workers, READ_AHEAD, library),
    )
    with main_hidden_from(library):
        stream = iter(loader)
    for _ in jobs:
        yield received(stream, "read in fewer processes, or in none: --num-workers 0")


def _unchanged(read: Any) -> Any:
    return read


def views_of(index: int, num_views: int) -> list[SampleKey]:
    """The keys of all views of record `index`."""
    return [SampleKey(0, index, view) for view in range(num_views)]


def video_probabilities(
    model: VideoModel,
    dataset: ClipDataset,
    augment: BatchTransform,
    index: int,
    *,
    num_views: int,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
) -> Tensor:
    """float32 `(K,)` on the host: the mean over the views of record `index`. Raises DecodeError, or OSError."""
    batch = _read(dataset.reader, dataset.annotations.record(index), views_of(index, num_views))
    return mean_probabilities(
        model,
        augment,
        batch,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
    )


def _read(reader: ClipReader, record: Record, keys: list[SampleKey]) -> Batch:
    clips = stacked([sample.clip for sample in reader.read(record, keys)])
    return Batch(clips=clips, keys=keys, num_clips=len(keys))


def mean_probabilities(
    model: VideoModel,
    augment: BatchTransform,
    batch: Batch,
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    seed: int,
) -> Tensor:
    """float32 `(K,)` on the host: the mean over the views of a video, `batch_size` of which the model sees at once."""
    assert isinstance(batch.clips, Tensor)  # as the loader scales them
    sums = ViewSums()
    for first in range(0, len(batch.keys), batch_size):
        keys = batch.keys[first : first + batch_size]
        part = Batch(clips=batch.clips[first : first + batch_size], keys=keys, num_clips=len(keys))
        with evaluating(model):
            probabilities, _ = view_probabilities(
                model, augment(part, device), precision=precision, seed=seed
            )
        sums.add(keys, probabilities)
    return sums.mean(len(batch.keys)).probabilities[0]


def exit_code(answers: Iterable[Answer]) -> int:
    """0 when every video was answered, 1 when at least one could not be read."""
    return int(any(isinstance(answer, Quarantined) for answer in answers))


def check_predictions_path(path: str | Path) -> Path:
    """`path`, or ConfigError where predictions cannot be written in its format: to be asked before they are made."""
    path = Path(path)
    if path.suffix.lower() not in (".json", ".csv"):
        raise ConfigError(f"{path}: predictions are written as .json or .csv, not {path.suffix!r}")
    return path


def write_predictions(answers: Sequence[Answer], path: str | Path) -> None:
    """Write answers to a `.json` or `.csv` file, one entry or row per video, with an `error` where there is one.

    Raises ConfigError for another suffix, before anything is written.
    """
    path = Path(path)
    rows = [_row(answer) for answer in answers]
    is_json = check_predictions_path(path).suffix.lower() == ".json"
    text = json.dumps(rows, indent=2) + "\n" if is_json else _csv_text(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _row(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Quarantined):
        return {
            "video": answer.path,
            "labels": [],
            "probabilities": [],
            "error": answer.reason
            if answer.frame is None
            else f"frame {answer.frame}: {answer.reason}",
        }
    row: dict[str, Any] = {
        "video": answer.video,
        "labels": list(answer.labels),
        "probabilities": list(answer.probabilities),
        "error": None,
    }
    if answer.answer_ms is not None:
        row |= {name: getattr(answer, name) for name in TIMES}
    return row


def _csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Columns video, label_1, probability_1, label_2, ..., [index_ms, ...,] error."""
    times = [name for name in TIMES if any(name in row for row in rows)]
    ranks = range(1, 1 + max((len(row["labels"]) for row in rows), default=0))
    columns = ["video"]
    columns += [name for rank in ranks for name in (f"label_{rank}", f"probability_{rank}")]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*columns, *times, "error"], restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {"video": row["video"], "error": row["error"] or ""}
        cells |= {name: f"{row[name]:.1f}" for name in times if name in row}
        for rank, label, probability in zip(ranks, row["labels"], row["probabilities"]):
            cells |= {f"label_{rank}": label, f"probability_{rank}": f"{probability:.6g}"}
        writer.writerow(cells)
    return out.getvalue()
