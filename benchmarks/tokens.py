"""Whether dropped tokens are saved time: ViT-B/16 on real clips of 16x224x224 at five kept shares.

Forward, and training step (forward, backward, AdamW), with mask and gather inside the clock; the mask's own time is
taken within the forward. Dense and random selection run on the same attention. A batch holds as many clips as fill it
with the tokens of one dense batch, so that every share works at the same size of matrix. "exact" keeps that share of
each clip by RLT's difference; "ragged" that share of the whole batch, each clip as much as it moves; the bound is the
ratio of multiply-adds. The last rows read static-camera clips with RLT as published: threshold 0.1, no training. Times
are CPU time of one thread, or wall clock with --device cuda.

    python benchmarks/tokens.py --size full --device cuda
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from common import Claim, arguments, clock_of, real_videos, report
from onereel.build import build_selector
from onereel.config import AugmentConfig, TokensConfig
from onereel.data.cropping import center_box
from onereel.data.sampling import dense_frames
from onereel.evaluation.efficiency import synchronize
from onereel.evaluation.inference import autocast
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.seeding import clip_generators
from onereel.tokens.selector import KeepAll, Selector
from onereel.types import ClipSpec, SampleKey, TokenSelection, TubeletGrid
from onereel.video.library import open_library

NUM_FRAMES, SAMPLING_RATE, SIZE, TUBELET, PATCH = 16, 4, 224, 2, 16
SHARES = (0.75, 0.5, 0.25, 0.1)
DENSE_BATCH = {"cpu": 1, "cuda": 32}
REPEATS = {"cpu": {"small": 2, "full": 7}, "cuda": {"small": 10, "full": 30}}
WARMUP = {"cpu": 0, "cuda": 3}
KINDS = {
    "exact": {"kind": "run-length", "budget": "clip"},
    "ragged": {"kind": "run-length", "budget": "batch"},
    "random": {"kind": "random"},
}
STATIC = (
    "bgs_highway_static_30s.avi",
    "intel_cars_static_30s.mp4",
    "intel_onebyone_static_139s.mp4",
)
EFFICIENCY_GOAL, MASK_GOAL, STATIC_GOAL = 0.9, 0.01, 1.35


@dataclass
class Contender:
    """One kind of selection at one share, and what its repeats took."""

    name: str
    share: float
    selector: Selector
    clips: Tensor
    warmup: int
    forward: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)
    lengths: tuple[int, ...] = ()

    def per_clip(self, mode: str) -> float:
        return median(getattr(self, mode)[self.warmup :]) / len(self.clips)


class TimedSelector:
    """A selector whose last choice is timed where the choice is made: by the device's own clock on CUDA."""

    def __init__(self, selector: Selector) -> None:
        self.selector, self.needs_embeddings = selector, selector.needs_embeddings
        self.bounds: list[Any] = []

    def num_kept(self, grid: TubeletGrid) -> int | None:
        return self.selector.num_kept(grid)

    def select(self, clips: Tensor, *rest: Any) -> TokenSelection:
        self.bounds = [_now(clips.device)]
        selection = self.selector.select(clips, *rest)
        self.bounds.append(_now(clips.device))
        return selection

    def seconds(self) -> float:
        """Of the last choice, the device being done with it; 0 where nothing was chosen."""
        if not self.bounds:
            return 0.0
        start, end = self.bounds
        return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Bench:
    """One model on one device, whose selector changes."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        encoder = create_encoder(
            "vit_base_patch16_224", num_frames=NUM_FRAMES, size=SIZE, tubelet_size=TUBELET
        )
        head = ClassificationHead(encoder.embed_dim, 400, "mean", 0.0)
        self.device = torch.device(device)
        self.clock = clock_of(device)
        self.model = VideoModel(encoder, head, KeepAll()).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    def seconds(self, run: Callable[[], object]) -> float:
        synchronize(self.device)
        start = self.clock()
        run()
        synchronize(self.device)
        return self.clock() - start

    def measure(self, contender: Contender, train: bool) -> None:
        """One repeat: a forward, the mask within it, and a training step where `train`."""
        timed = self.model.selector = TimedSelector(contender.selector)
        keys = [SampleKey(0, index) for index in range(len(contender.clips))]

        def logits() -> Tensor:
            with autocast(self.device, "auto"):
                output = self.model(contender.clips, generators=clip_generators(0, keys))
            contender.lengths = output.lengths
            return output.logits

        def forward() -> None:
            with torch.inference_mode():
                logits()

        def step() -> None:
            logits().float().square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        contender.forward.append(self.seconds(forward))
        contender.mask.append(timed.seconds())
        if train:
            contender.step.append(self.seconds(step))

    def macs_per_clip(self, contender: Contender) -> float:
        return self.model.macs(contender.lengths) / len(contender.lengths)


def read_clips(videos: Sequence[Path], num_clips: int, device: str) -> Tensor:
    """Normalised `(num_clips, T, 3, H, W)`, each from another moment of the videos in turn."""
    library = open_library(root=str(videos[0].parent))
    clips = []
    per_video = -(-num_clips // len(videos))
    for number in range(num_clips):
        video, moment = str(videos[number % len(videos)]), number // len(videos)
        info = library.info(video)
        frames = dense_frames(
            0, info.num_frames, NUM_FRAMES, SAMPLING_RATE, clip=moment, num_clips=max(2, per_video)
        )
        clips.append(
            library.read(ClipSpec(video, frames, center_box(info.height, info.width), (SIZE, SIZE)))
        )
    augment = AugmentConfig()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.mean, augment.std))
    return ((torch.stack(clips).float() / 255 - mean) / std).to(device)


def contenders(clips: Tensor, dense_batch: int, size: str) -> list[Contender]:
    """Dense first, then every kind at every share; chance at one share only in the small size."""
    warmup = WARMUP[clips.device.type]
    found = [Contender("dense", 1.0, KeepAll(), clips[:dense_batch], warmup)]
    for share in SHARES:
        batch = clips[: round(dense_batch / share)]
        for name, settings in KINDS.items():
            if name == "random" and size == "small" and share != 0.5:
                continue
            tokens = TokensConfig(**settings, keep_ratio=share)
            selector = build_selector(tokens, TUBELET, PATCH)
            found.append(Contender(name, share, selector, batch, warmup))
    return found


def interleave(bench: Bench, compared: Sequence[Contender], repeats: int, train: bool) -> None:
    """`repeats` of each that count, in turn."""
    for _ in range(compared[0].warmup + repeats):
        for contender in compared:
            bench.measure(contender, train)


def rows_of(bench: Bench, compared: Sequence[Contender]) -> list[dict[str, Any]]:
    dense = compared[0]
    rows = []
    for one in compared:
        row: dict[str, Any] = {
            "selection": one.name,
            "share": f"{sum(one.lengths) / len(one.lengths) / bench.model.encoder.grid.num_tokens:.3f}",
            "clips per batch": len(one.clips),
            "GMACs per clip": bench.macs_per_clip(one) / 1e9,
            "bound": bench.macs_per_clip(dense) / bench.macs_per_clip(one),
        }
        for mode in ("forward", "step") if dense.step else ("forward",):
            row[f"{mode} ms per clip"] = one.per_clip(mode) * 1e3
            row[f"{mode} speed-up"] = dense.per_clip(mode) / one.per_clip(mode)
        row["mask ms per clip"] = one.per_clip("mask") * 1e3
        rows.append(row)
    return rows


def claims_of(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    claims = [
        Claim(
            f"{mode} speed-up over its bound, {row['selection']} {row['share']}",
            row[f"{mode} speed-up"] / row["bound"],
            EFFICIENCY_GOAL,
        )
        for mode in ("forward", "step")
        for row in rows
        if row["selection"] in ("exact", "ragged")
    ]
    worst = max(
        row["mask ms per clip"] / row["step ms per clip"]
        for row in rows
        if row["selection"] in ("exact", "ragged")
    )
    return [*claims, Claim("mask time over step time, largest", worst, MASK_GOAL, at_most=True)]


def static_cameras(
    bench: Bench, long: Path, batch: int, repeats: int
) -> tuple[list[dict[str, Any]], Claim]:
    """RLT as published on clips of fixed cameras: throughput of the same weights, dense and with it."""
    run_length = build_selector(TokensConfig(kind="run-length"), TUBELET, PATCH)
    rows = []
    for name in STATIC:
        clips = read_clips([long / name], batch, str(bench.device))
        warmup = WARMUP[bench.device.type]
        pair = [
            Contender(name, 1.0, KeepAll(), clips, warmup),
            Contender(name, 0.0, run_length, clips, warmup),
        ]
        interleave(bench, pair, repeats, train=False)
        sparse = rows_of(bench, pair)[1]
        rows.append({**sparse, "selection": f"run-length 0.1, {name}", "clips per batch": batch})
    gains = [row["forward speed-up"] for row in rows]
    return rows, Claim(
        "RLT on fixed cameras: throughput over dense, median", median(gains), STATIC_GOAL
    )


def main() -> None:
    options = arguments(__doc__)
    repeats, batch = REPEATS[options.device][options.size], DENSE_BATCH[options.device]
    long, actions = real_videos("long"), real_videos("actions5")
    videos = sorted(p for p in long.iterdir() if p.is_file()) + sorted(actions.rglob("*.mp4"))[:8]
    bench = Bench(options.device)
    compared = contenders(
        read_clips(videos, round(batch / min(SHARES)), options.device), batch, options.size
    )
    interleave(bench, compared, repeats, train=True)
    rows = rows_of(bench, compared)
    fixed, claim = static_cameras(bench, long, 2 * batch, repeats)
    report(
        f"ViT-B/16, 16x224x224, {options.device}",
        [*rows, *fixed],
        [*claims_of(rows), claim],
        options.json,
    )


if __name__ == "__main__":
    main()
