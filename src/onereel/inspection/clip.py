"""One clip of a video, with the scores and rankings from which its page replays the selectors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from onereel.config import AugmentConfig
from onereel.inspection.reading import ClipReading
from onereel.report.inspect_page import InspectedClip, OwnChoice
from onereel.report.text import printable
from onereel.seeding import clip_generators
from onereel.tokens.budgets import count_tokens
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.pixels import patch_difference
from onereel.tokens.redundancy import KEEP_RATIO as REDUNDANCY_RATIO
from onereel.tokens.redundancy import redundancy
from onereel.tokens.scored import random_tokens
from onereel.tokens.scores import pixel_difference, random_scores
from onereel.tokens.tubelets import patchify
from onereel.types import ClipSpec, SampleKey, TubeletGrid, VideoInfo

if TYPE_CHECKING:
    from onereel.video.library import VideoLibrary

SHOWN_SCALE = 2
"""The page shows a clip up to this many times finer than it is scored, where the video is that fine."""
SLOWEST_SECONDS = 0.5
"""Frames that lie further apart are shown this long, not in real time."""


@torch.no_grad()
def inspect_clip(library: VideoLibrary, video: str, reading: ClipReading) -> InspectedClip:
    """The clip of `video` and what every selector decides by. Raises DecodeError."""
    info = library.info(video)
    spec = reading.spec(video, info)
    clip = library.read(spec)
    seconds = _seconds(info, spec.frame_indices)
    apart = (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)
    normalised = _normalise(clip[None], reading.augment)
    grid = reading.grid
    embeddings = reading.embed(patchify(normalised, reading.tubelet_size, reading.patch_size))
    rankings, scores = _rankings(normalised, embeddings, grid)
    return InspectedClip(
        name=printable(video),
        frames=_shown_frames(library, spec, clip, grid.gw),
        seconds=[round(second, 3) for second in seconds],
        seconds_per_frame=min(max(apart, 1 / info.fps), SLOWEST_SECONDS),
        grid=grid,
        tubelet_size=reading.tubelet_size,
        patch_size=reading.patch_size,
        adjacent=pixel_difference(normalised, reading.tubelet_size, reading.patch_size)[0],
        anchored=head_differences(normalised, reading.tubelet_size, reading.patch_size)[0],
        rankings=rankings,
        scores=scores,
        embedders=tuple(scores),
        embedding=reading.embedding,
        threshold=reading.threshold,
        own=_own_choice(normalised, embeddings, reading),
        published={"redundancy": count_tokens(REDUNDANCY_RATIO, grid.num_tokens)},
        grey_levels=255 * float(np.mean(reading.augment.std)),
        models=reading.models,
        notes=_notes(info, spec, seconds, reading),
    )


def head_differences(clips: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """Run-length's difference of every tubelet k to every head j < k: float32 `(B, gt (gt - 1) / 2, gh, gw)`.

    Row `k (k - 1) / 2 + j`; `clips` are normalised `(B, T, C, H, W)`. An anchored run can be replayed from them for any
    threshold.
    """
    first, last = clips[:, ::tubelet_size], clips[:, tubelet_size - 1 :: tubelet_size]
    rows = [
        patch_difference(last[:, k : k + 1], first[:, j : j + 1], patch_size)
        for k in range(first.shape[1])
        for j in range(k)
    ]
    if not rows:
        return pixel_difference(clips, tubelet_size, patch_size)
    return torch.cat(rows, dim=1)


def _own_choice(clips: Tensor, embeddings: Tensor, reading: ClipReading) -> OwnChoice | None:
    """What the run's own selector keeps of the clip. Raises ConfigError where its budget doesn't fit it."""
    if reading.own is None:
        return None
    selector = reading.own.selector
    mask = selector.select(clips, embeddings, reading.grid, draw()).keep_mask[0]
    return OwnChoice(mask, reading.own.settings, selector.needs_embeddings)


def _rankings(
    clips: Tensor, embeddings: Tensor, grid: TubeletGrid
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rankings and scores of the budgeted selectors; any budget keeps the first of a ranking."""
    scored = {"redundancy": redundancy(), "group-dynamic": group_dynamic()}
    rankings = {key: s.rank(clips, embeddings, grid, None)[0] for key, s in scored.items()}
    scores = {key: s.scores(clips, embeddings, grid, None)[0] for key, s in scored.items()}
    rankings["random"] = random_tokens().rank(clips, None, grid, draw())[0]
    places = random_scores(grid.gh * grid.gw, 1, draw())
    rankings["tube"] = places.argsort(dim=1, descending=True)[0]
    return rankings, scores


def draw() -> list[torch.Generator]:
    """The generator of the page's one draw."""
    return clip_generators(0, [SampleKey(0, 0)])


def _normalise(clips: Tensor, augment: AugmentConfig) -> Tensor:
    """float32 of uint8 `(B, T, C, H, W)`: exactly what the model is given."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.mean, augment.std))
    return clips.float().div_(255).sub_(mean).div_(std)


def _shown_frames(library: VideoLibrary, spec: ClipSpec, clip: Tensor, patches: int) -> Tensor:
    """The clip as the page shows it: finer, as far as the crop has the pixels; uint8 `(T, 3, h, w)`.

    Args:
        patches: patches side by side, each of which gets an even number of pixels.
    """
    side = min(SHOWN_SCALE * spec.size[0], spec.crop.height) // (2 * patches) * (2 * patches)
    if side <= spec.size[0]:
        return clip
    return library.read(replace(spec, size=(side, side)))


def _seconds(info: VideoInfo, frames: tuple[int, ...]) -> list[float]:
    if info.frame_times is not None:
        return [float(info.frame_times[frame]) for frame in frames]
    return [frame / info.fps for frame in frames]


def _notes(
    info: VideoInfo, spec: ClipSpec, seconds: list[float], reading: ClipReading
) -> list[str]:
    """What the page says of the clip and of how it was scored."""
    notes = [
        f"{info.width} × {info.height} pixels, {info.fps:.3g} frames per second, {info.duration_seconds:.1f} s. Shown: "
        f"{reading.num_frames} frames from {seconds[0]:.2f} to {seconds[-1]:.2f} s, the central square, "
        f"scored at {reading.size} × {reading.size} pixels as the model sees it.",
        "Run-length compares the mean absolute difference of normalised pixels with the threshold; "
        "the first tubelet of every place is kept.",
        reading.embed_note,
        "Random and tube show one draw of many.",
        "Compute is the multiply-adds (MACs) of the matrix products of one forward without its head: "
        "12 n d² + 2 n² d per block for n tokens of width d, and the patch embedding (of all patches, where selection "
        "needs it). GFLOPs are 2 × MACs. "
        "The speed-up is the ratio of MACs: the most that a device can gain.",
    ]
    if len(set(spec.frame_indices)) < len(spec.frame_indices):
        notes.insert(
            1,
            "The video is shorter than the clip, so that its last frame repeats, and repeats bring nothing new.",
        )
    return notes
