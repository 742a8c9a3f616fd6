"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a module's trainable parameters.

    After each step: `average = decay * average + (1 - decay) * weight`, starting from the weights at creation.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._averages = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(
            list(self._averages.values()), list(self._parameters.values()), 1 - self.decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the module has the averages for weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weight = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages that `state_dict` gave; KeyError where the names differ."""
        for name, average in self._averages.items():
            average.copy_(state[name])
