"""Which clip of each video is read, and how it is scored: from options, and from a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onereel.config import AugmentConfig, DataConfig, ModelConfig, TokensConfig
from onereel.data.cropping import center_box
from onereel.data.sampling import dense_frames, frame_span, segment_frames
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.fitting import encoder_of
from onereel.inspection.options import ClipOptions
from onereel.loading import Pretrained, TrainedDualEncoder, TrainedModel, load_trained
from onereel.models.dual_encoder import video_of
from onereel.models.registry import SIZES
from onereel.report.inspect_page import ModelCost
from onereel.tokens.selector import Selector
from onereel.tokens.tubelets import tubelet_grid
from onereel.types import ClipSpec, TubeletGrid, VideoInfo

PATCH_SIZE = 16
SHOWN_MODELS = ("small", "base", "large")
CHOSEN_MODEL = "base"
UNSEEN = ("kind", "where", "length_embedding", "frame_selection")
"""Settings of tokens that don't change which are kept of the frames shown."""

Trained = TrainedModel | Pretrained | TrainedDualEncoder


@dataclass(frozen=True)
class OwnSelection:
    """What a run keeps, its guards included.

    Attributes:
        settings: in words.
    """

    selector: Selector
    settings: str


@dataclass(frozen=True)
class ClipReading:
    """Which clip of each video is read, and how it is scored.

    Attributes:
        start: seconds at which the clip starts; None: so that it lies in the middle.
        sampling: "dense" or "segment", as in DataConfig.
        embed: patches `(1, N, P)` to the embeddings `(1, N, D)` that redundancy and group-dynamic compare.
        embedding, embed_note: whose embedding it is, in a few words and in a sentence.
        models: whose cost the page tells.
        threshold: of run-length, to begin with.
        own: what the run selects, with which the page begins; None: there is no run.
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
    threshold: float = TokensConfig.threshold
    own: OwnSelection | None = None

    def describe(self) -> str:
        """A sentence for people: which clip of each video is scored."""
        apart = "spread over it" if self.sampling == "segment" else f"{self.sampling_rate} apart"
        place = "the middle" if self.start is None else f"{self.start:g} s on"
        start = "" if self.sampling == "segment" else f", from {place}"
        kept = self.own.settings if self.own else f"threshold {self.threshold:g}"
        return (
            f"One clip of each video: {self.num_frames} frames, {apart}{start}, {self.size} × {self.size} pixels; "
            f"{kept}."
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
    trained = load_trained(run) if run else None
    tokens = trained.config.tokens if trained else TokensConfig()
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
        models=_models(patch_size, trained),
        threshold=tokens.threshold if tokens.kind == "run-length" else TokensConfig.threshold,
        own=_own(trained) if trained else None,
        **_embedding(run, trained),
    )


def _own(trained: Trained) -> OwnSelection:
    model, tokens = trained.model, trained.config.tokens
    selector = video_of(model).selector
    off = asdict(TokensConfig())
    changed = [
        f"{name} {value}"
        for name, value in asdict(tokens).items()
        if name not in UNSEEN and value != off[name]
    ]
    if tokens.frame_selection > 1:
        changed.append("without its frame selection, which chooses among more frames")
    return OwnSelection(selector, ", ".join([f"tokens.kind {tokens.kind}", *changed]))


def _embedding(run: str | Path, trained: Trained | None) -> dict[str, Any]:
    """What patches are compared by, and what is said of it."""
    if trained is not None and not trained.config.model.backbone:
        return {
            "embed": encoder_of(trained.model).embed,
            "embedding": "the run's embedding",
            "embed_note": f"Redundancy and group-dynamic compare patches as embedded by the run {run}.",
        }
    why = (
        "since the run's image model sees whole frames"
        if trained
        else "since no run was given (--run RUN)"
    )
    return {
        "embed": _identity,
        "embedding": "raw normalised pixels",
        "embed_note": f"Redundancy and group-dynamic compare raw normalised patches here, {why}: "
        "a trained patch embedding ranks them differently.",
    }


def _identity(patches: Tensor) -> Tensor:
    return patches


def _tubelet(options: ClipOptions, trained: Trained | None) -> tuple[int, int]:
    """Frames and pixels per side of a tubelet."""
    if trained is None:
        return options.tubelet_size or ModelConfig.tubelet_size, options.patch_size or PATCH_SIZE
    encoder = encoder_of(trained.model)
    for name, own in (("tubelet_size", encoder.tubelet_size), ("patch_size", encoder.patch_size)):
        if getattr(options, name) not in (None, own):
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(options, name)}, but the run's model has {own}; leave it out"
            )
    return encoder.tubelet_size, encoder.patch_size


def _models(patch_size: int, trained: Trained | None) -> tuple[ModelCost, ...]:
    """The usual sizes, and the run's own model, which is then the chosen one (not a factorised encoder, whose cost
    the page's formula isn't)."""
    if trained is not None and encoder_of(trained.model).temporal_depth:
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
    encoder = encoder_of(trained.model)
    class_tokens = int(encoder.cls_token is not None)
    own = ModelCost(
        trained.config.model.name, encoder.embed_dim, encoder.depth, class_tokens, chosen=True
    )
    return (own, *usual)
