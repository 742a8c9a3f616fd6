"""One page per clip on which a person sees what every selector keeps; self-contained, and asks nothing of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from onereel.report.pictures import base64_array, frame_picture, jpeg_uri
from onereel.report.templates import environment
from onereel.types import TubeletGrid

if TYPE_CHECKING:
    from torch import Tensor

FRAME_QUALITY = 80
RLT = "RLT, arXiv 2411.05222"
EVEREST = "EVEREST, arXiv 2211.10636"
FLUX = "FluxViT, arXiv 2503.14237"


class SelectorText(NamedTuple):
    """A selector as the page names and explains it.

    Attributes:
        unit: what its slider sets: "threshold", "tokens", "places" (kept at all times), or "none".
    """

    key: str
    label: str
    unit: str
    rule: str
    source: str = ""


SELECTORS = (
    SelectorText(
        "adjacent",
        "Run-length",
        "threshold",
        "A patch is dropped where it differs from the tubelet before by no more than the threshold. "
        "The kept one stands for the whole run.",
        RLT,
    ),
    SelectorText(
        "anchored",
        "Run-length, anchored",
        "threshold",
        "As run-length, but every patch is compared with the head of its run, so that a slow drift is noticed.",
        "",
    ),
    SelectorText(
        "redundancy",
        "Redundancy",
        "tokens",
        "Patches are ranked by how far their embedding moved since the tubelet before; "
        "the budget keeps the first of the ranking.",
        EVEREST,
    ),
    SelectorText(
        "group-dynamic",
        "Group-dynamic",
        "tokens",
        "As redundancy, but each part of the clip gets its share of the budget, so that no burst takes it all.",
        FLUX,
    ),
    SelectorText(
        "random",
        "Random",
        "tokens",
        "Patches by chance: what a selector has to beat at the same budget.",
    ),
    SelectorText(
        "tube", "Tube", "places", "Places by chance, kept at all times: the other control."
    ),
    SelectorText("all", "All", "none", "Every patch: the dense model."),
)


PUBLISHED_THRESHOLD = 0.1
"""RLT, section 3."""


@dataclass(frozen=True)
class OwnChoice:
    """What the selector of a run keeps.

    Attributes:
        keep_mask: bool `(N,)`.
        settings: in words.
        needs_embeddings: whether it embeds all patches before it chooses.
    """

    keep_mask: Tensor
    settings: str
    needs_embeddings: bool


@dataclass(frozen=True)
class ModelCost:
    """What the formula of `VisionTransformer.macs` needs to know of a model.

    Attributes:
        extra_tokens: class tokens per clip.
    """

    name: str
    embed_dim: int
    depth: int
    extra_tokens: int = 0
    chosen: bool = False


@dataclass(frozen=True)
class InspectedClip:
    """A clip with everything that the selectors decide by.

    Attributes:
        name: of the video.
        frames: uint8 `(T, 3, height, width)` RGB as shown; may be finer than the clip that was scored.
        seconds: time of each frame in the video.
        seconds_per_frame: how long each is shown.
        grid: of the clip.
        adjacent: float32 `(gt - 1, gh, gw)`, run-length's difference of each tubelet to the one before.
        anchored: float32 `(gt * (gt - 1) / 2, gh, gw)`: row `k * (k - 1) / 2 + j` is tubelet k against head j < k.
        rankings: int64 `(N,)` tokens by falling score, or `(gh * gw,)` places for "tube", by selector.
        scores: float32 `(N,)` of the selectors that have any.
        embedders: selectors that embed all patches before they choose.
        embedding: what they compare, in a few words.
        threshold: of run-length, to begin with.
        own: what the run keeps, with which the page begins; None: there is no run.
        published: budgets in tokens that papers name, by selector.
        grey_levels: how many of 255 a threshold of 1 is, on average over the colours.
        models: whose cost can be asked for.
        notes: sentences on what is shown.
    """

    name: str
    frames: Tensor
    seconds: Sequence[float]
    seconds_per_frame: float
    grid: TubeletGrid
    tubelet_size: int
    patch_size: int
    adjacent: Tensor
    anchored: Tensor
    rankings: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    embedders: Sequence[str]
    embedding: str
    threshold: float
    published: Mapping[str, int]
    grey_levels: float
    models: Sequence[ModelCost]
    notes: Sequence[str]
    own: OwnChoice | None = None

    @property
    def selectors(self) -> tuple[SelectorText, ...]:
        """Those of the page, that to begin with first."""
        if self.own is None:
            return SELECTORS
        rule = f"What the run keeps, with all its settings: {self.own.settings}."
        return (SelectorText("own", "The run's own", "none", rule), *SELECTORS)

    @property
    def patch_values(self) -> int:
        return self.frames.shape[1] * self.tubelet_size * self.patch_size**2


def render_page(clip: InspectedClip, index: str = "") -> str:
    """The page as text.

    Args:
        index: relative address of the page that leads to this one; empty: there is none.
    """
    frames = f" and {clip.tubelet_size} frames" if clip.tubelet_size > 1 else ""
    return (
        environment()
        .get_template("inspect_page.html.jinja")
        .render(
            name=clip.name,
            index=index,
            patch=f"{clip.patch_size} × {clip.patch_size} pixels{frames} each",
            num_frames=len(clip.frames),
            num_tokens=clip.grid.num_tokens,
            selectors=clip.selectors,
            models=clip.models,
            notes=clip.notes,
            data=_data(clip),
        )
    )


def _data(clip: InspectedClip) -> dict[str, Any]:
    """What the page's script reads."""
    return {
        "grid": list(clip.grid),
        "tubeletSize": clip.tubelet_size,
        "patchValues": clip.patch_values,
        "threshold": clip.threshold,
        "greyLevels": clip.grey_levels,
        "secondsPerFrame": clip.seconds_per_frame,
        "seconds": list(clip.seconds),
        "selectors": [_selector(clip, text) for text in clip.selectors],
        "models": [
            {
                "name": model.name,
                "embedDim": model.embed_dim,
                "depth": model.depth,
                "extraTokens": model.extra_tokens,
                "chosen": model.chosen,
            }
            for model in clip.models
        ],
        "own": base64_array(clip.own.keep_mask.byte()) if clip.own else None,
        "adjacent": base64_array(clip.adjacent.float()),
        "anchored": base64_array(clip.anchored.float()),
        "rankings": {key: base64_array(order.int()) for key, order in clip.rankings.items()},
        "scores": {key: base64_array(scores.float()) for key, scores in clip.scores.items()},
        "frames": [jpeg_uri(frame_picture(frame), FRAME_QUALITY) for frame in clip.frames],
    }


def _selector(clip: InspectedClip, text: SelectorText) -> dict[str, Any]:
    published = None
    if text.key in clip.published:
        tokens = clip.published[text.key]
        published = {"value": tokens, "label": f"Published: {tokens:,} tokens"}
    elif text.unit == "threshold" and text.source:
        published = {"value": PUBLISHED_THRESHOLD, "label": f"Published: {PUBLISHED_THRESHOLD:g}"}
    embeds = text.key in clip.embedders
    if clip.own is not None and text.key == "own":
        embeds = clip.own.needs_embeddings
    return {
        "key": text.key,
        "unit": text.unit,
        "rule": text.rule,
        "source": f"{text.source}; here: {clip.embedding}"
        if embeds and text.source
        else text.source,
        "published": published,
        "needsEmbeddings": embeds,
    }
