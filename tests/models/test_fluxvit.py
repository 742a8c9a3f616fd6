"""FluxViT: the published sizes and costs, what its parts reduce to, and clips of any length at any budget."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from onereel import build
from onereel.config import ModelConfig, RunConfig, from_dict
from onereel.config.model import FAMILIES
from onereel.errors import ConfigError
from onereel.models.blocks import Attention, RmsNorm, Segments
from onereel.models.heads import ClassificationHead
from onereel.models.registry import SIZES, create_encoder
from onereel.models.video_model import VideoModel
from onereel.objectives.base import layer_of_vit, undecayed_of_vit
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.packing import cumulative_lengths
from onereel.types import TubeletGrid

# facts/flux.md section 8: GMACs at so many tokens of FluxViT, and section 4: M parameters, rows of the table.
TOKENS = (3072, 2048, 1536, 1024, 512)
PUBLISHED = {
    "small": ((153.9, 83.3, 55.2, 32.0, 13.6), 24, 7777),
    "base": ((440.1, 254.8, 176.6, 108.1, 49.3), 97, 12801),
}


def micro(num_frames: int, tokens: dict[str, Any], size: int = 56) -> VideoModel:
    """A FluxViT of four blocks in evaluation mode, on clips of 4 x 4 patches a frame."""
    config = from_dict(
        RunConfig, {"data": {"num_frames": num_frames, "size": size}, "tokens": tokens}
    )
    config = RunConfig(
        data=config.data,
        tokens=config.tokens,
        model=ModelConfig.named(f"fluxvit_micro_patch14_{size}"),
    )
    return build.build_model(config, 5).eval()


@pytest.mark.parametrize("size", PUBLISHED)
def test_costs_and_sizes_are_those_published(size: str) -> None:
    gmacs, millions, rows = PUBLISHED[size]
    with torch.device("meta"):
        encoder = create_encoder(f"fluxvit_{size}_patch14_224", num_frames=12)
        head = ClassificationHead(encoder.embed_dim, 400, encoder.pool, norm=True)
        model = VideoModel(encoder, head, group_dynamic())
    assert encoder.grid.num_tokens == TOKENS[0]
    for num_tokens, published in zip(TOKENS, gmacs):
        counted = encoder.macs((num_tokens,)) + head.macs((num_tokens,))
        assert counted / 1e9 == pytest.approx(published, rel=0.002)
    # The paper does not say what it counts; S with one head of three and its table is 25.6 M.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.07)
    assert encoder.patch_values == 588
    assert encoder.global_positions.pos_embed.shape == (rows, encoder.embed_dim)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("batch", [1, 2])
def test_any_length_of_clip_and_any_batch_keeps_exactly_its_budget(
    num_frames: int, batch: int
) -> None:
    """The released code crashes with 4 frames and a budget, with odd lengths, and with one clip."""
    model = micro(num_frames, {"kind": "group-dynamic", "token_budget": 9})
    clips = torch.randn(batch, num_frames, 3, 56, 56)
    with torch.no_grad():
        output = model(clips)
    assert output.lengths == (9,) * batch
    assert output.logits.isfinite().all()


def test_a_clip_gets_what_it_gets_alone() -> None:
    model = micro(8, {"kind": "group-dynamic", "token_budget": 33})
    clips = torch.randn(3, 8, 3, 56, 56)
    with torch.no_grad():
        together = model(clips).logits
        alone = torch.cat([model(clip[None]).logits for clip in clips])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_budget_of_all_tokens_is_no_selection() -> None:
    model = micro(8, {"kind": "group-dynamic", "token_budget": 128})
    dense = micro(8, {"kind": "all"})
    clips = torch.randn(2, 8, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(model(clips).logits, dense(clips).logits)


def test_one_model_takes_other_lengths_and_sizes_than_its_own() -> None:
    model = micro(8, {"kind": "all"})
    for num_frames, size in ((4, 112), (7, 28), (16, 42)):
        with torch.no_grad():
            logits = model(torch.randn(1, num_frames, 3, size, size)).logits
        assert logits.isfinite().all()


def test_weights_fit_the_same_model_on_any_grid() -> None:
    micro(4, {"kind": "all"}, size=28).load_state_dict(micro(8, {"kind": "all"}).state_dict())


def attention(local_positions: bool) -> Attention:
    torch.manual_seed(1)
    return Attention(32, 2, False, "auto", local_positions=local_positions)


def test_local_positions_of_factor_and_shift_zero_are_plain_attention() -> None:
    plain, local = attention(False), attention(True)
    assert local.local_scale is not None
    assert local.local_shift is not None
    assert torch.equal(local.local_scale, torch.ones(32))  # as released
    assert not local.local_shift.any()
    x, segments = (
        torch.randn(7, 32),
        Segments((3, 4), cumulative_lengths((3, 4), torch.device("cpu"))),
    )
    assert not torch.allclose(local(x, segments), plain(x, segments), atol=1e-3)
    torch.nn.init.zeros_(local.local_scale)
    assert torch.equal(local(x, segments), plain(x, segments))


def test_local_positions_add_a_share_of_the_tokens_own_value() -> None:
    plain, local = attention(False), attention(True)
    assert local.local_scale is not None
    assert local.local_shift is not None
    torch.nn.init.normal_(local.local_scale)
    torch.nn.init.normal_(local.local_shift)
    x, segments = torch.randn(4, 32), Segments((4,), cumulative_lengths((4,), torch.device("cpu")))
    values = x @ plain.qkv.weight[64:].T + plain.qkv.bias[64:]
    added = (values * local.local_scale + local.local_shift) @ plain.proj.weight.T
    assert torch.allclose(local(x, segments), plain(x, segments) + added, atol=1e-5)


def test_rms_norm_gives_float32_of_any_input() -> None:
    norm, x = RmsNorm(16, eps=1e-6), torch.randn(5, 16)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    assert torch.allclose(norm(x), expected, atol=1e-6)
    assert norm(x.bfloat16()).dtype == torch.float32


def test_branches_start_small_and_their_last_matrices_shrink_with_depth() -> None:
    encoder = create_encoder("fluxvit_small_patch14_28", num_frames=2)
    for number, block in enumerate(encoder.blocks, start=1):
        assert block.attn.qkv.bias is None
        assert block.attn.q_norm.weight.shape == (384,)
        for scale in block.layer_scales:
            assert torch.equal(scale, torch.full((384,), 1e-5))
        for weight in (block.attn.proj.weight, block.fc2.weight):
            assert weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.02)
        assert block.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_layer_scale_stays_in_float32_under_autocast() -> None:
    encoder = create_encoder("fluxvit_micro_patch14_28", num_frames=2)
    block, branch = encoder.blocks[0], torch.randn(3, 96).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaled = block._scaled(branch, 0, None)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, branch.float() * 1e-5)


def test_layer_decay_and_weight_decay_know_the_table() -> None:
    """In the released code the table's factor learns as fast as the head, since no name of it is known."""
    encoder = create_encoder("fluxvit_micro_patch14_28", num_frames=2)
    names = [name for name, _ in encoder.named_parameters() if "global_positions" in name]
    assert len(names) == 3
    assert {layer_of_vit(name, encoder.depth) for name in names} == {0}
    assert "global_positions.pos_embed" in undecayed_of_vit(names)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rope"])
def test_other_positions_are_options(positions: str) -> None:
    config = RunConfig(model=ModelConfig.named("fluxvit_micro_patch14_224", positions=positions))
    with torch.device("meta"):
        encoder = build.build_encoder(config)
    assert encoder.positions == positions
    assert encoder.global_positions is None


def test_the_name_is_the_whole_model() -> None:
    made = create_encoder("fluxvit_micro_patch14_28", num_frames=2)
    config = RunConfig(model=ModelConfig.named("fluxvit_micro_patch14_28"))
    built = build.build_encoder(config)
    assert (made.pool, made.positions, made.tubelet_size) == ("attention", "global", 1)
    assert (built.pool, built.positions, built.tubelet_size) == ("attention", "global", 1)
    assert made.state_dict().keys() == built.state_dict().keys()
    assert "norm.weight" not in made.state_dict()


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_a_fluxvit(size: str) -> None:
    with torch.device("meta"):
        encoder = create_encoder(f"fluxvit_{size}_patch14_224", num_frames=8)
        ClassificationHead(encoder.embed_dim, 2, encoder.pool)
    assert encoder.grid == TubeletGrid(8, 16, 16)


def test_a_name_with_another_familys_fields_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fluxvit models have style flux: ModelConfig.named"):
        ModelConfig(name="fluxvit_micro_patch14_224")


def test_a_new_name_brings_its_familys_fields_and_keeps_the_others() -> None:
    plain = ModelConfig(name="vit_small_patch16_112", patch_norm=True, drop_path_rate=0.1)
    flux = plain.renamed("fluxvit_small_patch14_224")
    assert flux == ModelConfig.named("fluxvit_small_patch14_224", drop_path_rate=0.1)
    back = flux.renamed("vit_small_patch16_112")
    assert back == ModelConfig(name="vit_small_patch16_112", drop_path_rate=0.1)
    assert plain.renamed("vit_tiny_patch16_112").patch_norm


@pytest.mark.gpu
@pytest.mark.parametrize("positions", ["global", "rope"])
def test_the_gpu_gives_the_logits_of_the_cpu_and_waits_for_nothing(positions: str) -> None:
    torch.manual_seed(0)
    config = from_dict(
        RunConfig,
        {
            "data": {"num_frames": 5, "size": 56},
            "tokens": {"kind": "group-dynamic", "token_budget": 33},
            "model": {
                **FAMILIES["fluxvit"],
                "name": "fluxvit_micro_patch14_56",
                "positions": positions,
            },
        },
    )
    model = build.build_model(config, 5)
    clips = torch.randn(3, 5, 3, 56, 56)
    expected = model(clips).logits
    model.cuda()
    on_device = clips.cuda()
    model(on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        exact = model(on_device).logits
        with torch.autocast("cuda", dtype=torch.bfloat16):
            half = model(on_device).logits
        half.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(exact.cpu(), expected, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(half.float().cpu(), expected, rtol=5e-2, atol=5e-2)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
