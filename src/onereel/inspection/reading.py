"""Which clip of each video is read, and how it is scored: from options, and from a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from onereel.config import AugmentConfig, DataConfig, ModelConfig, TokensConfig
from onereel.data.cropping import center_box
from onereel.data.sampling import dense_frames, frame_span, segment_frames
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.inspection.options import ClipOptions
from onereel.loading import TrainedModel, load
from onereel.models.registry import SIZES
from onereel.report.inspect_page import ModelCost
from onereel.tokens.tubelets import tubelet_grid
from onereel.types import ClipSpec, TubeletGrid, VideoInfo

PATCH_SIZE = 16
SHOWN_MODELS = ("small", "base", "large")
CHOSEN_MODEL = "base"


@dataclass(frozen=True)
class ClipReading:
    """Which clip of each video is read, and how it is scored.

    Attributes:
        start: seconds at which the clip starts; None: so that it lies in the middle.
        sampling: "dense" or "segment", as in DataConfig.
        embed: patches `(1, N, P)` to the embeddings `(1, N, D)` that redundancy and group-dynamic compare.
        embedding, embed_note: whose embedding it is, in a few words and in a sentence.
        models: whose cost the page tells.
    """

    start: float | None
    num_frames: int
    sampling: str
    sampling_rate: int
    size: int
    tubelet_size: int
    patch_size: int
    grid: TubeletGrid
    augment: AugmentConfig
    embed: Callable[[Tensor], Tensor]
    embedding: str
    embed_note: str
    models: tuple[ModelCost, ...]

    def describe(self) -> str:
        """A sentence for people: which clip of each video is scored."""
        apart = "spread over it" if self.sampling == "segment" else f"{self.sampling_rate} apart"
        place = "the middle" if self.start is None else f"{self.start:g} s on"
        start = "" if self.sampling == "segment" else f", from {place}"
        return (
            f"One clip of each video: {self.num_frames} frames, {apart}{start}, {self.size} × {self.size} pixels; "
            f"threshold {TokensConfig.threshold:g}."
        )

    def spec(self, video: str, info: VideoInfo) -> ClipSpec:
        """The clip, in integers. Raises DecodeError where `start` lies behind the end or the frame is too small."""
        try:
            first, stop = frame_span(info, self.start)
            box = center_box(info.height, info.width)
        except DataError as error:
            raise DecodeError(video, str(error)) from error
        if self.sampling == "segment":
            frames = segment_frames(first, stop, self.num_frames)
        else:
            if self.start is not None:
                stop = min(stop, first + (self.num_frames - 1) * self.sampling_rate + 1)
            frames = dense_frames(first, stop, self.num_frames, self.sampling_rate)
        return ClipSpec(video, frames, box, (self.size, self.size))


def clip_reading(options: ClipOptions, run: str | Path = "") -> ClipReading:
    """Which clips are read and how they are scored: as `options` say, and where they don't, as the run did.

    Raises ConfigError where the tubelets don't cut the clip, or are not those of the run's model.
    """
    trained = load(run) if run else None
    data = trained.config.data if trained else DataConfig(sampling="dense")
    tubelet_size, patch_size = _tubelet(options, trained)
    num_frames, size = options.num_frames or data.num_frames, options.size or data.size
    dense = options.start is not None or options.sampling_rate is not None
    return ClipReading(
        start=options.start,
        num_frames=num_frames,
        sampling="dense" if dense else data.sampling,
        sampling_rate=options.sampling_rate or data.sampling_rate,
        size=size,
        tubelet_size=tubelet_size,
        patch_size=patch_size,
        grid=tubelet_grid(num_frames, size, size, tubelet_size, patch_size),
        augment=trained.config.augment if trained else AugmentConfig(),
        embed=trained.model.encoder.embed if trained else _identity,
        embedding="the run's embedding" if trained else "raw normalised pixels",
        embed_note=f"Redundancy and group-dynamic compare patches as embedded by the run {run}."
        if trained
        else "Redundancy and group-dynamic compare raw normalised patches here, since no run was given (--run RUN): "
        "a trained patch embedding ranks them differently.",
        models=_models(patch_size, trained),
    )


def _identity(patches: Tensor) -> Tensor:
    return patches


def _tubelet(options: ClipOptions, trained: TrainedModel | None) -> tuple[int, int]:
    """Frames and pixels per side of a tubelet."""
    if trained is None:
        return options.tubelet_size or ModelConfig.tubelet_size, options.patch_size or PATCH_SIZE
    encoder = trained.model.encoder
    for name, own in (("tubelet_size", encoder.tubelet_size), ("patch_size", encoder.patch_size)):
        if getattr(options, name) not in (None, own):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, but the run's model has {own}; leave it out"
            )
    return encoder.tubelet_size, encoder.patch_size


def _models(patch_size: int, trained: TrainedModel | None) -> tuple[ModelCost, ...]:
    """The usual sizes, and the run's own model, which is then the chosen one (not a factorised encoder, whose cost
    the page's formula isn't)."""
    if trained is not None and trained.model.encoder.temporal_depth:
        trained = None
    usual = tuple(
        ModelCost(
            f"ViT-{name[0].upper()}/{patch_size}",
            SIZES[name].embed_dim,
            SIZES[name].depth,
            chosen=trained is None and name == CHOSEN_MODEL,
        )
        for name in SHOWN_MODELS
    )
    if trained is None:
        return usual
    encoder = trained.model.encoder
    class_tokens = int(encoder.cls_token is not None)
    own = ModelCost(
        trained.config.model.name, encoder.embed_dim, encoder.depth, class_tokens, chosen=True
    )
    return (own, *usual)
