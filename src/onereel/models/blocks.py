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
from onereel.tokens.positions import rotate

INIT_STD = 0.02  # as timm, InternVideo2 and FluxViT
NORM_EPS = 1e-6  # as VideoMAE and the ViT paper; RLT's 1e-5 doesn't fit VideoMAE's weights
MLP_RATIO = 4


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`, with which CLIP's weights were trained."""
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as in ViViT's training; by the exact one a toy model's logits move by 1.9e-4."""
    return F.gelu(x, approximate="tanh")


class RmsNorm(nn.RMSNorm):
    """`x / rms(x) * weight` over the last dimension, in float32 and of it, as autocast does with LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight, self.eps)


@dataclass(frozen=True)
class Style:
    """What differs between families of weights of one architecture.

    Attributes:
        norm_eps: of every norm.
        activation: of the MLPs.
        patch_bias: whether the patch embedding has a bias.
        input_norm: whether tokens are normalised before the first block (CLIP's ln_pre).
        norm: of tokens and patches.
        qkv_bias: whether queries, keys and values have biases.
        wide_qk_norm: whether queries and keys are normalised, over all heads at once.
        layer_scale: first value of a factor per channel of each branch; 0: there is none.
        init_std: of all linear weights, those that end a branch of block i divided by sqrt(2 i); 0: `reset_linears`.
    """

    norm_eps: float = NORM_EPS
    activation: Callable[[Tensor], Tensor] = F.gelu
    patch_bias: bool = True
    input_norm: bool = False
    norm: type[nn.LayerNorm | nn.RMSNorm] = nn.LayerNorm
    qkv_bias: bool = True
    wide_qk_norm: bool = False
    layer_scale: float = 0.0
    init_std: float = 0.0

    def make_norm(self, width: int) -> nn.Module:
        return self.norm(width, eps=self.norm_eps)


STYLES = {
    "vit": Style(),
    "clip": Style(1e-5, quick_gelu, patch_bias=False, input_norm=True),
    "vivit": Style(activation=tanh_gelu),
    # GELU is exact here. Where training ran the MLP of an extension that approximates it by tanh, it differs by 5e-4 at
    # most.
    "flux": Style(
        norm=RmsNorm, qkv_bias=False, wide_qk_norm=True, layer_scale=1e-5, init_std=INIT_STD
    ),
}
"""The ViT paper's; OpenAI's CLIP (arXiv 2103.00020); ViViT as in Scenic (2103.15691); InternVideo2 (2403.15377) and
FluxViT (2503.14237)."""


class Segments:
    """What attention must know of a packed batch: tokens per clip on the host, their bounds on the device, and the
    angles `(M, d / 2)` that queries and keys are turned by (see `rotate`), where positions are rotary.

    No dataclass: torch.compile would check each of its fields, and so compile again for new lengths.
    """

    def __init__(
        self, lengths: tuple[int, ...], cu_seqlens: Tensor, angles: Tensor | None = None
    ) -> None:
        self.lengths, self.cu_seqlens, self.angles = lengths, cu_seqlens, angles


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments, backend: str) -> Tensor:
    """`attention` of `segments`; here, and only here, are the lengths read (see `compile_blocks`)."""
    return attention(q, k, v, segments.lengths, segments.cu_seqlens, backend)


class Attention(nn.Module):
    """Multi-head self-attention within each clip.

    With `local_positions` the values themselves, times a factor and plus a shift per channel, are added to what they
    are mixed to (FluxViT's local positions, arXiv 2503.14237; factor 0 and shift 0 are plain attention).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qk_norm: bool,
        backend: str,
        style: Style = STYLES["vit"],
        local_positions: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.attend = attend
        self.wide_qk_norm = style.wide_qk_norm
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=style.qkv_bias)
        norms: list[nn.Module | None] = [None, None]
        if style.wide_qk_norm:
            norms = [style.make_norm(embed_dim) for _ in norms]
        elif qk_norm:
            norms = [nn.LayerNorm(embed_dim // num_heads, eps=NORM_EPS) for _ in norms]
        self.q_norm, self.k_norm = norms
        # 1 as in the released code, whose comment speaks of zero.
        self.local_scale = nn.Parameter(torch.ones(embed_dim)) if local_positions else None
        self.local_shift = nn.Parameter(torch.zeros(embed_dim)) if local_positions else None
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        q, k, v = self.heads(x, segments.angles)
        out = self.attend(q, k, v, segments, self.backend).flatten(1)
        if self.local_scale is not None and self.local_shift is not None:
            out = out + v.flatten(1) * self.local_scale + self.local_shift
        return self.proj(out)

    def heads(self, x: Tensor, angles: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both turned by the `angles` of `Segments`) and values of `x (M, D)`, each `(M, h, D / h)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            # Under autocast a norm returns float32; attention wants one dtype.
            q, k = (self._normed(n, y).to(v.dtype) for n, y in ((self.q_norm, q), (self.k_norm, k)))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.flatten(1)).unflatten(1, x.shape[1:]) if self.wide_qk_norm else norm(x)


class Block(nn.Module):
    """`x + scale * attention(norm(x))`, then the same with the MLP; `scale (2, M)` is drop path, or None."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qk_norm: bool,
        backend: str,
        style: Style = STYLES["vit"],
        local_positions: bool = False,
    ) -> None:
        super().__init__()
        self.activation = style.activation
        self.norm1 = style.make_norm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, qk_norm, backend, style, local_positions)
        self.norm2 = style.make_norm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, MLP_RATIO * embed_dim)
        self.fc2 = nn.Linear(MLP_RATIO * embed_dim, embed_dim)
        self.layer_scales = (
            nn.ParameterList(torch.full((embed_dim,), style.layer_scale) for _ in range(2))
            if style.layer_scale
            else None
        )

    def forward(self, x: Tensor, segments: Segments, scale: Tensor | None = None) -> Tensor:
        branch = self.attn(self.norm1(x), segments)
        x = x + self._scaled(branch, 0, scale)
        branch = self.fc2(self.activation(self.fc1(self.norm2(x))))
        return x + self._scaled(branch, 1, scale)

    def _scaled(self, branch: Tensor, index: int, scale: Tensor | None) -> Tensor:
        if self.layer_scales is not None:
            branch = branch * self.layer_scales[index]  # in float32, whatever the branch is
        return branch if scale is None else branch * scale[index, :, None]


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


def reset_rescaled(module: nn.Module, std: float) -> None:
    """Truncated normal weights and zero biases for all linear layers; the ends of block i's branches / sqrt(2 i).

    BEiT's rule (arXiv 2106.08254), which InternVideo2 and FluxViT keep.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for number, block in enumerate(blocks, start=1):
        with torch.no_grad():
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.fc2.weight.div_(math.sqrt(2 * number))


def compile_blocks(module: nn.Module, **options: Any) -> None:
    """torch.compile each block in `module` but for its attention, so that new lengths don't mean a new compilation."""
    for part in module.modules():
        if isinstance(part, Attention):
            part.attend = torch.compiler.disable(attend)
        elif isinstance(part, Block):
            part.compile(**options)
