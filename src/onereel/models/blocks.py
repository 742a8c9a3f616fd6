"""The blocks of a pre-norm transformer on packed tokens, and the styles that families of weights differ by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.models.attention import attention

NORM_EPS = 1e-6  # as VideoMAE and the ViT paper; RLT's 1e-5 doesn't fit VideoMAE's weights
MLP_RATIO = 4


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, with which CLIP's weights were trained."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, JAX's default; with the exact one ViViT's logits differ in the fourth digit."""
    return F.gelu(x, approximate="tanh")


@dataclass(frozen=True)
class Style:
    """What differs between families of weights of one architecture.

    Attributes:
        norm_eps: of every LayerNorm.
        activation: of the MLPs.
        patch_bias: whether the patch embedding has a bias.
        input_norm: whether tokens are normalised before the first block (CLIP's ln_pre).
    """

    norm_eps: float = NORM_EPS
    activation: Callable[[Tensor], Tensor] = F.gelu
    patch_bias: bool = True
    input_norm: bool = False


STYLES = {
    "vit": Style(),
    "clip": Style(1e-5, quick_gelu, patch_bias=False, input_norm=True),
    "vivit": Style(activation=tanh_gelu),
}
"""The ViT paper's, OpenAI's CLIP (arXiv 2103.00020), and ViViT as in Scenic (2103.15691)."""


class Segments:
    """What attention must know of a packed batch: tokens per clip on the host, their bounds on the device.

    No dataclass: torch.compile would check each of its fields, and so compile again for new lengths.
    """

    def __init__(self, lengths: tuple[int, ...], cu_seqlens: Tensor) -> None:
        self.lengths, self.cu_seqlens = lengths, cu_seqlens


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments, backend: str) -> Tensor:
    """`attention` of `segments`; here, and only here, are the lengths read (see `compile_blocks`)."""
    return attention(q, k, v, segments.lengths, segments.cu_seqlens, backend)


class Attention(nn.Module):
    """Multi-head self-attention within each clip, with biases on q, k and v."""

    def __init__(self, embed_dim: int, num_heads: int, qk_norm: bool, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.attend = attend
        head_dim = embed_dim // num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.q_norm = nn.LayerNorm(head_dim, eps=NORM_EPS) if qk_norm else None
        self.k_norm = nn.LayerNorm(head_dim, eps=NORM_EPS) if qk_norm else None
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        q, k, v = self.heads(x)
        out = self.attend(q, k, v, segments, self.backend)
        return self.proj(out.flatten(1))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x (M, D)`, each `(M, h, D / h)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            # Under autocast a norm returns float32; attention wants one dtype.
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return q, k, v


class Block(nn.Module):
    """`x + scale * attention(norm(x))`, then the same with the MLP; `scale (2, M)` is drop path, or None."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qk_norm: bool,
        backend: str,
        style: Style = STYLES["vit"],
    ) -> None:
        super().__init__()
        self.activation = style.activation
        self.norm1 = nn.LayerNorm(embed_dim, eps=style.norm_eps)
        self.attn = Attention(embed_dim, num_heads, qk_norm, backend)
        self.norm2 = nn.LayerNorm(embed_dim, eps=style.norm_eps)
        self.fc1 = nn.Linear(embed_dim, MLP_RATIO * embed_dim)
        self.fc2 = nn.Linear(MLP_RATIO * embed_dim, embed_dim)

    def forward(self, x: Tensor, segments: Segments, scale: Tensor | None = None) -> Tensor:
        branch = self.attn(self.norm1(x), segments)
        x = x + (branch if scale is None else branch * scale[0, :, None])
        branch = self.fc2(self.activation(self.fc1(self.norm2(x))))
        return x + (branch if scale is None else branch * scale[1, :, None])


def reset_linears(module: nn.Module) -> None:
    """Xavier-uniform weights (query, key, value as matrices of their own) and zero biases for all linear layers."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            # Xavier's bound depends on the shape, so a fused qkv would start too small.
            fan_out = part.out_features // (3 if name.endswith("qkv") else 1)
            bound = math.sqrt(6 / (part.in_features + fan_out))
            nn.init.uniform_(part.weight, -bound, bound)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def compile_blocks(module: nn.Module, **options: Any) -> None:
    """torch.compile each block in `module` but for its attention, so that new lengths don't mean a new compilation."""
    for part in module.modules():
        if isinstance(part, Attention):
            part.attend = torch.compiler.disable(attend)
        elif isinstance(part, Block):
            part.compile(**options)
