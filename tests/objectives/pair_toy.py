"""A pair objective small enough to take apart: two linear towers and clips of a few pixels. Also a script.

python pair_toy.py '{"out": FILE, "batch_size": 4, "accum_steps": 2, ...}' takes one optimiser step as this process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.config import RunConfig, from_dict
from onereel.objectives.contrastive import InfoNce, SigmoidLoss
from onereel.objectives.max_margin import MaxMargin
from onereel.objectives.pairs import PairObjective
from onereel.training import distributed, plan_steps
from onereel.training.interrupt import StopRequest
from onereel.training.meters import Meter
from onereel.training.state import TrainState
from onereel.training.step import TrainStep
from onereel.types import Batch, Packed, SampleKey, TubeletGrid

LOSSES = {"info-nce": InfoNce, "sigmoid": SigmoidLoss, "max-margin": MaxMargin}
SHAPE = (1, 3, 2, 2)
NUM_WORDS, WIDTH = 20, 6
NUM_ROWS = 4
LR = 0.3


class ToyTowers(nn.Module):
    """Pixels and word counts, each through a linear layer; dropout draws from one generator per clip."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.words = nn.Linear(12, WIDTH), nn.Linear(NUM_WORDS, WIDTH)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        self.video = SimpleNamespace(
            encoder=SimpleNamespace(depth=1, temporal_depth=0),
            step_macs=lambda lengths, backward, grid, from_frames: 0,
        )
        self.text = SimpleNamespace(depth=1, macs=lambda batch, length: 0)

    def encode_video(self, clips, scoring_clips=None, generators=None, budget=0):
        draws = torch.stack([torch.rand(12, generator=g) for g in generators])
        values = whole(clips) if isinstance(clips, Packed) else clips
        features = self.pixels(values.flatten(1) * (draws < 0.8))
        output = SimpleNamespace(lengths=(2,) * len(values), num_dense_tokens=4, grid=None)
        return F.normalize(features, dim=-1), output

    def tokenizer(self, captions: list[str]) -> Tensor:
        return torch.tensor([[int(word) for word in caption.split()] for caption in captions])

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.words(F.one_hot(tokens, NUM_WORDS).float().sum(1)), dim=-1)


def whole(packed: Packed) -> Tensor:
    """`(B, rows, values)`, 0 where a row was dropped."""
    rows = packed.values.new_zeros(packed.batch_size, NUM_ROWS, 12 // NUM_ROWS)
    for row, tokens in zip(rows, packed.values.split(packed.lengths)):
        row[: len(tokens)] = tokens
    return rows


class ToyPairs:
    """`num_clips` random clips with captions of two words, dealt to ranks as the real loader deals them.

    Clip i is black but for its first 1 + i % 4 rows of values: those are its tokens where it is `packed`.
    """

    def __init__(
        self,
        batch_size: int,
        num_clips: int = 12,
        rank: int = 0,
        world_size: int = 1,
        broken: frozenset[int] = frozenset(),
        packed: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.clips = torch.randn(num_clips, *SHAPE, generator=generator)
        lengths = 1 + torch.arange(num_clips) % NUM_ROWS
        self.kept = torch.arange(NUM_ROWS) < lengths[:, None]
        self.clips.view(num_clips, NUM_ROWS, -1)[~self.kept] = 0
        self.packed = packed
        words = torch.randint(0, 3, (num_clips, 2), generator=generator).tolist()
        self.captions = [" ".join(map(str, pair)) for pair in words]  # some of them equal
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_batches = num_clips // (batch_size * world_size)
        self.broken = broken

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for j in range(start, self.num_batches):
            first = (j * self.world_size + self.rank) * self.batch_size
            yield self.batch(range(first, first + self.batch_size))

    def batch(self, indices: range) -> Batch:
        good = [i for i in indices if i not in self.broken]
        shown = good or list(indices[:1])
        clips: Tensor | Packed = self.clips[shown] if good else torch.zeros(1, *SHAPE)
        if self.packed:
            clips = self.pack(shown)
        captions = [self.captions[i] for i in shown]
        keys = [SampleKey(0, i) for i in shown]
        num_failed = len(indices) - len(good)
        return Batch(clips, keys, captions=captions, num_failed=num_failed, num_clips=len(good))

    def pack(self, indices: list[int]) -> Packed:
        kept = self.kept[indices]
        lengths = kept.sum(1)
        return Packed(
            self.clips[indices].view(len(indices), NUM_ROWS, -1)[kept],
            tuple(lengths.tolist()),
            nn.functional.pad(lengths.cumsum(0), (1, 0)).int(),
            torch.zeros(int(lengths.sum()), 3, dtype=torch.int64),
            TubeletGrid(1, 1, NUM_ROWS),
        )


def take_step(
    loss: str,
    batch_size: int,
    accum_steps: int,
    broken: list[int] | None = None,
    mask_duplicates: bool = False,
    max_tokens: int = 0,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and summed values after the first step of SGD, as one process or as one of several."""
    sections: dict[str, Any] = {
        "train": {
            "batch_size_per_device": batch_size,
            "accum_steps": accum_steps,
            "max_tokens_per_device": max_tokens,
            "device": "cpu",
        }
    }
    config = from_dict(RunConfig, sections)
    with distributed("cpu") as world:
        objective = PairObjective(
            ToyTowers(),
            LOSSES[loss](),
            max_clips=batch_size * accum_steps,
            mask_duplicates=mask_duplicates,
        )
        objective.train()
        skipped = frozenset(broken or ())
        loader = ToyPairs(
            batch_size,
            rank=world.rank,
            world_size=world.world_size,
            broken=skipped,
            packed=max_tokens > 0,
        )
        optimizer = torch.optim.SGD(objective.parameters(), lr=LR)
        plan = plan_steps(config, loader.num_batches, world.world_size)
        state = TrainState(objective, optimizer, None, Meter(world.device, 1.0), plan)
        step = TrainStep(objective, optimizer, lambda i: LR, lambda b, d: b, config, world.device)
        values = step(state, plan.batches(loader, 0), StopRequest()).read()
    values["num_group_threads"] = num_group_threads()  # while `step` still holds the wrapped model
    return {k: v.detach() for k, v in objective.state_dict().items()}, values


def num_group_threads() -> int:
    """How many threads of process groups run in this process; 0 where the system doesn't tell."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


def main(jobs: list[dict[str, Any]]) -> None:
    """One job per process: forks, because to import torch takes longer than all the rest."""
    children = []
    for job in jobs:
        child = os.fork()
        if child == 0:
            os.environ.update(job.pop("environment"))
            out = job.pop("out")
            torch.save(take_step(**job), out)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(json.loads(sys.argv[1]))
