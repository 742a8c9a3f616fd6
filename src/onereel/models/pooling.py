"""From the features of a clip's tokens to one feature: their mean, the class token, or what attention makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.tokens.packing import per_token, segment_mean, segment_softmax, segment_sum
from onereel.types import Packed

Pool = Literal["mean", "cls", "attention"]
POOL_DIM = 768  # InternVideo2's and FluxViT's, whatever the encoder's width
POOL_HEADS = 16  # likewise
POOL_EPS = 1e-5  # likewise
POOL_STD = 0.02  # likewise


def pool_tokens(features: Packed, pool: Literal["mean", "cls"]) -> Tensor:
    """One feature per clip `(B, D)`: the mean of its tokens, or its first, the class token."""
    if pool == "cls":
        return features.values[features.cu_seqlens[:-1]]
    return segment_mean(features.values, features.lengths, features.cu_seqlens)


class AttentionPool(nn.Module):
    """One feature per clip: the mean of its tokens asks, and all its tokens answer (InternVideo2, arXiv 2403.15377).

    Args:
        embed_dim: D of the encoder; its tokens need no norm of their own.
        out_dim: E, width of the pooled feature.
    """

    def __init__(self, embed_dim: int, out_dim: int = POOL_DIM) -> None:
        super().__init__()
        if embed_dim % POOL_HEADS:
            raise ConfigError(
                f"attention pooling has {POOL_HEADS} heads, and embed_dim {embed_dim} is no multiple of that; "
                "use pool mean or cls, or another size of model"
            )
        self.out_dim = out_dim
        self.q_norm, self.k_norm, self.v_norm = (
            nn.LayerNorm(embed_dim, eps=POOL_EPS) for _ in range(3)
        )
        self.q, self.k, self.v = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
        self.proj = nn.Linear(embed_dim, out_dim)
        for part in (self.q, self.k, self.v, self.proj):
            nn.init.trunc_normal_(part.weight, std=POOL_STD)
            nn.init.zeros_(part.bias)

    def forward(self, features: Packed) -> Tensor:
        """`(B, E)` of features `(M, D)`, class tokens included."""
        if features.is_uniform:
            return self.of_equal_lengths(features.values.unflatten(0, (features.batch_size, -1)))
        q, k, v = self._by_heads(pool_tokens(features, "mean"), features.values)
        # Per clip, the softmax over its own tokens and the mixture of their values, without a loop.
        clip = per_token(torch.arange(features.batch_size, device=features.device), features)
        scores = (q.float()[clip] * k.float()).sum(-1) * q.shape[-1] ** -0.5  # (M, h)
        weights = segment_softmax(scores, features)
        mixed = segment_sum((weights[..., None] * v.float()).flatten(1), features)
        return self.proj(mixed.to(v.dtype))

    def of_equal_lengths(self, x: Tensor) -> Tensor:
        """`(B, E)` of features `(B, n, D)`."""
        q, k, v = self._by_heads(x.mean(dim=1, keepdim=True), x)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).flatten(1))

    def _by_heads(self, query: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of `(..., D)`, keys and values of tokens `(..., D)`: each `(..., h, d)`."""
        q = self.q(self.q_norm(query))
        k = self.k(self.k_norm(x))
        v = self.v(self.v_norm(x))
        heads = (POOL_HEADS, -1)
        return q.unflatten(-1, heads), k.unflatten(-1, heads), v.unflatten(-1, heads)

    def macs(self, lengths: Sequence[int]) -> int:
        """Multiply-adds for clips of `lengths` tokens, class tokens included."""
        d = self.proj.in_features
        return sum(2 * n * d**2 + 2 * n * d + d * (d + self.out_dim) for n in lengths)
