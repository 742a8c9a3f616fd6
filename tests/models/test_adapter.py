"""Adapters: the identity at first, of the sizes that are stated, and each against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.models.adapter import (
    ADAPTERS,
    AttentionAdapter,
    Bottleneck,
    TemporalConv,
    create_adapter,
)
from onereel.tokens.packing import cumulative_lengths
from onereel.types import FrameFeatures, Packed, TubeletGrid

DIM = 24
LENGTHS = (3, 2, 4)
TIMES = torch.tensor(
    [0, 1, 3, 1, 2, 0, 1, 2, 3]
)  # the first clip has no frame 2, the second begins at 1


def frames(width: int = DIM) -> FrameFeatures:
    device, num_frames = torch.device("cpu"), sum(LENGTHS)
    coordinates = F.pad(TIMES[:, None], (0, 2))
    per_frame = tuple(range(2, 2 + num_frames))
    tokens = Packed(
        torch.randn(sum(per_frame), DIM),
        per_frame,
        cumulative_lengths(per_frame, device),
        torch.zeros(sum(per_frame), 3, dtype=torch.long),
        TubeletGrid(1, 4, 4),
    )
    bounds = cumulative_lengths(LENGTHS, device)
    grid = TubeletGrid(4, 1, 1)
    values = torch.randn(num_frames, width)
    return FrameFeatures(values, LENGTHS, bounds, coordinates, grid, tokens=tokens)


def perturbed(adapter: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return adapter


@pytest.mark.parametrize("name", ADAPTERS)
def test_at_first_it_changes_nothing_and_all_of_it_soon_learns(name: str) -> None:
    adapter = create_adapter(name, DIM)
    assert adapter is not None
    given = frames(DIM * adapter.num_layers)
    out = adapter(given)
    assert torch.equal(out, given.values[:, :DIM])
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    for _ in range(2):  # behind zeros, the first step reaches only the last layer
        optimizer.zero_grad()
        adapter(given).square().sum().backward()
        optimizer.step()
    assert all((parameter.grad != 0).any() for parameter in adapter.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ADAPTERS)
def test_half_precision_is_near_and_gives_float32(name: str) -> None:
    adapter = create_adapter(name, DIM)
    assert adapter is not None
    given = frames(DIM * adapter.num_layers)
    wanted = perturbed(adapter)(given)
    with torch.autocast("cpu", torch.bfloat16):
        out = adapter(given)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, wanted, rtol=0.02, atol=0.02 * wanted.abs().max().item())


@pytest.mark.parametrize(
    ("dim", "width", "wanted"), [(768, 0, 295_872), (768, 64, 99_136), (1024, 0, 525_568)]
)
def test_the_bottleneck_has_the_stated_parameters(dim: int, width: int, wanted: int) -> None:
    adapter = Bottleneck(dim, width)
    assert sum(p.numel() for p in (*adapter.down.parameters(), *adapter.up.parameters())) == wanted


def test_others_are_small_too() -> None:
    counts = {}
    for name in ADAPTERS:
        adapter = create_adapter(name, 768)
        assert adapter is not None
        counts[name] = sum(p.numel() for p in adapter.parameters())
    assert counts["temporal-conv"] == counts["bottleneck"] + 4 * 768
    assert max(counts.values()) < 0.03 * 28_674_448
    assert create_adapter("none", 768) is None
    with pytest.raises(ConfigError, match="Did you mean 'bottleneck'"):
        create_adapter("bottlneck", 768)


def test_the_convolution_is_one_over_true_times() -> None:
    adapter, given = perturbed(TemporalConv(DIM)), frames()
    assert isinstance(adapter, TemporalConv)
    out = adapter(given)
    h = adapter.bottleneck(given)
    start = 0
    for length in LENGTHS:
        rows = slice(start, start + length)
        dense = torch.zeros(4, DIM).index_copy(0, TIMES[rows], h[rows])
        kernel = adapter.weight.T[:, None]
        moved = F.conv1d(dense.T[None], kernel, adapter.bias, padding=1, groups=DIM)[0].T
        assert torch.allclose(out[rows], h[rows] + moved[TIMES[rows]], atol=1e-5)
        start += length


def test_attention_pooling_is_cross_attention_within_each_frame() -> None:
    adapter, given = perturbed(AttentionAdapter(DIM)), frames()
    assert isinstance(adapter, AttentionAdapter)
    tokens = given.tokens
    assert tokens is not None
    out = adapter(given)
    for row, part in enumerate(tokens.values.split(tokens.lengths)):
        h = given.values[row : row + 1]
        q, k, v = adapter.query(adapter.norm(h)), adapter.key(part), adapter.value(part)
        pooled = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        assert torch.allclose(out[row : row + 1], h + adapter.out(pooled), atol=1e-5)


def test_fusion_reads_every_layer() -> None:
    adapter = perturbed(Bottleneck(DIM, num_layers=4))
    given = frames(4 * DIM)
    values = given.values.clone().requires_grad_()
    adapter(replace(given, values=values)).sum().backward()
    assert values.grad is not None
    assert (values.grad.unflatten(1, (4, DIM)).abs().sum((0, 2)) > 0).all()
