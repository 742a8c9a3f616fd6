"""Every attention back-end against the definition, gradients included."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from onereel.errors import ConfigError
from onereel.models import attention as module
from onereel.models.attention import attention, attention_reference, choose_backend
from onereel.tokens.packing import cumulative_lengths

RAGGED, EQUAL, SINGLE = (5, 1, 17, 9, 5), (8, 8, 8), (11,)


def qkv(
    lengths: tuple[int, ...],
    heads: int,
    dim: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """`(M, 3, h, d)`: queries, keys and values come as the views that a fused projection gives."""
    values = torch.randn(sum(lengths), 3, heads, dim)
    return values.to(device, dtype).requires_grad_()


def run(
    fused: torch.Tensor, lengths: tuple[int, ...], backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the gradient of a fixed weighting of it."""
    bounds = cumulative_lengths(lengths, fused.device)
    out = attention(*fused.unbind(1), lengths, bounds, backend)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).reshape(out.shape)
    return out, torch.autograd.grad((out.float() * weights).sum(), fused)[0]


@pytest.mark.parametrize("lengths", [RAGGED, EQUAL, SINGLE])
@pytest.mark.parametrize(("heads", "dim"), [(3, 32), (2, 80), (1, 64)])
@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_back_ends_equal_the_reference(
    lengths: tuple[int, ...], heads: int, dim: int, backend: str
) -> None:
    fused = qkv(lengths, heads, dim)
    out, gradient = run(fused, lengths, backend)
    expected, expected_gradient = run(fused, lengths, "reference")
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(gradient, expected_gradient, atol=1e-5)


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6).map(tuple))
@settings(max_examples=30, deadline=None)
def test_a_clip_gets_what_it_gets_alone(lengths: tuple[int, ...]) -> None:
    q, k, v = qkv(lengths, 2, 8).detach().unbind(1)
    together = attention(q, k, v, lengths, cumulative_lengths(lengths, q.device))
    for start, stop in itertools.pairwise([0, *itertools.accumulate(lengths)]):
        clip = (x[start:stop] for x in (q, k, v))
        alone = attention(*clip, (stop - start,), torch.tensor([0, stop - start]).int())
        assert torch.allclose(together[start:stop], alone, atol=1e-6)


def test_the_reference_is_softmax_attention() -> None:
    q, k, v = qkv((6,), 2, 8).detach().unbind(1)
    out = attention_reference(q, k, v, (6,), torch.tensor([0, 6]).int())
    for head in range(2):
        weights = (q[:, head] @ k[:, head].T / 8**0.5).softmax(-1)
        assert torch.allclose(out[:, head], weights @ v[:, head], atol=1e-6)


def test_on_the_cpu_auto_is_sdpa() -> None:
    assert choose_backend(torch.zeros(37, 2, 8, dtype=torch.bfloat16), RAGGED) == "sdpa"


def test_a_misspelt_back_end_is_answered() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'varlen'"):
        run(qkv(SINGLE, 1, 8), SINGLE, "varlan")


def test_the_varlen_call_fits_the_installed_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fake CUDA tensors check the signature, shapes and dtypes where there is no device to run on.
    monkeypatch.setattr(module, "_has_varlen", lambda q: True)
    with FakeTensorMode():
        fused = torch.empty(sum(RAGGED), 3, 2, 80, device="cuda", dtype=torch.bfloat16)
        bounds = torch.empty(len(RAGGED) + 1, dtype=torch.int32, device="cuda")
        out = attention(*fused.unbind(1), RAGGED, bounds)
    assert (out.shape, out.dtype) == ((sum(RAGGED), 2, 80), torch.bfloat16)


def test_varlen_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"got torch.float32 on cpu; it needs .* Use 'auto'"):
        run(qkv(SINGLE, 1, 8), SINGLE, "varlen")


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [RAGGED, EQUAL, SINGLE])
@pytest.mark.parametrize("dim", [32, 64, 80])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_varlen_equals_the_reference(
    lengths: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    fused = qkv(lengths, 4, dim, "cuda", dtype)
    out, gradient = run(fused, lengths, "varlen")
    expected, expected_gradient = run(fused.detach().float().requires_grad_(), lengths, "reference")
    assert out.dtype == dtype
    assert torch.allclose(out.float(), expected, atol=2e-2)
    assert torch.allclose(gradient.float(), expected_gradient, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [RAGGED, EQUAL])
def test_sdpa_on_the_gpu_equals_the_reference(lengths: tuple[int, ...]) -> None:
    fused = qkv(lengths, 3, 64, "cuda")
    for fast, slow in zip(run(fused, lengths, "sdpa"), run(fused, lengths, "reference")):
        assert torch.allclose(fast, slow, atol=1e-4)


@pytest.mark.gpu
def test_on_the_gpu_auto_is_varlen_for_ragged_half_precision_only() -> None:
    half = torch.zeros(37, 2, 64, dtype=torch.bfloat16, device="cuda")
    assert choose_backend(half, RAGGED) == "varlen"
    assert choose_backend(half, EQUAL) == "sdpa"
    assert choose_backend(half.float(), RAGGED) == "sdpa"
