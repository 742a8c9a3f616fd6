"""Evaluation by two processes: the same figures as by one, and an error of one is an error of both.

The processes run this file, which therefore imports no more than they need.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from onereel.errors import DecodeError
from onereel.evaluation.classification import ClassificationResult, evaluate_classification
from onereel.types import Batch, SampleKey

NUM_VIDEOS, NUM_VIEWS, NUM_CLASSES, BATCH = 11, 3, 6, 2


class FakeModel(nn.Module):
    """The clips are the logits."""

    def forward(self, clips: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(
            logits=clips, lengths=(3,) * len(clips), num_dense_tokens=4, grid=None
        )

    def macs(self, lengths: tuple[int, ...], grid: None) -> int:
        return sum(lengths)


class FakeLoader:
    """Deals batch j * world_size + r to rank r, as ClipLoader does; video `broken` cannot be read."""

    def __init__(self, rank: int = 0, world_size: int = 1, broken: int | None = None) -> None:
        views = [SampleKey(0, i, v) for i in range(NUM_VIDEOS) for v in range(NUM_VIEWS)]
        batches = [views[i : i + BATCH] for i in range(0, len(views), BATCH)]
        self.parts, self.broken = batches[rank::world_size], broken
        self.num_batches = len(self.parts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(NUM_VIDEOS, NUM_VIEWS, NUM_CLASSES, generator=generator)
        for keys in self.parts:
            if any(key.index == self.broken for key in keys):
                raise DecodeError("bad.mp4", "truncated", 3)
            clips = torch.stack([logits[key.index, key.view] for key in keys])
            labels = torch.tensor([key.index % NUM_CLASSES for key in keys])
            yield Batch(clips, keys, labels=labels, num_clips=len(keys))


def evaluate(loader: FakeLoader) -> ClassificationResult:
    return evaluate_classification(
        FakeModel(),
        loader,
        lambda batch, device: batch,
        class_names="abcdef",
        device="cpu",
        num_views=NUM_VIEWS,
    )


def run_rank(rank: int, world_size: int, port: int) -> None:
    address = f"tcp://localhost:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    result = evaluate(FakeLoader(rank, world_size))
    try:
        evaluate(FakeLoader(rank, world_size, broken=4))
    except DecodeError as error:
        print(json.dumps({"result": result.to_dict(), "error": str(error)}))
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_count_as_one_and_fail_as_one() -> None:
    port, measured = str(free_port()), {"seconds", "clips_per_second", "data_wait"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), "2", port], stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    alone = evaluate(FakeLoader()).to_dict()
    for process in processes:
        told = json.loads(process.communicate(timeout=120)[0])
        assert told["error"] == "bad.mp4, frame 3: truncated"
        assert told["result"].keys() == alone.keys()
        for name in alone.keys() - measured:
            assert told["result"][name] == alone[name], name


if __name__ == "__main__":
    run_rank(*map(int, sys.argv[1:]))
