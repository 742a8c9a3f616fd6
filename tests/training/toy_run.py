"""A run small enough to kill: a linear model on random clips. Also a script, for runs that must die or be many.

python toy_run.py RUN '{"train": {"epochs": 2}, "kill": {"step": 3}}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import tensorboard  # noqa: F401  (once, before the forks)

from onereel.config import RunConfig, from_dict
from onereel.training import (
    FitResult,
    create_optimizer,
    create_run,
    create_schedule,
    distributed,
    fit,
    plan_steps,
    read_config,
    resume_state,
    run_on_main,
)
from onereel.training import checkpoint as checkpoint_module
from onereel.types import Batch, Packed, SampleKey, TubeletGrid

NUM_CLASSES = 3
SHAPE = (2, 3, 4, 4)
NUM_VALUES = 2 * 3 * 4 * 4
NUM_ROWS = 6


class ToyLoader:
    """`num_clips` random clips, shuffled by (seed, epoch), dealt to ranks as the real loader deals them.

    Args:
        broken: indices of clips that cannot be read.
        on_batch: called with (epoch, batch) before each batch.
        packed: give some rows of each clip, as the loader does where it selects tokens.
    """

    def __init__(
        self,
        batch_size: int,
        num_clips: int = 24,
        rank: int = 0,
        world_size: int = 1,
        broken: frozenset[int] = frozenset(),
        on_batch: Any = lambda epoch, batch: None,
        packed: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.clips = torch.randint(
            0, 256, (num_clips, *SHAPE), generator=generator, dtype=torch.uint8
        )
        self.labels = torch.randint(0, NUM_CLASSES, (num_clips,), generator=generator)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.num_batches = num_clips // (batch_size * world_size)
        self.broken, self.on_batch, self.packed = broken, on_batch, packed

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(
            len(self.clips), generator=torch.Generator().manual_seed(epoch)
        ).tolist()
        for j in range(start, self.num_batches):
            self.on_batch(epoch, j)
            first = (j * self.world_size + self.rank) * self.batch_size
            yield self._batch(epoch, order[first : first + self.batch_size])

    def _batch(self, epoch: int, indices: list[int]) -> Batch:
        good = [i for i in indices if i not in self.broken]
        shown = good or indices[:1]
        clips = self.clips[shown] if good else torch.zeros(1, *SHAPE, dtype=torch.uint8)
        keys = [SampleKey(epoch, i) for i in shown]
        return Batch(
            pack_rows(clips, [1 + i % NUM_ROWS for i in shown]) if self.packed else clips,
            keys,
            labels=self.labels[shown],
            num_failed=len(indices) - len(good),
            num_clips=len(good),
        )


def pack_rows(clips: torch.Tensor, lengths: list[int]) -> Packed:
    """The first `lengths` rows of each clip as its tokens."""
    rows = clips.flatten(1).unflatten(1, (NUM_ROWS, -1))
    kept = torch.arange(NUM_ROWS) < torch.tensor(lengths)[:, None]
    coordinates = kept.nonzero() * torch.tensor([0, 1])
    return Packed(
        rows[kept],
        tuple(lengths),
        torch.tensor([0, *lengths]).cumsum(0).int(),
        nn.functional.pad(coordinates, (1, 0)),
        TubeletGrid(1, 1, NUM_ROWS),
    )


def flat(clips: torch.Tensor | Packed) -> torch.Tensor:
    """The values of each clip in a row; of packed ones, 0 where a token was dropped."""
    if not isinstance(clips, Packed):
        return clips.flatten(1)
    rows = clips.values.new_zeros(len(clips.lengths), NUM_ROWS, NUM_VALUES // NUM_ROWS)
    for row, tokens in zip(rows, clips.values.split(clips.lengths)):
        row[: len(tokens)] = tokens
    return rows.flatten(1)


class ToyObjective(nn.Module):
    """Two linear layers with dropout from the global generator."""

    num_layers = 2

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Linear(NUM_VALUES, 8)
        self.last = nn.Linear(8, NUM_CLASSES)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        self.dropout = dropout

    def forward(self, batch: Batch) -> dict[str, Any]:
        hidden = self.first(flat(batch.clips)).relu()
        logits = self.last(F.dropout(hidden, self.dropout, self.training)).float()
        tokens = 2 * batch.num_clips
        stats = {"num_tokens": tokens, "num_tokens_dense": 2 * tokens, "flops": 6.0 * tokens}
        if batch.num_clips == 0:
            zero = logits.sum() * 0.0
            return {"loss": zero, "top1": zero.detach(), "stats": stats}
        top1 = (logits.argmax(1) == batch.labels).float().mean()
        return {"loss": F.cross_entropy(logits, batch.labels), "top1": top1, "stats": stats}

    def layer_of(self, name: str) -> int:
        return int(name.startswith("last"))

    def no_weight_decay(self) -> set[str]:
        return set()


def normalise(batch: Batch, device: torch.device) -> Batch:
    batch = replace(batch, clips=batch.clips.to(device))
    if isinstance(batch.clips, Packed):
        batch.clips = replace(batch.clips, values=batch.clips.values.float() / 255 - 0.5)
    else:
        batch.clips = batch.clips.float() / 255 - 0.5
    batch.labels = batch.labels.to(device)
    return batch


def toy_config(**sections: dict[str, Any]) -> RunConfig:
    """A config that logs each step and saves every third; `train={"epochs": 3}` overrides fields."""
    base: dict[str, dict[str, Any]] = {
        "train": {
            "epochs": 2,
            "batch_size_per_device": 4,
            "log_every": 1,
            "save_every": 3,
            "device": "cpu",
        },
        "optim": {"lr": 0.05, "lr_batch_size": 0, "warmup_epochs": 0.5},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return from_dict(RunConfig, base)


def train(
    run: Path,
    config: RunConfig,
    *,
    resume: bool = False,
    objective: nn.Module | None = None,
    loader: Any = None,
    packed: bool = False,
    **options: Any,
) -> FitResult:
    """Start or continue the toy run in this process, or these processes."""
    with distributed(config.train.device) as world:
        run_on_main(lambda: create_run(run, config, resume=resume))
        config = read_config(run)
        objective = (objective or ToyObjective(dropout=0.2)).to(world.device)
        loader = loader or ToyLoader(
            config.train.batch_size_per_device,
            rank=world.rank,
            world_size=world.world_size,
            packed=packed,
        )
        plan = plan_steps(config, loader.num_batches, world.world_size)
        return fit(
            objective,
            loader,
            normalise,
            create_optimizer(objective, config.optim),
            create_schedule(config.optim, plan),
            config=config,
            run=run,
            device=world.device,
            class_names=("a", "b", "c"),
            resume=resume_state(run) if resume else None,
            **options,
        )


def read_metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The records of that kind; none where the run died before the first."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record for record in records if record["kind"] == kind]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_while_writing(step: int) -> None:
    """Make the checkpoint of `step` end in the middle of its file."""
    write = checkpoint_module._write

    def write_half(state: dict[str, Any], file: Any) -> None:
        if state["step"] == step:
            file.write(b"PK half of a checkpoint")
            file.flush()
            _die()
        write(state, file)

    checkpoint_module._write = write_half


def run_job(run: str, sections: dict[str, Any]) -> None:
    """One run; `sections` are those of the config, and `kill` (step, or save), `packed` and `dropout` of the toy."""
    kill, packed = sections.pop("kill", {}), sections.pop("packed", False)
    dropout = sections.pop("dropout", 0.2)
    config = toy_config(**sections)
    loader = None
    if "step" in kill:

        def die_at(epoch: int, batch: int) -> None:
            if epoch * loader.num_batches + batch == kill["step"] * config.train.accum_steps:
                _die()

        loader = ToyLoader(config.train.batch_size_per_device, on_batch=die_at)
    if "save" in kill:
        _die_while_writing(kill["save"])
    train(Path(run), config, loader=loader, objective=ToyObjective(dropout), packed=packed)


def num_group_threads(patience_seconds: float = 20.0) -> int:
    """Threads of a process group that outlive it. As the interpreter ends they would abort it, if they have not quite
    let go of their last tensors."""
    deadline = time.monotonic() + patience_seconds
    while True:
        names = []
        for task in Path("/proc/self/task").glob("*/comm"):
            with suppress(OSError):  # it ends just now
                names.append(task.read_text())
        found = sum("gloo" in name for name in names)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def main(jobs: list[dict[str, Any]]) -> list[int]:
    """Run jobs `{"run", "sections", "environment"}` at once, each in a fork; their exit codes: threads that a process
    group has left behind, or a signal (negative).

    Forks, because to import torch takes longer than all the rest. A single job runs in this process.
    """
    torch.set_num_threads(1)
    if len(jobs) == 1:
        run_job(jobs[0]["run"], jobs[0]["sections"])
        return [0]
    children = []
    for job in jobs:
        child = os.fork()
        if child == 0:
            os.environ.update(job.get("environment", {}))
            run_job(job["run"], job["sections"])
            os._exit(num_group_threads())
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    codes = main(json.loads(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps(codes))
