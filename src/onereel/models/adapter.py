"""What stands between the halves of a factorised encoder: small, trained, and at first the identity.

Letters: F frames of a packed batch, W width of what the spatial half says of each, D width of a frame's vector.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.errors import unknown_name
from onereel.models.blocks import NORM_EPS, reset_linears
from onereel.tokens.packing import per_token, segment_softmax, segment_sum
from onereel.types import FrameFeatures

REDUCTION = 4  # width of the bottleneck: D / 4, as AIM (arXiv 2302.03024)
FUSED_LAYERS = 4  # EVL (arXiv 2208.03550) reads the last four
HEAD_DIM = 64


class Bottleneck(nn.Module):
    """`h + up(GELU(down(norm(x))))`, with `up` zero at first; x is h, or the vectors of several layers.

    Args:
        embed_dim: D.
        width: of the bottleneck; 0: D / 4.
        num_layers: vectors per frame that it reads: the frame's own, h, and those of layers below.
    """

    reads_tokens = False

    def __init__(self, embed_dim: int, width: int = 0, num_layers: int = 1) -> None:
        super().__init__()
        self.num_layers = num_layers
        width = width or embed_dim // REDUCTION
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.down = nn.Linear(num_layers * embed_dim, width)
        self.up = nn.Linear(width, embed_dim)
        reset_linears(self)
        nn.init.zeros_(self.up.weight)

    def forward(self, frames: FrameFeatures) -> Tensor:
        """`(F, W)` to `(F, D)`."""
        layers = frames.values.unflatten(1, (self.num_layers, -1))
        changed = self.up(F.gelu(self.down(self.norm(layers).flatten(1))))
        return layers[:, 0] + changed

    def macs(self, num_frames: int, num_tokens: int) -> int:
        """Multiply-adds for so many frames, which hold so many tokens."""
        return num_frames * (self.down.weight.numel() + self.up.weight.numel())


class TemporalConv(nn.Module):
    """The bottleneck, then `h + convolution(h)` over three tubelets in time, one filter per value, zero at first.

    A frame without tokens is absent, and counts as zeros, like what lies before the first frame.
    """

    num_layers = 1
    reads_tokens = False

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(embed_dim)
        self.weight = nn.Parameter(torch.zeros(3, embed_dim))
        self.bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, frames: FrameFeatures) -> Tensor:
        """`(F, D)` to `(F, D)`."""
        h = self.bottleneck(frames)
        clip = per_token(torch.arange(frames.batch_size, device=h.device), frames)
        time = frames.coordinates[:, 0]
        follows = (clip[1:] == clip[:-1]) & (time[1:] == time[:-1] + 1)
        before = F.pad(h[:-1] * follows[:, None], (0, 0, 1, 0))
        after = F.pad(h[1:] * follows[:, None], (0, 0, 0, 1))
        first, middle, last = self.weight
        return h + before * first + h * middle + after * last + self.bias

    def macs(self, num_frames: int, num_tokens: int) -> int:
        """As of `Bottleneck`."""
        return self.bottleneck.macs(num_frames, num_tokens) + num_frames * self.weight.numel()


class AttentionAdapter(nn.Module):
    """The frame's vector asks all tokens of the frame once more: `h + out(attention(h, tokens))`, `out` zero at first.

    Queries, keys and values are D / 4 wide.
    """

    num_layers = 1
    reads_tokens = True

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        width = embed_dim // REDUCTION
        self.num_heads = width // HEAD_DIM if width % HEAD_DIM == 0 else 1
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.query = nn.Linear(embed_dim, width)
        self.key = nn.Linear(embed_dim, width)
        self.value = nn.Linear(embed_dim, width)
        self.out = nn.Linear(width, embed_dim)
        reset_linears(self)
        nn.init.zeros_(self.out.weight)

    def forward(self, frames: FrameFeatures) -> Tensor:
        """`(F, D)` and the frames' tokens `(N, D)` to `(F, D)`."""
        h, tokens = frames.values, frames.tokens
        assert tokens is not None
        q = self.query(self.norm(h)).unflatten(1, (self.num_heads, -1))
        k, v = (
            part(tokens.values).unflatten(1, (self.num_heads, -1))
            for part in (self.key, self.value)
        )
        asked = per_token(q.float().movedim(0, -1), tokens).movedim(-1, 0)
        scores = (asked * k.float()).sum(dim=-1) * q.shape[-1] ** -0.5
        weights = segment_softmax(scores, tokens)
        summed = segment_sum(weights[..., None] * v.float(), tokens).to(h.dtype)
        return h + self.out(summed.flatten(1))

    def macs(self, num_frames: int, num_tokens: int) -> int:
        """As of `Bottleneck`."""
        width, embed_dim = self.query.weight.shape
        return 2 * width * (num_frames * embed_dim + num_tokens * (embed_dim + 1))


Adapter = Bottleneck | TemporalConv | AttentionAdapter

ADAPTERS: dict[str, Callable[[int], Adapter]] = {
    "bottleneck": Bottleneck,
    "temporal-conv": TemporalConv,
    "attention-pool": AttentionAdapter,
    "fusion": lambda embed_dim: Bottleneck(embed_dim, num_layers=FUSED_LAYERS),
}
"""The names of `model.adapter`, but for "none". The papers' adapter is not described: these are ours."""


def create_adapter(name: str, embed_dim: int) -> Adapter | None:
    """The adapter called `name`; None for "none"."""
    if name == "none":
        return None
    if name not in ADAPTERS:
        raise unknown_name("model.adapter", name, ["none", *ADAPTERS])
    return ADAPTERS[name](embed_dim)
