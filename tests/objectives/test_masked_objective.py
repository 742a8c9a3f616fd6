"""The error of hidden pixels, as published, and what the loop asks of every objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from onereel import build
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
)
from onereel.objectives import MaskedObjective
from onereel.objectives.masked import normalised_patches
from onereel.tokens.packing import kept_tokens
from onereel.tokens.tubelets import patchify
from onereel.training.optim import parameter_groups
from onereel.types import Batch, SampleKey

STD = torch.tensor(AugmentConfig().std)
MEAN = torch.tensor(AugmentConfig().mean)
CONFIG = RunConfig(
    data=DataConfig(num_frames=4, size=64),
    model=ModelConfig(name="vit_micro_patch16_64"),
    objective=ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.75),
)


def objective(config: RunConfig = CONFIG) -> MaskedObjective:
    built = build.build_objective(config, build.build_trainee(config, 0))
    assert isinstance(built, MaskedObjective)
    return built


def batch(size: int = 2, **fields: Any) -> Batch:
    """Noise; the upper half of the first clip stands still, so that its run lengths differ from the second."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(size, 4, 3, 64, 64, generator=generator)
    pixels[0, 1:, :, :32] = pixels[0, 0, :, :32]
    clips = (pixels - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    keys = [SampleKey(0, i) for i in range(size)]
    return Batch(clips, keys, **{"num_clips": size, **fields})


def published_target(pixels: Tensor) -> Tensor:
    """One patch `(3, t, p, p)` of pixels in 0..1, in words: less its mean, over its deviation, colour by colour."""
    out = torch.empty_like(pixels, dtype=torch.float64)
    for c, color in enumerate(pixels.double()):
        count = color.numel()
        mean = color.sum() / count
        variance = ((color - mean) ** 2).sum() / (count - 1)
        out[c] = (color - mean) / (variance.sqrt() + 1e-6)
    return out


@pytest.mark.parametrize("contrast", [1.0, 1e-3, 1e-6])
def test_targets_are_the_published_rule_on_pixels_in_0_to_1(contrast: float) -> None:
    """Also where the deviation is as small as the constant that is added to it."""
    generator = torch.Generator().manual_seed(1)
    pixels = 0.5 + contrast * (torch.rand(5, 3, 2, 4, 4, generator=generator).double() - 0.5)
    shape = (3, 1, 1, 1)
    normalised = ((pixels - MEAN.view(shape)) / STD.view(shape)).flatten(1)
    eps = (1e-6 / STD.double())[:, None]
    found, mean, scale = normalised_patches(normalised.float(), eps.float())
    assert found.dtype == torch.float32
    # In double precision the two are one; float32 pixels of low contrast have few bits left.
    tolerance = {1.0: 1e-5, 1e-3: 1e-3, 1e-6: 0.2}[contrast]
    expected = torch.stack([published_target(patch) for patch in pixels]).flatten(1)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    back = (found.unflatten(1, (3, -1)) * scale + mean).flatten(1)
    torch.testing.assert_close(back, normalised.float(), atol=1e-5, rtol=1e-5)


def test_a_patch_of_one_colour_is_no_target_at_all() -> None:
    found, _, _ = normalised_patches(torch.full((1, 96), 0.7), torch.full((3, 1), 5e-6))
    assert found.abs().max() < 0.1


def test_the_loss_is_the_mean_square_over_the_targets_of_each_clip() -> None:
    """Clips with more targets weigh no more than others; where all have as many it is the plain mean."""
    for tokens in (TokensConfig(), TokensConfig(kind="run-length")):
        masked = objective(replace(CONFIG, tokens=tokens)).eval()
        given = batch()
        output = masked._output(given)
        patches = patchify(given.clips * STD.view(3, 1, 1) + MEAN.view(3, 1, 1), 2, 16)
        hidden = kept_tokens(output.targets)
        means = []
        for clip, predicted in enumerate(output.predicted.split(output.targets.lengths)):
            chosen = patches[clip][hidden[clip]].unflatten(1, (3, 2, 16, 16))
            expected = torch.stack([published_target(patch).flatten() for patch in chosen])
            means.append((predicted - expected).square().mean())
        loss = masked(given)["loss"]
        torch.testing.assert_close(loss.double(), torch.stack(means).mean(), atol=1e-5, rtol=1e-5)
        assert (len(set(output.targets.lengths)) > 1) == (tokens.kind == "run-length")


def test_a_batch_without_clips_weighs_nothing_and_reaches_every_parameter() -> None:
    masked = objective()
    out = masked(batch(1, num_clips=0))
    out["loss"].backward()
    assert out["loss"].item() == 0
    assert out["stats"] == {"num_tokens": 0, "num_tokens_dense": 0, "flops": 0.0}
    assert all(p.grad is not None and not p.grad.any() for p in masked.parameters())
    assert out.keys() == masked(batch()).keys()


def test_statistics_count_what_is_computed() -> None:
    """32 tokens: 8 visible and 24 targets per clip; 3 x the forward pass, in FLOPs."""
    masked = objective()
    counted = masked(batch())["stats"]
    assert (counted["num_tokens"], counted["num_tokens_dense"]) == (64, 64)
    assert counted["flops"] == 2 * 3 * masked.model.macs((8, 8), (24, 24))


def test_the_loss_is_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = objective()(batch())
    assert out["loss"].dtype == torch.float32


def test_masks_follow_the_keys_and_the_seed() -> None:
    masked, given = objective().eval(), batch()
    first = masked(given)["loss"]
    assert masked(given)["loss"] == first
    later = replace(given, keys=[SampleKey(1, key.index) for key in given.keys])
    assert masked(later)["loss"] != first
    assert objective(replace(CONFIG, seed=1)).eval()(given)["loss"] != first


def test_layers_and_decay() -> None:
    """The decoder learns at the full rate; tables and one-dimensional parameters don't decay."""
    masked = objective()
    assert masked.layer_of("model.encoder.patch_embed.weight") == 0
    assert masked.layer_of("model.encoder.blocks.3.fc1.weight") == 4
    assert masked.layer_of("model.decoder.blocks.0.fc1.weight") == 5
    assert masked.layer_of("model.decoder.length_embed") == 5
    groups = parameter_groups(masked, OptimConfig(layer_decay=0.5))
    undecayed = {n for g in groups if g["weight_decay"] == 0 for n in g["names"]}
    assert "model.decoder.mask_token" in undecayed
    assert "model.decoder.head.weight" not in undecayed


EVEREST = replace(CONFIG, tokens=TokensConfig(kind="redundancy", keep_ratio=0.5))
DUAL = replace(CONFIG, objective=replace(CONFIG.objective, mask="tube", decode_ratio=0.5))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("config", [CONFIG, EVEREST, DUAL], ids=["random", "everest", "dual"])
def test_a_step_on_the_gpu_waits_for_nothing_and_has_the_loss_of_the_cpu(config: RunConfig) -> None:
    masked, given = objective(config).eval(), batch(4)
    expected = masked(given)["loss"].item()
    masked.cuda()
    moved = replace(given, clips=given.clips.cuda())
    assert masked(moved)["loss"].item() == pytest.approx(expected, abs=1e-3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss = masked(moved)["loss"]
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.item() == pytest.approx(expected, abs=2e-2)
    for name, parameter in masked.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert masked.model.encoder.patch_embed.weight.grad.abs().max() > 0


def test_a_clip_can_be_learned_by_heart() -> None:
    """On one clip under one mask the loss falls well below 1, that of predicting each patch's mean colour."""
    rows = torch.linspace(0, 6, 64)
    picture = torch.stack([torch.sin(rows[:, None] * k + rows) for k in (1.0, 1.5, 2.0)])
    clips = torch.stack([picture.roll(4 * t, -1) for t in range(4)])[None]
    masked = objective()
    optimizer = torch.optim.AdamW(masked.parameters(), lr=1e-3)
    losses = []
    for _ in range(100):
        given = Batch(clips, [SampleKey(0, 0)], num_clips=1)
        optimizer.zero_grad()
        loss = masked(given)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 < losses[0]
    shown = masked.eval().reconstruct(Batch(clips, [SampleKey(0, 0)], num_clips=1))
    assert shown.clips.shape == clips.shape
    hidden = shown.targets.view(2, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2)
    hidden = hidden.repeat_interleave(2, 0)[None, :, None].expand_as(clips)
    assert torch.equal(shown.clips[~hidden], clips[~hidden])
    error = (shown.clips - clips)[hidden].square().mean() / clips.var()
    assert 0 < error < 0.4


def test_patches_embedded_twice_under_autocast_give_every_weight_its_gradient() -> None:
    """Once without gradients, to be scored, and then with them: no cast of the weights may outlive the first."""
    tokens = TokensConfig(kind="redundancy", keep_ratio=0.5)
    learned = objective(replace(CONFIG, tokens=tokens)).train()
    gradients = []
    for enabled in (False, True):
        learned.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = learned(batch())["loss"]
        loss.backward()
        gradients.append({name: p.grad for name, p in learned.named_parameters()})
    full, half = gradients
    for name, gradient in full.items():
        assert gradient is not None, name
        assert half[name] is not None, name
        away = (half[name] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert away < 0.1, (name, float(away))
