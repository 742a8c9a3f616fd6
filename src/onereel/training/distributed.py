"""One process or many: everything here also works without a launcher, and then does nothing.

Processes are started by `torchrun --nproc-per-node N`; gloo joins them on CPU, NCCL on CUDA.
"""

from __future__ import annotations

import importlib
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onereel.errors import ConfigError

# A wrapper can outlive the process group, in a frame or a traceback. Its reducer must not: were that the last to let go
# of the group, it would wait for the group's threads with the interpreter's lock in hand, and they can be waiting for
# the lock.
_WRAPPED: weakref.WeakSet[nn.parallel.DistributedDataParallel] = weakref.WeakSet()


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `world_size`, and its device."""

    rank: int
    world_size: int
    device: torch.device


@contextmanager
def distributed(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end of the block.

    Args:
        device: auto (CUDA where there is one), cpu, cuda or cuda:1. Under torchrun each process takes the CUDA
            device of its local rank.

    Raises:
        ConfigError: CUDA was asked for and is not there, or there are more processes than devices.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")) if world_size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield World(0, 1, chosen)
        return
    # Default arguments of this module are the process group that there is when it is first imported, as by DDP. The
    # group's threads would then live on, and abort the process where they let go of a tensor as the interpreter ends.
    importlib.import_module("torch.distributed.nn")
    if chosen.type == "cuda":
        dist.init_process_group("nccl", device_id=chosen)
    else:
        dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), world_size, chosen)
    finally:
        while _WRAPPED:
            wrapped = _WRAPPED.pop()
            del wrapped.reducer, wrapped.logger, wrapped.process_group
        dist.destroy_process_group()


def pick_device(device: str, local_rank: int | None = None) -> torch.device:
    """The device that `device` names; `local_rank` overrides the number of a CUDA device.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or not (index.isdecimal() or not index):
        raise ConfigError(f"train.device is {device!r}; allowed: auto, cpu, cuda, cuda:NUMBER")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"train.device is {device!r}, and PyTorch {torch.__version__} sees no CUDA device; allowed: auto, cpu"
        )
    number = int(index or 0) if local_rank is None else local_rank
    if number >= torch.cuda.device_count():
        raise ConfigError(
            f"CUDA device {number} was asked for and there are {torch.cuda.device_count()}; "
            "lower train.device or torchrun's --nproc-per-node"
        )
    return torch.device("cuda", number)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that writes files and prints."""
    return rank() == 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of `values` over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """`value` of every process, by rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def run_on_main(function: Callable[[], Any]) -> Any:
    """Run `function` on the main process and give its result, or its error, to every process."""
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:  # noqa: BLE001  whatever it is, the others must not wait for ever
            outcome[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module wrapped so that gradients are averaged over processes; the module itself where there is one."""
    if not dist.is_initialized():
        return module
    wrapped = nn.parallel.DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    # Buffers are constants here. The argument of this name is deprecated from torch 2.13 on, the attribute is not.
    wrapped.broadcast_buffers = False
    _WRAPPED.add(wrapped)
    return wrapped
