"""What the loop asks of an objective, and what objectives share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from onereel.seeding import stable_seed
from onereel.types import Batch, SampleKey


@runtime_checkable
class Objective(Protocol):
    """An `nn.Module` that the loop can train; the loop knows nothing else of it.

    `forward(batch)` returns `"loss"` and other named scalar tensors, each a mean over the batch's `num_clips`
    clips, and `"stats"`, numbers on the host: `num_tokens` (kept), `num_tokens_dense` (were all kept) and `flops`
    (2 x multiply-adds, forward and backward). With `num_clips == 0` the loss is zero but still reaches every
    parameter, so that a rank without data takes part in the step.
    """

    num_layers: int

    def forward(self, batch: Batch) -> dict[str, Any]: ...

    def layer_of(self, name: str) -> int:
        """Depth of the named parameter, 0 (patch embedding) to `num_layers - 1` (head), for layer decay."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must spare although they have two or more dimensions."""
        ...


def clip_generators(
    seed: int, keys: Iterable[SampleKey], purpose: str = "tokens"
) -> list[torch.Generator]:
    """One CPU generator per clip, a function of (seed, epoch, index, view, purpose) only."""
    return [
        torch.Generator().manual_seed(stable_seed(seed, key.epoch, key.index, key.view, purpose))
        for key in keys
    ]


def layer_of_vit(name: str, depth: int) -> int:
    """Layer of a parameter of a transformer with `depth` blocks under `blocks.i`, for layer decay.

    0: patch, position, class-token and length embeddings; i + 1: block i; depth + 1: final norm and head
    (BEiT, arXiv 2106.08254, as VideoMAE's fine-tuning uses it).
    """
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if re.search(r"embed|position|token", name) else depth + 1


def undecayed_names(module: nn.Module) -> set[str]:
    """Full names of the parameters that submodules spare from weight decay by a `no_weight_decay()` of their own."""
    return {
        f"{prefix}.{name}"
        for prefix, child in module.named_modules()
        if prefix and hasattr(child, "no_weight_decay")
        for name in child.no_weight_decay()
    }
