"""What freezing saves: steps of ViViT's factorised encoder, all of it, its spatial half frozen, with each adapter, and
from features.

FE-B/16x2 on random clips of 8, 16 and 32 frames x 224x224: forward, backward and SGD with momentum, in turn on one
machine in one dtype (bfloat16 on CUDA), by the CPU time of one thread, or by the wall clock on CUDA. A step from
features takes the clips of a whole step of the recipe at once (64): features are small, and by one clip its time would
be that of writing 28.7 million gradients. All times are per clip, reading and decoding not counted; an epoch is
Something-Something v2's. Activations are what the forward pass needs at its peak, as PyTorch counts it, weights and the
clip itself not counted: of the full step they are what it keeps for the backward pass.

    python benchmarks/frozen.py --size full     more repeats
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from common import Claim, arguments, clock_of, peak_bytes, report
from onereel.build import build_model, build_objective
from onereel.config import RunConfig
from onereel.evaluation.efficiency import synchronize
from onereel.evaluation.inference import autocast
from onereel.models.adapter import ADAPTERS
from onereel.models.video_model import VideoModel
from onereel.recipes import load_recipe
from onereel.tokens.packing import cumulative_lengths
from onereel.training import create_optimizer
from onereel.types import Batch, FrameFeatures, SampleKey, TubeletGrid

MIB = 2**20
NUM_FRAMES = (8, 16, 32)
NUM_CLASSES = 174
CLIPS_PER_EPOCH = 168_913  # of Something-Something v2's training list
BATCH = {"cpu": 1, "cuda": 16}
CACHED_BATCH = 64
REPEATS = {"cpu": {"small": 2, "full": 5}, "cuda": {"small": 10, "full": 30}}
GMACS = {8: 70.86, 32: 283.34}
"""Of a forward pass with 400 classes, as counted of Scenic's model."""
FROZEN_COMPUTE = 0.3345
"""Arithmetic of a frozen step over a full one: a forward of everything, a backward of a few thousandths."""
FULL, CACHED = "full", "from features"
FROZEN = {f"frozen, {adapter}": adapter for adapter in ADAPTERS}
DEFAULT = "frozen, bottleneck"


@dataclass
class Arm:
    """A way to train, the clips of its step, and what that took."""

    name: str
    num_frames: int
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    seconds: list[float] = field(default_factory=list)
    activations: int = 0

    def forward(self) -> Tensor:
        with autocast(self.batch.clips.device, "auto"):
            return self.objective(self.batch)["loss"]

    def step(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def seconds_per_clip(self) -> float:
        return median(self.seconds) / self.batch.num_clips

    @property
    def bytes_per_clip(self) -> float:
        return self.activations / self.batch.num_clips


def config_of(name: str, num_frames: int) -> RunConfig:
    config = load_recipe("sfa_ssv2_vitb_32f")
    model = replace(config.model, name="vit_base_patch16_224", keep_head=False, drop_path_rate=0.0)
    if name == FULL:
        model = replace(model, frozen="none", adapter="none")
    elif name in FROZEN:
        model = replace(model, adapter=FROZEN[name])
    data = replace(config.data, num_frames=num_frames, size=224)
    return replace(config, after="", data=data, model=model)


def make(name: str, num_frames: int, device: str) -> Arm:
    config = config_of(name, num_frames)
    model = build_model(config, NUM_CLASSES)
    objective = build_objective(config, model).to(device).train()
    optimizer = create_optimizer(objective, config.optim)
    given = features if name == CACHED else clips
    return Arm(name, num_frames, objective, optimizer, given(model, num_frames, device))


def clips(model: VideoModel, num_frames: int, device: str) -> Batch:
    shape = (BATCH[device], num_frames, 3, 224, 224)
    return batch_of(torch.randn(shape, generator=seeded()).to(device), shape[0])


def features(model: VideoModel, num_frames: int, device: str) -> Batch:
    """Random ones, in the shape that the spatial half would give them."""
    count, gt = CACHED_BATCH, model.encoder.grid.gt
    lengths = (gt,) * count
    times = torch.arange(gt).repeat(count)
    values = torch.randn(count * gt, model.encoder.embed_dim, generator=seeded()).to(device)
    given = FrameFeatures(
        values,
        lengths,
        cumulative_lengths(lengths, values.device),
        nn.functional.pad(times[:, None], (0, 2)).to(device),
        TubeletGrid(gt, 1, 1),
    )
    return batch_of(given, count)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def batch_of(given: Tensor | FrameFeatures, count: int) -> Batch:
    labels = torch.zeros(count, dtype=torch.long, device=given.device)
    return Batch(given, [SampleKey(0, i) for i in range(count)], labels=labels, num_clips=count)


def measure(arms: list[Arm], device: str, repeats: int) -> None:
    """Steps of all arms in turn, after one by which each makes its momentum; then the peak of a forward pass."""
    clock = clock_of(device)
    for arm in arms:
        shortest = arm.batch
        if isinstance(shortest.clips, Tensor):  # one tubelet is enough to begin with
            arm.batch = batch_of(shortest.clips[:1, :2], 1)
        arm.step()
        arm.batch = shortest
    for _ in range(repeats):
        for arm in arms:
            synchronize(torch.device(device))
            start = clock()
            arm.step()
            synchronize(torch.device(device))
            arm.seconds.append(clock() - start)
    for arm in arms:
        arm.activations = peak_bytes(kept(arm), device)


def kept(arm: Arm) -> Callable[[], object]:
    """A forward pass whose history is alive when it ends."""
    losses: list[Tensor] = []
    return lambda: losses.append(arm.forward())


def row(arm: Arm, full: Arm) -> dict[str, Any]:
    model = arm.objective.model
    macs = model.macs((model.encoder.grid.num_tokens,)) / 1e9
    return {
        "frames": arm.num_frames,
        "step": arm.name,
        "clips per step": arm.batch.num_clips,
        "forward GMACs": "" if arm.name == CACHED else macs,
        "seconds per clip": f"{arm.seconds_per_clip:.4g}",
        "time ratio": f"{arm.seconds_per_clip / full.seconds_per_clip:.4f}",
        "activations, MiB per clip": f"{arm.bytes_per_clip / MIB:.1f}",
        "memory ratio": f"{arm.bytes_per_clip / full.bytes_per_clip:.4f}",
        "hours per epoch": f"{arm.seconds_per_clip * CLIPS_PER_EPOCH / 3600:.3g}",
    }


def claims(found: dict[tuple[str, int], Arm]) -> list[Claim]:
    full, frozen, cached = (found[name, 32] for name in (FULL, DEFAULT, CACHED))
    at_most = partial(Claim, at_most=True)
    made = [
        at_most(
            f"{DEFAULT}, time over full, 32 frames",
            frozen.seconds_per_clip / full.seconds_per_clip,
            0.40,
        ),
        at_most(
            f"{DEFAULT}, activations over full, 32 frames",
            frozen.bytes_per_clip / full.bytes_per_clip,
            0.25,
        ),
        at_most(
            f"from features of {CACHED_BATCH} clips, time per clip over full, 32 frames",
            cached.seconds_per_clip / full.seconds_per_clip,
            0.02,
        ),
    ]
    for num_frames, published in GMACS.items():
        model = found[FULL, num_frames].objective.model
        macs = model.macs((model.encoder.grid.num_tokens,)) / 1e9
        name = f"multiply-adds off the published, {num_frames} frames"
        made.append(at_most(name, abs(macs / published - 1), 0.005))
    return made


def main() -> None:
    options = arguments(__doc__)
    device, rows = options.device, []
    found: dict[tuple[str, int], Arm] = {}
    for num_frames in NUM_FRAMES:
        arms = [make(name, num_frames, device) for name in (FULL, *FROZEN, CACHED)]
        measure(arms, device, REPEATS[device][options.size])
        rows += [row(arm, arms[0]) for arm in arms]
        for arm in arms:
            found[arm.name, num_frames] = arm
            arm.objective.to("meta")  # makes room for the next
            arm.optimizer.state.clear()
    title = f"ViViT-B/16x2, factorised encoder, {device}; arithmetic of a frozen step: {FROZEN_COMPUTE:.2f}"
    report(title, rows, claims(found), options.json)


if __name__ == "__main__":
    main()
