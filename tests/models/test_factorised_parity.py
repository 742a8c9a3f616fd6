"""The published factorised encoder written down once more, in plain matrices, and its published sizes and costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from onereel import build
from onereel.config import ModelConfig, RunConfig
from onereel.errors import ConfigError
from onereel.models.factorised import FactorisedEncoder
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.recipes import load_recipe
from onereel.tokens.packing import pack_all
from onereel.tokens.tubelets import patchify

Weights = dict[str, Tensor]


def tiny(num_frames: int = 8, **options: object) -> VideoModel:
    """As ViViT's recipe, small: width 96, 4 + 2 blocks, 3 heads, 32 pixels."""
    config = load_recipe("vivit_k400_vitb")
    settings = {"name": "vit_micro_patch16_32", "temporal_depth": 2, **options}
    config = replace(
        config,
        data=replace(config.data, num_frames=num_frames, size=32),
        model=replace(config.model, **settings),
    )
    return build.build_model(config, 5).eval()


def perturbed(model: VideoModel) -> VideoModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


# ------------------------------------------------------------------ Scenic's SpaceTimeViViT, section by section


def published_logits(clips: Tensor, weights: Weights) -> Tensor:
    """Logits of clips `(B, T, 3, H, W)`, by convolution, explicit attention and loops over clips and times."""
    kernel = weights["encoder.spatial.patch_embed.weight"].view(96, 3, 2, 16, 16)
    bias = weights["encoder.spatial.patch_embed.bias"]
    tubelets = F.conv3d(clips.transpose(1, 2), kernel, bias, stride=(2, 16, 16))
    logits = []
    for clip in tubelets:  # (D, n_t, h, w)
        frames = []
        for time in range(clip.shape[1]):
            tokens = clip[:, time].flatten(1).T
            frames.append(transformer(tokens, weights, "encoder.spatial", depth=4)[0])
        video = transformer(torch.stack(frames), weights, "encoder.temporal", depth=2)[0]
        logits.append(video @ weights["head.fc.weight"].T + weights["head.fc.bias"])
    return torch.stack(logits)


def transformer(tokens: Tensor, weights: Weights, name: str, depth: int) -> Tensor:
    """Class token, positions, pre-norm blocks, the last norm: `(n, D)` to `(1 + n, D)`."""
    # Scenic's class token has a row of its own in the table; ours holds the sum of the two.
    x = torch.cat(
        [weights[f"{name}.cls_token"][None], tokens + weights[f"{name}.pos_embed"]], dim=0
    )
    for index in range(depth):
        block = f"{name}.blocks.{index}"
        x = x + attend(norm(x, weights, f"{block}.norm1"), weights, f"{block}.attn")
        hidden = linear(norm(x, weights, f"{block}.norm2"), weights, f"{block}.fc1")
        x = x + linear(tanh_gelu(hidden), weights, f"{block}.fc2")
    return norm(x, weights, f"{name}.norm")


def attend(x: Tensor, weights: Weights, name: str, num_heads: int = 3) -> Tensor:
    q, k, v = linear(x, weights, f"{name}.qkv").chunk(3, dim=1)
    heads = []
    for part in torch.arange(96).chunk(num_heads):
        scores = q[:, part] @ k[:, part].T / math.sqrt(len(part))
        heads.append(torch.softmax(scores, dim=1) @ v[:, part])
    return linear(torch.cat(heads, dim=1), weights, f"{name}.proj")


def norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    return centred / (variance + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@torch.no_grad()
def test_logits_are_those_of_the_published_architecture() -> None:
    model, clips = perturbed(tiny()), torch.randn(2, 8, 3, 32, 32)
    logits = model(clips).logits
    assert logits.abs().max() > 0.1
    assert (logits - published_logits(clips, model.state_dict())).abs().max() < 1e-5


@torch.no_grad()
def test_logits_are_zero_at_the_start() -> None:
    assert (tiny()(torch.randn(1, 8, 3, 32, 32)).logits == 0).all()


@torch.no_grad()
def test_the_same_frame_at_all_times_is_seen_as_one_image() -> None:
    """Second oracle: the spatial half on one tubelet is the joint ViT of the same weights."""
    model = perturbed(tiny())
    encoder = model.encoder
    assert isinstance(encoder, FactorisedEncoder)
    config = load_recipe("vivit_k400_vitb_joint")
    config = replace(
        config,
        data=replace(config.data, num_frames=2, size=32),
        model=replace(config.model, name="vit_micro_patch16_32"),
    )
    joint = build.build_encoder(config)
    assert isinstance(joint, VisionTransformer)
    joint.load_state_dict(encoder.spatial.state_dict())
    clips = torch.randn(1, 8, 3, 32, 32)
    image = VideoModel(joint, model.head, model.selector)
    wanted = [image(clips[:, t : t + 2]).features.values[0] for t in (0, 2, 4, 6)]
    patches = pack_all(patchify(clips, 2, 16), encoder.grid)
    assert torch.allclose(encoder.frame_features(patches).values, torch.stack(wanted), atol=1e-5)


# ----------------------------------------------------------------------------------------------- sizes and costs


def on_meta(size: str, num_frames: int, pixels: int = 224, temporal_depth: int = 4) -> VideoModel:
    config = load_recipe("vivit_k400_vitb")
    config = replace(
        config,
        data=replace(config.data, num_frames=num_frames, size=pixels),
        model=replace(
            config.model, name=f"vit_{size}_patch16_{pixels}", temporal_depth=temporal_depth
        ),
    )
    with torch.device("meta"):
        return build.build_model(config, 400)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("size", "temporal_depth", "spatial", "temporal"),
    [
        ("base", 4, 86_388_480, 28_674_448),
        ("large", 4, 304_088_064, 50_815_376),
        ("large", 24, 304_088_064, 606_827_920 - 304_088_064),
    ],
)
def test_parameters_are_the_published_ones(
    size: str, temporal_depth: int, spatial: int, temporal: int
) -> None:
    model = on_meta(size, 32, temporal_depth=temporal_depth)
    encoder = model.encoder
    assert isinstance(encoder, FactorisedEncoder)
    # Each class token's row of a table of positions is added to the token in ours.
    assert count(encoder.spatial) + encoder.embed_dim == spatial
    assert count(encoder.temporal) + encoder.embed_dim + count(model.head) == temporal


@pytest.mark.parametrize(
    ("size", "num_frames", "pixels", "giga_macs"),
    [
        ("base", 8, 224, 70.86),
        ("base", 32, 224, 283.34),
        ("base", 64, 224, 566.66),
        ("base", 128, 224, 1133.30),
        ("base", 32, 256, 374.05),
        ("large", 8, 224, 247.1),
        ("large", 32, 224, 988.2),
        ("large", 128, 224, 3952.6),
    ],
)
def test_multiply_adds_are_the_published_ones(
    size: str, num_frames: int, pixels: int, giga_macs: float
) -> None:
    model = on_meta(size, num_frames, pixels)
    tokens = model.encoder.grid.num_tokens
    assert model.macs((tokens,)) / 1e9 == pytest.approx(giga_macs, rel=5e-3)
    assert model.macs((tokens, tokens)) == 2 * model.macs((tokens,))


@pytest.mark.parametrize("num_frames", [4, 8, 16])
def test_multiply_adds_are_those_of_the_clips_at_hand(num_frames: int) -> None:
    """Longer or shorter than those that the model is made for."""
    model, clips = tiny(8, attention="reference"), torch.randn(2, num_frames, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(clips)
    assert counter.get_total_flops() == 2 * model.macs(output.lengths, output.grid)


@pytest.mark.parametrize("frozen", [False, True])
def test_clips_of_other_lengths_cost_what_they_cost_a_model_made_for_them(frozen: bool) -> None:
    """A budget below all tokens too, whose tokens lie in more or fewer frames than the model's own."""
    model = on_meta("base", 32)
    for num_frames in (16, 64):
        other = on_meta("base", num_frames)
        model.encoder.frozen = other.encoder.frozen = frozen
        grid = other.encoder.grid
        for count in (grid.num_tokens, 1001, 5):
            assert model.macs((count,), grid) == other.macs((count,))
            assert model.step_macs((count,), 2, grid) == other.step_macs((count,), 2)


def test_a_frozen_step_costs_a_third_and_a_cached_one_next_to_nothing() -> None:
    full = on_meta("base", 32)
    assert isinstance(full.encoder, FactorisedEncoder)
    tokens = (full.encoder.grid.num_tokens,)
    assert full.encoder.temporal_macs((16,), 0) / 1e9 == pytest.approx(0.483, rel=5e-3)
    step = full.step_macs(tokens, 2)
    assert step == 3 * full.macs(tokens)
    full.encoder.frozen = True
    assert full.step_macs(tokens, 2) / step == pytest.approx(0.3345, abs=1e-3)
    assert step / full.step_macs((16,), 2, from_frames=True) == pytest.approx(590, rel=0.02)


@pytest.mark.parametrize(("num_frames", "share"), [(32, 0.584), (64, 0.459), (128, 0.397)])
def test_both_stages_cost_what_was_derived(num_frames: int, share: float) -> None:
    """8 frames in full, then more with the spatial half frozen, over these in full, for equal epochs."""
    first, second = on_meta("base", 8), on_meta("base", num_frames)
    assert isinstance(second.encoder, FactorisedEncoder)
    few, many = ((model.encoder.grid.num_tokens,) for model in (first, second))
    full = second.step_macs(many, 2)
    second.encoder.frozen = True
    assert (first.step_macs(few, 2) + second.step_macs(many, 2)) / full == pytest.approx(
        share, abs=1e-3
    )


def test_contradictory_settings_are_refused() -> None:
    for options, match in (
        ({"frozen": "spatial"}, "model.frozen is 'spatial'.*temporal_depth"),
        ({"adapter": "bottleneck"}, "model.adapter is 'bottleneck'"),
        ({"temporal_depth": 4, "frames_at_once": 8}, "nothing is frozen"),
        ({"temporal_depth": -1}, "temporal_depth"),
    ):
        with pytest.raises(ConfigError, match=match):
            ModelConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there are no weights"):
        RunConfig(model=ModelConfig(temporal_depth=4, temporal_init="random"))
    with pytest.raises(ConfigError, match="no blocks are taken"):
        RunConfig(model=ModelConfig(temporal_depth=4, pretrained="x", temporal_blocks="first"))
