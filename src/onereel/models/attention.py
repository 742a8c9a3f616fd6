"""Attention within the clips of a packed batch: one function, several back-ends, one reference.

Every back-end takes queries, keys, values `(M, h, d)` with the tokens per clip on the host (`lengths`) and their
cumulative sums on the device (`cu_seqlens`, int32 `(B + 1,)`), and returns `(M, h, d)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.errors import ConfigError, unknown_name

Backend = Callable[[Tensor, Tensor, Tensor, Sequence[int], Tensor], Tensor]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    cu_seqlens: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention of each token to the tokens of its own clip, scaled by d ** -0.5.

    Args:
        q, k, v: `(M, h, d)`.
        lengths: tokens of each clip; they sum to M.
        cu_seqlens: int32 `(B + 1,)`, cumulative `lengths` on the device.
        backend: "auto" (fastest exact one here), "sdpa", "varlen" (CUDA, fp16 or bf16), "reference".
    """
    if backend == "auto":
        backend = choose_backend(q, lengths)
    if backend not in BACKENDS:
        raise unknown_name("attention back-end", backend, [*BACKENDS, "auto"])
    return BACKENDS[backend](q, k, v, lengths, cu_seqlens)


def choose_backend(q: Tensor, lengths: Sequence[int]) -> str:
    """Equal lengths: one batched SDPA. Ragged: varlen where the device has it, else SDPA clip by clip."""
    ragged = len(set(lengths)) > 1
    return "varlen" if ragged and _has_varlen(q) else "sdpa"


def _has_varlen(q: Tensor) -> bool:
    # The flash kernel behind varlen_attn: half precision, compute capability 8.0 (A100) and newer.
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], cu_seqlens: Tensor
) -> Tensor:
    """The definition, clip by clip."""
    outputs = []
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q[start:stop], k[start:stop]) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v[start:stop]))
    return torch.cat(outputs)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], cu_seqlens: Tensor) -> Tensor:
    if len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0])
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)
    clips = zip(q.split(lengths), k.split(lengths), v.split(lengths))
    outputs = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in clip)) for clip in clips
    ]
    return torch.cat([out[0].transpose(0, 1) for out in outputs])


def _varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], cu_seqlens: Tensor) -> Tensor:
    if not _has_varlen(q):
        raise ConfigError(
            f"attention back-end 'varlen' got {q.dtype} on {q.device}; it needs float16 or bfloat16 on a CUDA device "
            "of compute capability 8.0 or newer. Use 'auto'."
        )
    # Not at the top: it loads torch.compile's machinery, a second of start that only CUDA should pay.
    from torch.nn.attention.varlen import varlen_attn

    longest = max(lengths)
    # Keywords only: positional slots changed between torch 2.10 and 2.11.
    out = varlen_attn(
        query=q,
        key=k,
        value=v,
        cu_seq_q=cu_seqlens,
        cu_seq_k=cu_seqlens,
        max_q=longest,
        max_k=longest,
    )
    assert isinstance(out, Tensor)  # a tuple only where auxiliary outputs were asked for
    return out


BACKENDS: dict[str, Backend] = {
    "sdpa": _sdpa,
    "varlen": _varlen,
    "reference": attention_reference,
}
