"""Optimisers from a config: who decays, and how fast each layer learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from onereel.config import OptimConfig


class Layered(Protocol):
    """What layer decay and weight decay ask of an objective."""

    num_layers: int

    def layer_of(self, name: str) -> int: ...

    def no_weight_decay(self) -> set[str]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def parameter_groups(objective: Layered, optim: OptimConfig) -> list[dict[str, Any]]:
    """Trainable parameters grouped by (layer, decays or not).

    One-dimensional parameters (biases, norms, scales) and those that `objective.no_weight_decay()` names get no
    weight decay. A group's `lr_scale` is `layer_decay ** (layers above it)`; `set_lr` multiplies the rate by it.
    """
    spared = objective.no_weight_decay()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        above = objective.num_layers - 1 - objective.layer_of(name)
        decays = parameter.ndim >= 2 and name not in spared
        group = groups.setdefault(
            (above, decays),
            {
                "params": [],
                "names": [],
                "weight_decay": optim.weight_decay if decays else 0.0,
                "lr_scale": optim.layer_decay**above,
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def create_optimizer(objective: Layered, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD (with momentum) over `parameter_groups`, fused: one kernel per group on CUDA and on CPU.

    Move the objective to its device first.
    """
    groups = parameter_groups(objective, optim)
    if optim.kind == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate for the step: `lr` times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
