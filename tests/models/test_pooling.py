"""Attention pooling of packed clips against the definition, clip by clip."""

from __future__ import annotations

import pytest
import torch

from onereel.errors import ConfigError
from onereel.models.heads import ClassificationHead, ProjectionHead
from onereel.models.pooling import AttentionPool
from onereel.tokens.packing import cumulative_lengths
from onereel.types import Packed, TubeletGrid


def features(lengths: tuple[int, ...], width: int = 32) -> Packed:
    values = torch.randn(sum(lengths), width)
    bounds = cumulative_lengths(lengths, values.device)
    return Packed(values, lengths, bounds, torch.zeros(len(values), 3).long(), TubeletGrid(4, 2, 2))


def random_pool() -> AttentionPool:
    """With norms and biases that are not ones and zeros, which would hide a mistake, and sharp attention."""
    pool = AttentionPool(32, 24)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return pool


def defined(pool: AttentionPool, clip: torch.Tensor) -> torch.Tensor:
    """The pooled feature of tokens `(n, D)`, head by head."""
    q = pool.q(pool.q_norm(clip.mean(0)))
    k, v = pool.k(pool.k_norm(clip)), pool.v(pool.v_norm(clip))
    outs = []
    for head in range(16):
        part = slice(2 * head, 2 * head + 2)
        weights = (k[:, part] @ q[part] / 2**0.5).softmax(0)
        outs.append(weights @ v[:, part])
    return pool.proj(torch.cat(outs))


@pytest.mark.parametrize("lengths", [(3, 1, 5), (4, 4), (1,)])
def test_a_clip_is_pooled_from_its_own_tokens_gradients_too(lengths: tuple[int, ...]) -> None:
    pool, packed = random_pool(), features(lengths)
    packed.values.requires_grad_()
    given = pool(packed)
    expected = torch.stack([defined(pool, clip) for clip in packed.values.split(lengths)])
    assert torch.allclose(given, expected, atol=1e-5)
    inputs = [packed.values, *pool.parameters()]
    weights = torch.randn_like(given)
    for a, b in zip(
        torch.autograd.grad((given * weights).sum(), inputs, retain_graph=True),
        torch.autograd.grad((expected * weights).sum(), inputs),
    ):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def test_order_within_a_clip_means_nothing() -> None:
    pool, packed = random_pool(), features((6,))
    order = torch.randperm(6)
    moved = Packed(packed.values[order], (6,), packed.cu_seqlens, packed.coordinates, packed.grid)
    assert torch.allclose(pool(moved), pool(packed), atol=1e-6)


@pytest.mark.parametrize("lengths", [(3, 1, 5), (4, 4)])
def test_bf16_autocast_is_near(lengths: tuple[int, ...]) -> None:
    pool, packed = AttentionPool(32, 24), features(lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = pool(packed)
    assert torch.allclose(rough.float(), pool(packed), atol=0.02)


def test_heads_put_their_norm_and_matrix_on_the_pooled_feature() -> None:
    packed = features((3, 1, 5))
    head = ClassificationHead(32, 4, "attention", norm=True)
    pooled = head.pooled(packed)
    assert pooled.shape == (3, 768)
    assert torch.equal(head(packed), head.fc(head.norm(pooled)))
    assert head.norm.eps == 1e-5
    projection = ProjectionHead(32, 8, "attention")
    assert torch.equal(projection(packed), projection.fc(projection.pooled(packed)))


def test_multiply_adds_count_the_class_token() -> None:
    head, pool = ClassificationHead(32, 4, "attention"), AttentionPool(32)
    assert head.macs((3, 5)) == pool.macs((4, 6)) + 2 * 768 * 4
    assert pool.macs((4,)) == 2 * 4 * 32**2 + 2 * 4 * 32 + 32 * (32 + 768)


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"embed_dim 24 is no multiple of that"):
        AttentionPool(24)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [(3, 1, 5), (4, 4)])
def test_the_gpu_pools_as_the_cpu_does_and_waits_for_nothing(lengths: tuple[int, ...]) -> None:
    pool, packed = random_pool(), features(lengths)
    expected = pool(packed)
    pool.cuda()
    on_device = packed.to("cuda")
    pool(on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        given = pool(on_device)
        given.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(given.cpu(), expected, rtol=1e-3, atol=1e-3)
