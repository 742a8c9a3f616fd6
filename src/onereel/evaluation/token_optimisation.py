"""Token optimisation (Flux, arXiv 2503.14237, section 3.1): one grid of frames and pixels under several budgets.

Decoded once, a grid's clips are classified under every budget, by the selector and by chance; then the budgets take
turns at being timed, by a clock that other processes don't move (`efficiency.own_clock`).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onereel.errors import DataError, DecodeError
from onereel.evaluation.budget_table import UNREAD, BudgetRow, Setting, percentile
from onereel.evaluation.efficiency import measure_inference, own_clock, seconds_in_turn
from onereel.evaluation.inference import BatchTransform, autocast, evaluating, view_probabilities
from onereel.evaluation.predict import video_probabilities
from onereel.evaluation.scores import ViewSums
from onereel.seeding import clip_generators
from onereel.types import SampleKey

if TYPE_CHECKING:
    from onereel.data.dataset import ClipDataset
    from onereel.data.loader import ClipLoader
    from onereel.models.video_model import VideoModel
    from onereel.tokens.selector import Selector
    from onereel.types import Batch

CLIP_REPEATS, WARMUP = 15, 2


@dataclass(frozen=True)
class Candidate:
    """A row to be measured.

    Attributes:
        selector: keeps `setting.token_budget` tokens of every clip.
        control: as many, at random; None where all are kept.
        num_tokens: of a clip before selection.
        macs_per_clip: as of `BudgetRow`.
    """

    setting: Setting
    selector: Selector
    control: Selector | None
    num_tokens: int
    macs_per_clip: int


@dataclass(frozen=True)
class Bench:
    """What every measurement of a search shares.

    Attributes:
        model: whose selector is replaced at will.
        augment: normalisation.
        num_views: views of each record.
    """

    model: VideoModel
    augment: BatchTransform
    num_views: int
    device: torch.device
    precision: str
    seed: int

    @contextmanager
    def under(self, selector: Selector) -> Iterator[VideoModel]:
        """The model with another selector."""
        before, self.model.selector = self.model.selector, selector
        try:
            yield self.model
        finally:
            self.model.selector = before

    def forward(self, selector: Selector, clips: Tensor) -> None:
        """One forward pass of normalised `clips`, selection included."""
        keys = [SampleKey(0, index) for index in range(len(clips))]
        with self.under(selector) as model, autocast(clips.device, self.precision):
            model(clips, generators=clip_generators(self.seed, keys))


def measure_grid(
    bench: Bench,
    candidates: Sequence[Candidate],
    loader: ClipLoader,
    videos: ClipDataset,
    timed: Sequence[int],
    num_records: int,
) -> list[BudgetRow]:
    """A row for each of `candidates`, which are of one grid; their accuracies are for `budget_table.score` to fill in.

    Args:
        loader: the list's views of that grid, in order; leaves out what cannot be read.
        videos: whole videos of that grid, as `onereel predict` reads them.
        timed: which of these to answer on the clock.
        num_records: length of the list.

    Raises DataError where nothing could be read.
    """
    marks, batch = classify(bench, candidates, loader, num_records)
    video_ms = time_videos(bench, candidates, videos, timed)
    clip_ms = time_clips(bench, candidates, batch[:1])
    rows = []
    for candidate, (correct, random_correct), of_video, of_clip in zip(
        candidates, marks, video_ms, clip_ms, strict=True
    ):
        with bench.under(candidate.selector) as model:
            speed = measure_inference(
                model,
                batch,
                precision=bench.precision,
                seed=bench.seed,
                repeats=3,
                clock=own_clock(bench.device),
            )
        rows.append(
            BudgetRow(
                *candidate.setting,
                num_tokens=candidate.num_tokens,
                accuracy=0.0,
                standard_error=0.0,
                random_accuracy=0.0,
                macs_per_clip=candidate.macs_per_clip,
                clip_ms=statistics.median(of_clip),
                clip_p95_ms=percentile(of_clip, 0.95),
                video_ms=statistics.median(of_video),
                video_p95_ms=percentile(of_video, 0.95),
                clips_per_second=speed.clips_per_second,
                peak_memory_bytes=speed.peak_memory_bytes,
                correct=correct,
                random_correct=random_correct,
            )
        )
    return rows


def classify(
    bench: Bench, candidates: Sequence[Candidate], loader: ClipLoader, num_records: int
) -> tuple[list[tuple[str, str]], Tensor]:
    """Per candidate the marks `correct` and `random_correct`, and the first full batch of normalised clips."""
    sums = [(ViewSums(), ViewSums()) for _ in candidates]
    largest: Tensor | None = None
    for batch in loader.batches(epoch=0):
        if not batch.num_clips:
            continue
        labels = batch.labels
        batch = bench.augment(batch, bench.device)
        assert isinstance(batch.clips, Tensor)  # these loaders leave selection to the model
        if largest is None or len(batch.clips) > len(largest):
            largest = batch.clips
        for candidate, (own, random) in zip(candidates, sums):
            own.add(batch.keys, _probabilities(bench, candidate.selector, batch), labels)
            if candidate.control is not None:
                random.add(batch.keys, _probabilities(bench, candidate.control, batch), labels)
    if largest is None:
        raise DataError("no video of the list could be read")
    marks = []
    for candidate, (own, random) in zip(candidates, sums):
        correct = _marks(own, bench.num_views, num_records)
        has_control = candidate.control is not None
        marks.append(
            (correct, _marks(random, bench.num_views, num_records) if has_control else correct)
        )
    return marks, largest


def _probabilities(bench: Bench, selector: Selector, batch: Batch) -> Tensor:
    with bench.under(selector) as model, evaluating(model):
        return view_probabilities(model, batch, precision=bench.precision, seed=bench.seed)[0]


def _marks(sums: ViewSums, num_views: int, num_records: int) -> str:
    """Per record 1 or 0, or UNREAD where a view of it lacks."""
    sums.drop_incomplete(num_views)
    scores = sums.mean(num_views)
    marks = [UNREAD] * num_records
    right = scores.probabilities.argmax(1) == scores.labels
    for index, is_right in zip(scores.indices.tolist(), right.tolist()):
        marks[index] = str(int(is_right))
    return "".join(marks)


def time_videos(
    bench: Bench, candidates: Sequence[Candidate], videos: ClipDataset, timed: Sequence[int]
) -> list[list[float]]:
    """Milliseconds of each candidate's answers to the videos `timed`, once each, after one that is not counted.

    A video that cannot be read whole is not counted for any candidate. Raises DataError where that leaves none.
    """
    found: list[list[float]] = [[] for _ in candidates]
    warmup = WARMUP
    for index in timed:
        steps = [partial(_answer, bench, candidate, videos, index) for candidate in candidates]
        try:
            videos.library.info(
                videos.annotations.record(index).path
            )  # the index has its own clock
            seconds = seconds_in_turn(steps, bench.device, 1, warmup, own_clock(bench.device))
        except (DecodeError, OSError):
            continue
        warmup = 0
        for own, (one,) in zip(found, seconds):
            own.append(1e3 * one)
    if not found[0]:
        raise DataError(
            "none of the list's videos could be read from its beginning to its end, as `onereel predict` does"
        )
    return found


def _answer(bench: Bench, candidate: Candidate, videos: ClipDataset, index: int) -> None:
    with bench.under(candidate.selector) as model:
        video_probabilities(
            model,
            videos,
            bench.augment,
            index,
            num_views=bench.num_views,
            device=bench.device,
            precision=bench.precision,
            seed=bench.seed,
        )


def time_clips(bench: Bench, candidates: Sequence[Candidate], clip: Tensor) -> list[list[float]]:
    """Milliseconds of each candidate's forward pass of one normalised `clip (1, T, C, H, W)`, selection included."""
    steps: list[Callable[[], None]] = [
        partial(bench.forward, candidate.selector, clip) for candidate in candidates
    ]
    with evaluating(bench.model):
        clock = own_clock(bench.device)
        seconds = seconds_in_turn(steps, bench.device, CLIP_REPEATS, WARMUP, clock)
    return [[1e3 * one for one in own] for own in seconds]
