"""What the loop asks of an objective, and what objectives share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Protocol

from onereel.seeding import numpy_generator
from onereel.types import Batch

VIT_TABLES = ("pos_embed", "temporal_embed", "cls_token", "length_embed")

BACKWARD_FLOPS = 2
"""The backward pass costs about two forward passes: one for the inputs' gradient, one for the weights'."""


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


class Budgeted(Protocol):
    """An objective that draws one token budget for each micro-batch."""

    training: bool
    seed: int
    budgets: tuple[int, ...]


def layer_of_vit(name: str, depth: int, temporal_depth: int = 0) -> int:
    """Layer of a parameter of a transformer with `depth` blocks under `blocks.i`, for layer decay.

    0: patch, position, class-token and length embeddings; i + 1: block i; depth + 1: final norm and head
    (BEiT, arXiv 2106.08254, as VideoMAE's fine-tuning uses it). The last `temporal_depth` blocks are those under
    `temporal.blocks.i`; with the first of them count the adapter before it, and its positions and class token.
    """
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    spatial_depth = depth - temporal_depth
    is_temporal = ".temporal." in name
    if block:
        return int(block.group(1)) + 1 + is_temporal * spatial_depth
    if ".adapter." in name or (is_temporal and name.rpartition(".")[2] in VIT_TABLES):
        return spatial_depth + 1
    if ".spatial.norm." in name:
        return spatial_depth
    is_embedding = (
        re.search(r"(patch_embed|patch_norms|input_norm|global_positions)\.", name)
        or name.rpartition(".")[2] in VIT_TABLES
    )
    return 0 if is_embedding else depth + 1


def undecayed_of_vit(names: Iterable[str]) -> set[str]:
    """Those of the parameter `names` that are position tables, class tokens or length embeddings: not decayed."""
    return {name for name in names if name.rpartition(".")[2] in VIT_TABLES}


def draw_budgets(budgets: tuple[int, ...], count: int, batch: Batch, seed: int) -> tuple[int, ...]:
    """`count` of `budgets`, in their order, for one micro-batch: the same on all ranks, whatever was drawn before."""
    generator = numpy_generator(seed, batch.keys[0].epoch, batch.number, "budgets")
    chosen = generator.choice(len(budgets), size=count, replace=False)
    return tuple(budgets[i] for i in sorted(chosen.tolist()))


def one_budget(objective: Budgeted, batch: Batch) -> int:
    """The budget of a micro-batch, drawn in training; 0 in evaluation and where there are none to draw."""
    if not (objective.training and objective.budgets):
        return 0
    return draw_budgets(objective.budgets, 1, batch, objective.seed)[0]


def stats(num_tokens: int, num_tokens_dense: int, flops: float) -> dict[str, float]:
    """The `"stats"` that an objective's `forward` returns."""
    return {"num_tokens": num_tokens, "num_tokens_dense": num_tokens_dense, "flops": flops}
