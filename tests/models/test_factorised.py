"""The factorised encoder: each clip gets what it gets alone, frames without tokens are absent, frozen is frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from onereel.errors import ConfigError
from onereel.models.factorised import FactorisedEncoder
from onereel.models.registry import create_factorised
from onereel.tokens.packing import by_frame, pack, pack_all
from onereel.tokens.selector import Tube
from onereel.types import FrameFeatures, Packed, TokenSelection, TubeletGrid

GRID = TubeletGrid(4, 2, 2)
ADAPTERS = ["none", "bottleneck", "temporal-conv", "attention-pool", "fusion"]


def encoder(**options: Any) -> FactorisedEncoder:
    given: dict[str, Any] = {"temporal_depth": 2, "pool": "cls", "positions": "learned"}
    model = create_factorised("vit_micro_patch8_16", num_frames=8, **given | options)
    if model.adapter is not None:
        perturb(model.adapter)  # zeros would hide what it reads
    return model


def perturb(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)


def ragged(batch: int = 3, keep: float = 0.4) -> Packed:
    """Patches of clips in which some frames keep no token."""
    mask = torch.rand(batch, GRID.num_tokens) < keep
    mask[:, 5] = True
    mask[0, 8:12] = False
    return pack(torch.randn(batch, GRID.num_tokens, 384), TokenSelection(mask), GRID)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_frames_hold_the_tokens_of_one_time_each() -> None:
    packed = ragged()
    frames = by_frame(packed)
    assert sum(frames.lengths) == len(frames.tokens.lengths) == len(frames.coordinates)
    assert sum(frames.tokens.lengths) == len(packed.values)
    times = packed.coordinates[:, 0].split(packed.lengths)
    assert frames.lengths == tuple(len(t.unique()) for t in times)
    wanted = torch.cat([t.unique() for t in times])
    assert torch.equal(frames.coordinates[:, 0], wanted)
    for time, part in zip(wanted, packed.coordinates.split(frames.tokens.lengths), strict=True):
        assert (part[:, 0] == time).all()
    assert (frames.tokens.coordinates[:, 0] == 0).all()
    assert torch.equal(frames.tokens.coordinates[:, 1:], packed.coordinates[:, 1:])


def test_frame_lengths_are_counted_alike_on_host_and_device() -> None:
    packed = ragged()
    assert packed.frame_lengths is not None
    counted = by_frame(replace(packed, frame_lengths=None))
    known = by_frame(packed)
    assert counted.tokens.lengths == known.tokens.lengths
    assert counted.lengths == known.lengths
    part = packed.part(1, 3)
    assert by_frame(part).lengths == known.lengths[1:]


def test_exact_counts_per_frame_need_no_count() -> None:
    clips = torch.randn(2, 8, 3, 16, 16)
    selection = Tube(0.5).select(clips, None, GRID, generators(1, 2))
    assert selection.num_kept_per_frame == 2
    counts = selection.keep_mask.unflatten(1, (4, 4)).sum(2)
    assert (counts == 2).all()
    assert pack_all(torch.zeros(2, 16, 1), GRID).frame_lengths == (4,) * 8


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_clip_gets_what_it_gets_alone(adapter: str, pool: str) -> None:
    model = encoder(adapter=adapter, pool=pool)
    packed = ragged()
    together = model(packed)
    alone = [model(packed.part(b, b + 1)) for b in range(3)]
    assert together.lengths == tuple(one.lengths[0] for one in alone)
    assert torch.allclose(together.values, torch.cat([one.values for one in alone]), atol=1e-5)
    assert together.grid == TubeletGrid(4, 1, 1)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_frame_without_tokens_is_absent_and_others_keep_their_times(adapter: str) -> None:
    model = encoder(adapter=adapter)
    full = pack_all(torch.randn(1, 16, 384), GRID)
    features = model.frame_features(full)
    keep = torch.ones(1, 16, dtype=torch.bool)
    keep[0, 4:8] = False
    without = pack(full.values[None], TokenSelection(keep), GRID)
    seen = model.frame_features(without)
    assert seen.coordinates[:, 0].tolist() == [0, 2, 3]
    assert torch.allclose(seen.values, features.values[[0, 2, 3]], atol=1e-6)
    moved = replace(
        seen, coordinates=seen.coordinates - torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    )
    given = model.from_frames(seen).values
    assert not torch.allclose(given, model.from_frames(moved).values, atol=1e-4)


def test_frames_know_their_order() -> None:
    model = encoder()
    patches = torch.randn(1, 16, 384)
    swapped = patches.unflatten(1, (4, 4))[:, [1, 0, 2, 3]].flatten(1, 2)
    a, b = (model(pack_all(p, GRID)).values[0] for p in (patches, swapped))
    assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_frozen_gives_the_same_and_keeps_no_history(adapter: str) -> None:
    model = encoder(adapter=adapter)
    frozen = encoder(adapter=adapter, frozen=True, frames_at_once=3)
    frozen.load_state_dict(model.state_dict())
    packed = ragged()
    features = frozen.frame_features(packed)
    assert not features.values.requires_grad
    assert features.values.untyped_storage().nbytes() == features.values.numel() * 4
    assert torch.allclose(frozen(packed).values, model(packed).values, atol=1e-5)
    frozen.train()
    assert not any(module.training for module in frozen.spatial.modules())
    assert frozen.temporal.training
    frozen(packed).values.sum().backward()
    learned = {name for name, p in frozen.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in frozen.named_parameters() if "spatial." not in name}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_features_go_on_where_clips_would(adapter: str) -> None:
    model = encoder(adapter=adapter, frozen=True)
    packed = ragged()
    features = model.frame_features(packed)
    assert isinstance(features, FrameFeatures)
    assert torch.equal(model(features).values, model(packed).values)


def test_one_draw_of_drop_path_per_clip_for_all_its_frames() -> None:
    model = encoder(drop_path_rate=0.6).train()
    frame = torch.randn(1, 1, 4, 384)
    same = pack_all(frame.expand(2, 4, -1, -1).flatten(1, 2), GRID)
    features = model.frame_features(same, generators(1, 2)).values.unflatten(0, (2, 4))
    assert torch.allclose(features[0], features[0, :1].expand(4, -1), atol=1e-6)
    draws = [model.frame_features(same, generators(s, s)).values for s in range(8)]
    assert not all(torch.allclose(draw, draws[0], atol=1e-4) for draw in draws)


def test_pools_must_agree_and_fusion_needs_its_layers() -> None:
    cls, mean = encoder(), encoder(pool="mean")
    with pytest.raises(ConfigError, match="pools by"):
        FactorisedEncoder(cls.spatial, mean.temporal)
    with pytest.raises(ConfigError, match="sincos-1d"):
        encoder(positions="sincos-1d")


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_frozen_step_on_cuda_waits_for_nothing_and_gives_what_the_cpu_gives(adapter: str) -> None:
    model = encoder(adapter=adapter, frozen=True)
    packed = ragged()
    expected = model(packed).values
    model, packed = model.cuda(), packed.to("cuda")
    model(packed).values.sum().backward()  # what is made at the first call may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        given = model(packed).values
        given.sum().backward()
        with torch.autocast("cuda", torch.bfloat16):
            half = model(packed).values
            half.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(given.cpu(), expected, atol=1e-3)
    assert torch.allclose(half.float().cpu(), expected, atol=0.1, rtol=0.1)


@pytest.mark.gpu
def test_a_frozen_spatial_half_on_cuda_needs_a_fraction_of_the_memory() -> None:
    peaks = []
    for frozen in (False, True):
        model = create_factorised(
            "vit_small_patch16_224",
            num_frames=32,
            temporal_depth=4,
            pool="cls",
            positions="learned",
            adapter="bottleneck",
            frozen=frozen,
            frames_at_once=16 if frozen else 0,
        ).cuda()
        patches = pack_all(torch.randn(2, 16 * 196, 1536, device="cuda"), model.grid)
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        features = model(patches)
        assert features.values.isfinite().all()
        peaks.append(torch.cuda.max_memory_allocated() - held)
        del model, features, patches
    assert peaks[1] < 0.25 * peaks[0]
