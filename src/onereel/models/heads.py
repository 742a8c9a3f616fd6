"""From the features of a clip's tokens to its logits, or to a place in a space that texts share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from onereel.errors import ConfigError
from onereel.models.pooling import POOL_EPS, AttentionPool, Pool, pool_tokens
from onereel.tokens.packing import to_device
from onereel.types import Packed

HEAD_STD = 0.02  # as timm
NORM_EPS = 1e-6  # as in the encoder


class TokenPool(nn.Module):
    """One feature per clip of the features of its tokens.

    Attributes:
        feature_dim: F, width of that feature.
    """

    def __init__(self, embed_dim: int, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.pooler = AttentionPool(embed_dim) if pool == "attention" else None
        self.feature_dim = embed_dim if self.pooler is None else self.pooler.out_dim

    def pooled(self, features: Packed) -> Tensor:
        """`(B, F)`, neither normalised nor projected: what budgets of a clip share."""
        if self.pooler is not None:
            return self.pooler(features)
        assert self.pool != "attention"
        return pool_tokens(features, self.pool)


class Head(TokenPool, ABC):
    """What turns the features of a clip's tokens into numbers, in two steps: pool, and a linear layer."""

    fc: nn.Linear

    @abstractmethod
    def logits(self, pooled: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """`(B, num_classes)` of that, or an embedding; one CPU generator per clip for dropout in training."""

    def macs(self, lengths: Sequence[int]) -> int:
        """Multiply-adds for clips of `lengths` tokens, class tokens not counted."""
        linear = len(lengths) * self.fc.in_features * self.fc.out_features
        return linear + (0 if self.pooler is None else self.pooler.macs([n + 1 for n in lengths]))


class ClassificationHead(Head):
    """Pool, normalise (if asked to), dropout, linear.

    Args:
        embed_dim: D of the encoder.
        num_classes: outputs.
        pool: "mean", "cls" or "attention" (see `AttentionPool`), as in the encoder.
        dropout: probability of dropping a pooled value in training.
        norm: normalise the pooled feature (timm's fc_norm), for an encoder without a final norm.
        zero: start with zero weights, so that all classes are alike (ViViT).
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        pool: Pool = "mean",
        dropout: float = 0.0,
        norm: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__(embed_dim, pool)
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}; allowed: 1 or more")
        if not 0 <= dropout < 1:
            raise ConfigError(f"head dropout is {dropout}; allowed: 0 or more, below 1")
        self.num_classes, self.dropout = num_classes, dropout
        eps = NORM_EPS if self.pooler is None else POOL_EPS
        self.norm = nn.LayerNorm(self.feature_dim, eps=eps) if norm else nn.Identity()
        self.fc = nn.Linear(self.feature_dim, num_classes)
        if zero:
            nn.init.zeros_(self.fc.weight)
        else:
            nn.init.trunc_normal_(self.fc.weight, std=HEAD_STD)
        nn.init.zeros_(self.fc.bias)

    def forward(
        self, features: Packed, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Logits `(B, num_classes)`; in training with dropout, one CPU generator per clip is drawn from."""
        return self.logits(self.pooled(features), generators)

    def logits(self, pooled: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """As of `Head`."""
        pooled = self.norm(pooled)
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


class ProjectionHead(Head):
    """Pool, and project without a bias into the space that video and text share.

    Args:
        embed_dim: D of the encoder.
        out_dim: E, width of that space.
        pool: as in the encoder.
    """

    def __init__(self, embed_dim: int, out_dim: int, pool: Pool = "cls") -> None:
        super().__init__(embed_dim, pool)
        self.fc = nn.Linear(self.feature_dim, out_dim, bias=False)
        nn.init.normal_(self.fc.weight, std=self.feature_dim**-0.5)  # as CLIP

    def forward(
        self, features: Packed, generators: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """`(B, E)`, not normalised; nothing is drawn."""
        return self.logits(self.pooled(features))

    def logits(self, pooled: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """As of `Head`."""
        return self.fc(pooled)


class BudgetHeads(nn.Module):
    """A head for each token budget (Flux, arXiv 2503.14237, section 3): pooling, norm and classifier of its own.

    A comment of the released scripts numbers the heads from the smallest budget; here as in its training code the first
    is that of the largest. Released heads share one norm, here each has its own: what a norm's factor and shift do, the
    linear layer behind it can do too, so the functions that heads can learn are the same.

    Args:
        heads: one per budget.
        budgets: tokens of a clip, falling.
    """

    def __init__(self, heads: Sequence[ClassificationHead], budgets: Sequence[int]) -> None:
        super().__init__()
        if len(heads) != len(budgets) or not heads:
            raise ValueError(f"{len(heads)} heads for {len(budgets)} budgets")
        self.budgets = tuple(budgets)
        self.heads = nn.ModuleList(heads)
        self.pool, self.num_classes = heads[0].pool, heads[0].num_classes

    def nearest(self, num_tokens: int) -> int:
        """Which head is for clips of so many tokens: that of the nearest budget, of two as near the larger."""
        distances = [abs(budget - num_tokens) for budget in self.budgets]
        return distances.index(min(distances))

    def head_of(self, num_tokens: int) -> ClassificationHead:
        """The head for clips of so many tokens."""
        head = self.heads[self.nearest(num_tokens)]
        assert isinstance(head, ClassificationHead)
        return head
