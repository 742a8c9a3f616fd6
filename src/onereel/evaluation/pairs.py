"""What a dual encoder retrieves from a list, and the embeddings of the list's clips and texts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from onereel.evaluation.embedding import embed_videos
from onereel.evaluation.inference import BatchTransform, autocast, evaluating
from onereel.evaluation.ranks import gather
from onereel.evaluation.retrieval import CaptionRetrieval
from onereel.evaluation.text_tasks import Figures, task_texts, text_figures
from onereel.files import write_atomically
from onereel.seeding import clip_generators
from onereel.types import Batch, YuvClips

if TYPE_CHECKING:
    from onereel.data.annotations import Annotations
    from onereel.data.loader import ClipLoader
    from onereel.models.dual_encoder import DualEncoder

TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Cost:
    """What embedding a list's clips took.

    Attributes:
        seconds: wall clock of the slowest rank.
        clips_per_second: views per second and device.
        kept_ratio: kept tokens over all tokens, mean over views.
        macs_per_view: exact multiply-adds of the video tower, mean over views.
    """

    seconds: float
    clips_per_second: float
    kept_ratio: float
    macs_per_view: float


@dataclass(frozen=True)
class PairResult:
    """What one evaluation found.

    Attributes:
        found: by what the list asks: recall, graded mAP and nDCG, multiple choice, or zero-shot accuracy.
        num_videos: records of the list.
        num_texts: captions, sentences, questions or prompts.
        num_views: clips x crops per record, whose embeddings are averaged.
    """

    found: Figures
    num_videos: int
    num_texts: int
    num_views: int
    cost: Cost

    def __str__(self) -> str:
        return (
            f"{self.found}\n{self.num_videos} clips, {self.num_texts} texts, {self.num_views} views per clip\n"
            f"{2 * self.cost.macs_per_view / 1e9:.4g} GFLOPs × {self.num_views} views per clip (2 × MACs), "
            f"{self.cost.kept_ratio:.1%} of the tokens kept\n"
            f"{self.cost.clips_per_second:.4g} clips/s per device, {self.cost.seconds:.1f} s"
        )

    def figures(self) -> dict[str, float]:
        """The numbers of a log line; of a caption set `top1` and `top5` are recall from text to video."""
        values: dict[str, float] = {}
        if isinstance(self.found, CaptionRetrieval):
            ways = {"": self.found.text_to_video, "video_to_text_": self.found.video_to_text}
            for way, one in ways.items():
                values |= {f"{way}top{k}": share for k, share in one.recall.items()}
                values[f"{way}median_rank"] = one.median_rank
        else:
            values |= {k: float(v) for k, v in self.found.to_dict().items() if k != "num_videos"}
        names = ("kept_ratio", "clips_per_second", "seconds")
        return values | {name: getattr(self.cost, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = {name: getattr(self, name) for name in ("num_videos", "num_texts", "num_views")}
        details = {"details": self.found.to_dict()}
        values = {**self.figures(), **counts, **dataclasses.asdict(self.cost), **details}
        return json.loads(json.dumps(values))

    def save(self, path: str | Path, settings: dict[str, Any] | None = None) -> None:
        """Write the JSON file whole or not at all, with the `settings` that it was made under; its folder is made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**self.to_dict(), "settings": settings or {}}) + "\n")


def evaluate_pairs(
    model: DualEncoder,
    loader: ClipLoader,
    augment: BatchTransform,
    annotations: Annotations,
    *,
    device: torch.device,
    num_views: int = 1,
    precision: str = "auto",
    seed: int = 0,
    templates: Sequence[str] = (),
    on_batch: Callable[[int, int], None] | None = None,
) -> PairResult:
    """The figures that the list asks for (`text_figures`); other arguments, and errors, as `embed_clips`.

    Args:
        templates: prompts of a zero-shot test (see `prompts`).
    """
    videos, cost = embed_clips(
        model,
        loader,
        augment,
        device=device,
        num_views=num_views,
        precision=precision,
        seed=seed,
        on_batch=on_batch,
    )
    texts = task_texts(annotations, templates)
    embedded = embed_texts(model, texts, precision=precision)
    found = text_figures(annotations, videos, embedded, templates)
    return PairResult(found, len(videos), len(texts), num_views, cost)


def embed_clips(
    model: DualEncoder,
    loader: ClipLoader,
    augment: BatchTransform,
    *,
    device: torch.device,
    num_views: int = 1,
    precision: str = "auto",
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Cost]:
    """float32 `(V, E)` of unit length on the CPU, one row per record of the loader's list, and what they took.

    Args:
        loader: strict, in order, nothing dropped.
        augment: normalisation only.
        num_views: views per record, which are averaged.
        seed: for selectors that draw which tokens they keep.
        on_batch: called with (batches done, batches of this rank).

    Raises:
        OnereelError: a sample cannot be read or an embedding is not finite, on whichever rank.
    """
    counts = torch.zeros(4, dtype=torch.float64)  # views, tokens, tokens were all kept, MACs

    def encode(batch: Batch) -> Tensor:
        batch = augment(batch, device)
        assert not isinstance(batch.clips, YuvClips)  # augmentation has made pictures of them
        with autocast(device, precision):
            generators = clip_generators(seed, batch.keys)
            features, output = model.encode_video(batch.clips, batch.scoring_clips, generators)
        num_clips, num_tokens = len(output.lengths), sum(output.lengths)
        num_dense, macs = (
            output.num_dense_tokens * num_clips,
            model.video.macs(output.lengths, output.grid),
        )
        counts.add_(torch.tensor([num_clips, num_tokens, num_dense, macs], dtype=torch.float64))
        return features

    start = time.perf_counter()
    with evaluating(model):
        videos = embed_videos(encode, loader, num_views=num_views, on_batch=on_batch)
    shares = gather((counts, time.perf_counter() - start))
    num_clips, num_tokens, num_dense, macs = (
        torch.stack([share for share, _ in shares]).sum(0).tolist()
    )
    seconds = max(time for _, time in shares)
    speed = num_clips / max(seconds, 1e-9) / (dist.get_world_size() if dist.is_initialized() else 1)
    return videos, Cost(seconds, speed, num_tokens / num_dense, macs / num_clips)


def embed_texts(model: DualEncoder, texts: Sequence[str], *, precision: str = "auto") -> Tensor:
    """float32 `(T, E)` of unit length on the CPU."""
    parts = []
    with evaluating(model), autocast(next(model.parameters()).device, precision):
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            parts.append(model.encode_text(texts[first : first + TEXTS_AT_ONCE]).cpu())
    return torch.cat(parts)
