"""What several token budgets in one step cost: FluxViT-S on real clips of 16 x 224 x 224, 4096 tokens.

A step is decode, forward, backward and AdamW of the same clips. "single 2048" is classification at one budget; "three"
learns 3072, 2048 and 1024 at once, and the pairs two of these, as `objective.budgets_per_step 2` draws them; "three
forwards" (full size only) decodes once and does the rest three times over, as published. MACs are exact, those of the
forward; the bound is their ratio. Selection and gather are ranking, three choices of tokens, and the gradient's way
back through them. Times are CPU time of one thread, or wall clock with --device cuda.

    python benchmarks/flux.py --size full --device cuda
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from common import Claim, arguments, clock_of, real_videos, report
from onereel.build import build_model, build_objective
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    RunConfig,
    TokensConfig,
)
from onereel.data.augment import BatchAugment
from onereel.data.cropping import center_box
from onereel.data.sampling import dense_frames
from onereel.evaluation.efficiency import synchronize
from onereel.evaluation.inference import autocast
from onereel.models.choosing import Ranked, nested_tokens
from onereel.models.registry import create_encoder
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.packing import pack_all
from onereel.types import Batch, ClipSpec, SampleKey, TubeletGrid
from onereel.video.library import VideoLibrary, open_library

MODEL = "fluxvit_small_patch14_224"
NUM_FRAMES, SAMPLING_RATE, SIZE, NUM_CLASSES = 16, 4, 224, 400
BUDGETS = (3072, 2048, 1024)
SINGLE = 2048
BATCH = {"cpu": 1, "cuda": 16}
REPEATS = {"cpu": {"small": 2, "full": 7}, "cuda": {"small": 10, "full": 30}}
WARMUP = {"cpu": 1, "cuda": 3}
OVERHEAD_GOAL, PAIR_GOAL, SELECTION_GOAL = 1.05, 2.25, 0.02


def config_of(budgets: Sequence[int]) -> RunConfig:
    """One budget is plain classification."""
    several = tuple(budgets) if len(budgets) > 1 else ()
    return RunConfig(
        data=DataConfig(num_frames=NUM_FRAMES, size=SIZE),
        tokens=TokensConfig(kind="group-dynamic", token_budget=budgets[0]),
        model=ModelConfig.named(MODEL),
        objective=ObjectiveConfig(budgets=several),
    )


@dataclass
class Contender:
    """Some budgets, learned together in one step or one after the other, and what its repeats took."""

    name: str
    objectives: list[nn.Module]
    seconds: list[float] = field(default_factory=list)
    macs: float = 0.0


class Bench:
    """Steps on the same real clips."""

    def __init__(self, device: str) -> None:
        self.device, self.clock = torch.device(device), clock_of(device)
        folder = real_videos("long")
        videos = sorted(str(path) for path in folder.iterdir() if path.is_file())
        self.library = open_library(root=str(folder))
        self.specs = [
            clip_spec(self.library, videos[i % len(videos)]) for i in range(BATCH[device])
        ]
        self.augment = BatchAugment(AugmentConfig(), None, 0, training=False)
        self.encoder = create_encoder(MODEL, num_frames=NUM_FRAMES)
        self.optimizers: dict[int, torch.optim.Optimizer] = {}

    def contender(self, name: str, *budgets: Sequence[int]) -> Contender:
        """One that takes each of `budgets` in an objective of its own."""
        objectives = []
        for part in budgets:
            config = config_of(part)
            objective = build_objective(config, build_model(config, NUM_CLASSES))
            objectives.append(objective.train().to(self.device))
        return Contender(name, objectives)

    def read(self) -> Batch:
        """The clips, decoded and normalised."""
        clips = torch.stack([self.library.read(spec) for spec in self.specs])
        keys = [SampleKey(0, i) for i in range(len(clips))]
        labels = torch.arange(len(clips)) % NUM_CLASSES
        return self.augment(Batch(clips, keys, labels=labels, num_clips=len(clips)), self.device)

    def step(self, contender: Contender) -> None:
        batch, macs = self.read(), 0.0
        for objective in contender.objectives:
            with autocast(self.device, "auto"):
                output = objective(batch)
            output["loss"].backward()
            macs += output["stats"]["flops"] / 6 / len(batch.keys)
        contender.macs = macs
        for objective in contender.objectives[:1]:
            optimizer = self.optimizers.setdefault(
                id(objective), torch.optim.AdamW(objective.parameters(), lr=1e-6, fused=True)
            )
            optimizer.step()
        for objective in contender.objectives:
            objective.zero_grad(set_to_none=True)

    def seconds(self, run: Callable[[], object]) -> float:
        synchronize(self.device)
        start = self.clock()
        run()
        synchronize(self.device)
        return self.clock() - start

    def selection(self) -> None:
        """Ranking, three choices, and gathering them, there and back."""
        grid, selector = TubeletGrid(NUM_FRAMES, SIZE // 14, SIZE // 14), group_dynamic()
        batch = len(self.specs)
        embeddings = torch.randn(batch, grid.num_tokens, self.encoder.embed_dim, device=self.device)
        everything = pack_all(embeddings.requires_grad_(), grid)
        with torch.no_grad():
            order = selector.rank(embeddings, embeddings.detach(), grid, None)
        ranked = Ranked(embeddings, grid, order, everything)
        parts = [part.values for part in nested_tokens(self.encoder, ranked, BUDGETS)]
        torch.autograd.backward(parts, [torch.ones_like(part) for part in parts])


def clip_spec(library: VideoLibrary, video: str) -> ClipSpec:
    info = library.info(video)
    frames = dense_frames(0, info.num_frames, NUM_FRAMES, SAMPLING_RATE)
    return ClipSpec(video, frames, center_box(info.height, info.width), (SIZE, SIZE))


def measure(bench: Bench, size: str) -> tuple[list[Contender], float, float]:
    """Contenders, in turn; and the seconds of selection and gather, and of reading the clips."""
    kind = bench.device.type
    repeats, warmup = REPEATS[kind][size], WARMUP[kind]
    pairs = list(combinations(BUDGETS, 2))
    contenders = [
        bench.contender("single 2048", (SINGLE,)),
        bench.contender("three", BUDGETS),
        *(bench.contender(f"two: {a} and {b}", (a, b)) for a, b in pairs),
    ]
    if size == "full":
        contenders.append(bench.contender("three forwards", *((k,) for k in BUDGETS)))
    selection, reading = [], []
    for _ in range(warmup + repeats):
        for contender in contenders:
            contender.seconds.append(bench.seconds(lambda one=contender: bench.step(one)))
        selection.append(bench.seconds(bench.selection))
        reading.append(bench.seconds(bench.read))
    for contender in contenders:
        del contender.seconds[:warmup]
    return contenders, median(selection[warmup:]), median(reading[warmup:])


def rows_of(
    contenders: Sequence[Contender], batch: int, selection: float, reading: float
) -> list[dict[str, Any]]:
    single = contenders[0]
    rows: list[dict[str, Any]] = [
        {
            "step": one.name,
            "GMACs per clip": one.macs / 1e9,
            "bound": one.macs / single.macs,
            "ms per clip": 1e3 * median(one.seconds) / batch,
            "over single": median(one.seconds) / median(single.seconds),
        }
        for one in contenders
    ]
    extra = {"selection and gather, three budgets": selection, "reading the clips": reading}
    return [*rows, *({"step": k, "ms per clip": 1e3 * v / batch} for k, v in extra.items())]


def claims_of(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    by_name = {row["step"]: row for row in rows}
    three, pairs = by_name["three"], [row for row in rows if row["step"].startswith("two")]
    share = by_name["selection and gather, three budgets"]["ms per clip"] / three["ms per clip"]
    return [
        Claim(
            "three budgets over single, by their MACs",
            three["over single"] / three["bound"],
            OVERHEAD_GOAL,
            at_most=True,
        ),
        Claim(
            "two drawn budgets over single, mean of the pairs",
            mean(row["over single"] for row in pairs),
            PAIR_GOAL,
            at_most=True,
        ),
        Claim("selection and gather over the step of three", share, SELECTION_GOAL, at_most=True),
    ]


def main() -> None:
    options = arguments(__doc__)
    bench = Bench(options.device)
    contenders, selection, reading = measure(bench, options.size)
    rows = rows_of(contenders, len(bench.specs), selection, reading)
    report(f"{MODEL}, training steps, {options.device}", rows, claims_of(rows), options.json)


if __name__ == "__main__":
    main()
