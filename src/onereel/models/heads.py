"""From the features of a clip's tokens to its logits, or to a place in a space that texts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from onereel.errors import ConfigError
from onereel.tokens.packing import segment_mean, to_device
from onereel.types import Packed

HEAD_STD = 0.02  # as timm
NORM_EPS = 1e-6  # as in the encoder


def pool_tokens(features: Packed, pool: Literal["mean", "cls"]) -> Tensor:
    """One feature per clip `(B, D)`: the mean of its tokens, or its first, the class token."""
    if pool == "cls":
        return features.values[features.cu_seqlens[:-1]]
    return segment_mean(features.values, features.lengths, features.cu_seqlens)


class ClassificationHead(nn.Module):
    """Pool, normalise (if asked to), dropout, linear.

    Args:
        embed_dim: D of the encoder.
        num_classes: outputs.
        pool: "mean" or "cls", as in the encoder.
        dropout: probability of dropping a pooled value in training.
        norm: normalise the pooled feature (timm's fc_norm), for an encoder without a final norm.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        pool: Literal["mean", "cls"] = "mean",
        dropout: float = 0.0,
        norm: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}; allowed: 1 or more")
        if not 0 <= dropout < 1:
            raise ConfigError(f"head dropout is {dropout}; allowed: 0 or more, below 1")
        self.num_classes, self.pool, self.dropout = num_classes, pool, dropout
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS) if norm else nn.Identity()
        self.fc = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.fc.weight, std=HEAD_STD)
        nn.init.zeros_(self.fc.bias)

    def forward(
        self, features: Packed, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Logits `(B, num_classes)`; in training with dropout, one CPU generator per clip is drawn from."""
        pooled = self.norm(pool_tokens(features, self.pool))
        if self.training and self.dropout:
            pooled = pooled * self._dropout_scale(pooled, generators)
        return self.fc(pooled)

    def _dropout_scale(
        self, pooled: Tensor, generators: Sequence[torch.Generator] | None
    ) -> Tensor:
        batch, width = pooled.shape
        if generators is None or len(generators) != batch:
            raise ValueError(
                f"dropout draws: pass one generator per clip ({batch}), or call eval()"
            )
        draws = torch.stack([torch.rand(width, generator=g) for g in generators])
        return to_device((draws >= self.dropout) / (1 - self.dropout), pooled.device)

    def macs(self, batch_size: int) -> int:
        """Multiply-adds for `batch_size` clips."""
        return batch_size * self.fc.in_features * self.fc.out_features


class ProjectionHead(nn.Module):
    """Pool, and project without a bias into the space that video and text share.

    Args:
        embed_dim: D of the encoder.
        out_dim: E, width of that space.
        pool: "mean" or "cls", as in the encoder.
    """

    def __init__(self, embed_dim: int, out_dim: int, pool: Literal["mean", "cls"] = "cls") -> None:
        super().__init__()
        self.pool = pool
        self.fc = nn.Linear(embed_dim, out_dim, bias=False)
        nn.init.normal_(self.fc.weight, std=embed_dim**-0.5)  # as CLIP

    def forward(
        self, features: Packed, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """`(B, E)`, not normalised; nothing is drawn."""
        return self.fc(pool_tokens(features, self.pool))

    def macs(self, batch_size: int) -> int:
        """Multiply-adds for `batch_size` clips."""
        return batch_size * self.fc.in_features * self.fc.out_features
