"""The encoder on packed tokens: a clip gets what it gets alone, and counts are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from torch.utils.flop_counter import FlopCounterMode

from onereel.errors import ConfigError
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.vit import VisionTransformer, prepend_token
from onereel.tokens.packing import pack, unpack
from onereel.types import Packed, TokenSelection, TubeletGrid

GRID = TubeletGrid(4, 2, 3)
WIDTH = 32
FLUX: dict[str, Any] = {
    "style": "flux",
    "positions": "global",
    "pool": "attention",
    "table_grid": TubeletGrid(6, 5, 5),
    "patch_norm": True,
    "local_positions": True,
    "final_norm": False,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"pool": "cls"},
    {"positions": "learned", "qk_norm": True},
    {"length_embedding": True, "pool": "cls"},
    {"positions": "sincos-1d", "final_norm": False},
    {"positions": "space-time", "style": "clip", "pool": "cls"},
    {"positions": "rope", "pool": "cls", "qk_norm": True},
    FLUX,
]


def encoder(grid: TubeletGrid = GRID, **options: Any) -> VisionTransformer:
    model = VisionTransformer(
        grid, tubelet_size=2, patch_size=4, embed_dim=WIDTH, depth=3, num_heads=2, **options
    )
    if model.length_embed is not None:
        torch.nn.init.normal_(model.length_embed)  # zeros would hide which row is read
    return model


def batch(
    size: int = 3, grid: TubeletGrid = GRID, runs: bool = True
) -> tuple[torch.Tensor, TokenSelection]:
    """Patches of ragged clips, and which are kept."""
    mask = torch.rand(size, grid.num_tokens) < 0.5
    mask[:, 0] = True
    lengths = torch.randint(1, grid.gt + 1, mask.shape) if runs else None
    return torch.randn(size, grid.num_tokens, 96), TokenSelection(mask, lengths)


def clip_of(selection: TokenSelection, index: slice | torch.Tensor) -> TokenSelection:
    runs = selection.run_lengths
    return TokenSelection(selection.keep_mask[index], None if runs is None else runs[index])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def gradients(
    model: VisionTransformer, features: Packed, weights: torch.Tensor
) -> list[torch.Tensor]:
    return list(torch.autograd.grad((features.values * weights).sum(), list(model.parameters())))


@pytest.mark.parametrize("options", VARIANTS)
def test_a_packed_batch_gives_each_clip_what_it_gets_alone_gradients_too(
    options: dict[str, Any],
) -> None:
    model = encoder(**options)
    patches, selection = batch()
    together = model(pack(patches, selection, GRID))
    weights = torch.randn_like(together.values)
    summed = gradients(model, together, weights)
    alone = []
    for b, (part, w) in enumerate(
        zip(together.values.split(together.lengths), weights.split(together.lengths))
    ):
        one = slice(b, b + 1)
        features = model(pack(patches[one], clip_of(selection, one), GRID))
        assert torch.allclose(features.values, part, atol=1e-5)
        alone.append(gradients(model, features, w))
    for whole, *parts in zip(summed, *alone):
        assert torch.allclose(whole, sum(parts), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", VARIANTS)
def test_permuting_clips_permutes_features(options: dict[str, Any]) -> None:
    model = encoder(**options)
    patches, selection = batch(4)
    order = torch.tensor([2, 0, 3, 1])
    features = model(pack(patches, selection, GRID))
    moved = model(pack(patches[order], clip_of(selection, order), GRID))
    segments = features.values.split(features.lengths)
    assert torch.allclose(moved.values, torch.cat([segments[b] for b in order]), atol=1e-6)


def test_tokens_know_their_place_not_their_number() -> None:
    # Within a clip, attention sees a set: the same tokens in another order give the same features.
    model = encoder()
    patches, selection = batch(1, runs=False)
    packed = pack(patches, selection, GRID)
    order = torch.randperm(packed.lengths[0])
    shuffled = replace(packed, values=packed.values[order], coordinates=packed.coordinates[order])
    assert torch.allclose(model(shuffled).values, model(packed).values[order], atol=1e-6)
    assert not torch.allclose(
        model(replace(packed, values=packed.values[order])).values,
        model(packed).values[order],
        atol=1e-3,
    )


def test_embedded_values_are_taken_as_they_are() -> None:
    model = encoder()
    packed = pack(*batch(), GRID)
    embedded = replace(packed, values=model.embed(packed.values))
    assert torch.equal(model(embedded, embedded=True).values, model(packed).values)


def test_a_class_token_stands_first_in_its_clip() -> None:
    packed = pack(*batch(), GRID)
    token = torch.full((96,), 7.0)
    with_token = prepend_token(packed, token)
    assert with_token.lengths == tuple(n + 1 for n in packed.lengths)
    assert with_token.run_lengths is not None
    starts = with_token.cu_seqlens[:-1].long()
    assert (with_token.values[starts] == 7).all()
    assert (with_token.coordinates[starts] == -1).all()
    assert (with_token.run_lengths[starts] == 0).all()
    rest = torch.ones(len(with_token.values), dtype=torch.bool).index_fill(0, starts, False)
    assert torch.equal(with_token.values[rest], packed.values)
    assert torch.equal(with_token.coordinates[rest], packed.coordinates)
    assert torch.equal(unpack(with_token, fill=3.0), unpack(packed, fill=3.0))


def test_length_embedding_off_is_identical_at_first_and_learns() -> None:
    plain = encoder()
    model = encoder(length_embedding=True)
    assert model.length_embed is not None
    model.load_state_dict({**plain.state_dict(), "length_embed": torch.zeros(4, WIDTH)})
    packed = pack(*batch(), GRID)
    features = model(packed)
    assert torch.equal(features.values, plain(packed).values)
    gradient = torch.autograd.grad(features.values.square().sum(), model.length_embed)[0]
    assert packed.run_lengths is not None
    seen = packed.run_lengths.unique() - 1
    assert (gradient[seen].abs().sum(1) > 0).all()


def test_length_embedding_starts_at_zero() -> None:
    table = create_encoder("vit_micro_patch16_32", num_frames=8, length_embedding=True).length_embed
    assert table is not None
    assert table.shape == (4, 96)
    assert not table.any()


def test_without_runs_each_token_stands_for_itself() -> None:
    model = encoder(length_embedding=True)
    packed = pack(*batch(runs=False), GRID)
    ones = replace(packed, run_lengths=torch.ones(len(packed.values), dtype=torch.int64))
    assert torch.equal(model(packed).values, model(ones).values)


def test_runs_longer_than_the_table_are_refused() -> None:
    model, longer = encoder(length_embedding=True), TubeletGrid(5, 2, 3)
    with pytest.raises(ConfigError, match=r"clips of 5 tubelets in time.*at most 8 frames"):
        model(pack(*batch(grid=longer), longer))


@pytest.mark.parametrize("positions", ["sincos", "sincos-1d", "learned", "global", "rope"])
def test_another_grid_is_welcome(positions: Any) -> None:
    model, other = encoder(positions=positions), TubeletGrid(6, 4, 3)
    assert model(pack(*batch(grid=other), other)).values.isfinite().all()


def test_weights_of_sincos_models_fit_any_grid() -> None:
    encoder(TubeletGrid(6, 4, 3)).load_state_dict(encoder().state_dict())


@pytest.mark.parametrize("options", VARIANTS)
def test_checkpointing_changes_nothing(options: dict[str, Any]) -> None:
    plain = encoder(drop_path_rate=0.5, **options)
    saving = encoder(drop_path_rate=0.5, checkpointing=True, **options)
    saving.load_state_dict(plain.state_dict())
    packed = pack(*batch(), GRID)
    results = []
    for model in (plain, saving):
        features = model(packed, generators(1, 2, 3))
        results.append((features.values, gradients(model, features, torch.ones(1))))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1]))


def test_drop_path_is_drawn_per_clip_from_its_own_generator() -> None:
    model = encoder(drop_path_rate=0.9)
    patches, selection = batch()
    together = model(pack(patches, selection, GRID), generators(1, 2, 3))
    one = slice(1, 2)
    alone = model(pack(patches[one], clip_of(selection, one), GRID), generators(2))
    assert torch.allclose(together.values.split(together.lengths)[1], alone.values, atol=1e-5)


def test_drop_path_ramps_and_keeps_the_mean() -> None:
    model = encoder(drop_path_rate=0.6)
    patches, selection = batch(1)
    packed = pack(patches.expand(4000, -1, -1), clip_of(selection, torch.zeros(4000).long()), GRID)
    scales = torch.stack(model._drop_path_scales(packed, generators(*range(4000))))  # type: ignore[arg-type]
    per_clip = scales[:, :, packed.cu_seqlens[:-1].long()]
    assert torch.equal(per_clip.repeat_interleave(packed.lengths[0], dim=-1), scales)
    dropped = (per_clip == 0).float().mean(-1)
    assert torch.allclose(dropped, torch.tensor([0.0, 0.3, 0.6])[:, None], atol=0.04)
    assert torch.allclose(per_clip.mean(-1), torch.ones(3, 2), atol=0.1)
    # The two branches and the clips are independent: a clip never loses all by one draw.
    assert (per_clip[2, 0] != per_clip[2, 1]).float().mean() == pytest.approx(0.48, abs=0.04)


def test_drop_path_is_off_in_evaluation_and_wants_generators_in_training() -> None:
    model = encoder(drop_path_rate=0.5)
    packed = pack(*batch(), GRID)
    with pytest.raises(ValueError, match=r"one generator per clip \(3\), or call eval"):
        model(packed)
    model.eval()
    assert torch.equal(model(packed).values, model(packed).values)


def test_equal_lengths_take_the_batched_path_to_the_same_features() -> None:
    model, reference = encoder(), encoder(attention="reference")
    reference.load_state_dict(model.state_dict())
    patches = torch.randn(3, GRID.num_tokens, 96)
    packed = pack(patches, TokenSelection(torch.ones(3, GRID.num_tokens).bool()), GRID)
    assert packed.is_uniform
    assert torch.allclose(model(packed).values, reference(packed).values, atol=1e-5)


@pytest.mark.parametrize("options", [{"pool": "cls"}, {"pool": "cls", "positions": "rope"}, FLUX])
def test_every_tensor_is_made_on_the_device_of_the_tokens(options: dict[str, Any]) -> None:
    # Mixing "meta" with the CPU raises, as mixing CUDA with the CPU does.
    packed = pack(*batch(), GRID)
    model = encoder(length_embedding=True, drop_path_rate=0.5, checkpointing=True, **options)
    head = ClassificationHead(WIDTH, 5, model.pool, dropout=0.5)
    on_meta = replace(
        packed,
        values=packed.values.to("meta"),
        cu_seqlens=packed.cu_seqlens.to("meta"),
        coordinates=packed.coordinates.to("meta"),
        run_lengths=torch.ones(len(packed.values), dtype=torch.int64, device="meta"),
    )
    features = model.to("meta")(on_meta, generators(1, 2, 3))
    logits = head.to("meta")(features, generators(1, 2, 3))
    logits.sum().backward()
    assert features.coordinates.is_meta
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("options", [{"qk_norm": True, "pool": "cls"}, {"positions": "rope"}, FLUX])
def test_bf16_autocast_runs_forward_and_backward(options: dict[str, Any]) -> None:
    model = encoder(length_embedding=True, **options)
    packed = pack(*batch(), GRID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = model(packed)
    assert features.values.dtype == torch.float32
    assert torch.allclose(features.values, model(packed).values, atol=0.15)
    assert all(g.isfinite().all() for g in gradients(model, features, torch.ones(1)))


# torch.compile provokes this warning itself, and hides it where warnings aren't errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("options", [{}, {**FLUX, "positions": "rope"}])
def test_compiled_features_are_equal_and_new_lengths_do_not_compile_again(
    options: dict[str, Any],
) -> None:
    torch.manual_seed(1)
    model = encoder(drop_path_rate=0.2, length_embedding=True, **options)
    batches = [pack(*batch(size), GRID) for size in (2, 3, 2, 4, 5, 3)]
    assert not any(tokens.is_uniform for tokens in batches)  # another path, compiled on its own
    draws = [range(b.batch_size) for b in batches]
    expected = [model(b, generators(*d)).values for b, d in zip(batches, draws)]
    torch._dynamo.utils.counters.clear()
    model.compile(backend="eager", dynamic=True)
    graphs = []
    for tokens, draw, values in zip(batches, draws, expected, strict=True):
        assert torch.allclose(model(tokens, generators(*draw)).values, values, atol=1e-6)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs == graphs[:1] * 6
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "embed_dim 24 is not a multiple of num_heads 5"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; allowed"),
        ({"pool": "clas"}, "unknown pool 'clas'. Did you mean 'cls'"),
        ({"style": "flux", "qk_norm": True}, "normalises queries and keys already"),
        ({"positions": "sincs"}, "unknown positions 'sincs'. Did you mean 'sincos'"),
        ({"attention": "spda"}, "unknown attention back-end 'spda'. Did you mean 'sdpa'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    settings = {"embed_dim": 24, "depth": 1, "num_heads": 2, **options}
    with pytest.raises(ConfigError, match=message):
        VisionTransformer(GRID, tubelet_size=2, patch_size=4, **settings)


# facts: multiply-adds of ViT-B/L/H at 16x224^2 with 1568, 784 and 196 tokens
PUBLISHED_MACS = {
    "base": (180_344_586_240, 78_842_953_728, 17_586_487_296),
    "large": (596_832_681_984, 268_204_769_280, 61_386_522_624),
    "huge": (1_190_993_592_320, 545_144_176_640, 126_844_928_000),
}


@pytest.mark.parametrize("size", PUBLISHED_MACS)
def test_multiply_adds_are_those_of_the_papers(size: str) -> None:
    with torch.device("meta"):
        model = create_encoder(f"vit_{size}_patch16_224", num_frames=16)
    assert tuple(model.macs((n,)) for n in (1568, 784, 196)) == PUBLISHED_MACS[size]
    assert model.macs((784, 196)) == sum(PUBLISHED_MACS[size][1:])


@pytest.mark.parametrize("options", [{"pool": "mean"}, {"pool": "cls"}, FLUX])
def test_multiply_adds_are_those_that_run(options: dict[str, Any]) -> None:
    # PyTorch's counter doesn't know the CPU's fused attention, and does know products.
    model = encoder(attention="reference", **options).eval()
    packed = pack(*batch(), GRID)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(packed)
    assert counter.get_total_flops() == 2 * model.macs(packed.lengths)


@pytest.mark.parametrize(
    ("size", "biases_of_q_and_v_only", "embed_dim", "depth"),
    [
        ("base", 86_534_800, 768, 12),
        ("large", 304_270_736, 1024, 24),
        ("huge", 632_119_440, 1280, 32),
    ],
)
def test_parameters_are_videomaes_and_the_bias_of_keys(
    size: str, biases_of_q_and_v_only: int, embed_dim: int, depth: int
) -> None:
    # VideoMAE has no bias on keys; ours has: 86,544,016 / 304,295,312 / 632,160,400 with 400 classes.
    with torch.device("meta"):
        model = create_encoder(f"vit_{size}_patch16_224", num_frames=16)
        head = ClassificationHead(model.embed_dim, 400)
    count = sum(p.numel() for part in (model, head) for p in part.parameters())
    assert count == biases_of_q_and_v_only + depth * embed_dim


def test_initial_weights_are_xavier_with_query_key_and_value_apart() -> None:
    model = encoder()
    block = model.blocks[0]
    for weight, fans in (
        (model.patch_embed.weight, 96 + WIDTH),
        (block.attn.qkv.weight, WIDTH + WIDTH),
        (block.fc1.weight, WIDTH + 4 * WIDTH),
    ):
        bound = (6 / fans) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert not block.attn.qkv.bias.any()


def test_patch_norm_forgets_brightness_and_contrast_and_costs_four_vectors() -> None:
    """With Dual PatchNorm a patch's own mean and scale do not matter; without, they do."""
    patches = torch.randn(5, 1536)
    for on in (True, False):
        encoder = create_encoder("vit_micro_patch16_32", num_frames=2, patch_norm=on)
        same = torch.allclose(
            encoder.embed(patches), encoder.embed(patches * 3 + 2), rtol=0, atol=1e-4
        )
        assert same == on
    with_it, without = (
        sum(
            p.numel()
            for p in create_encoder(
                "vit_micro_patch16_32", num_frames=2, patch_norm=on
            ).parameters()
        )
        for on in (True, False)
    )
    assert with_it - without == 2 * (1536 + 96)


def test_features_between_the_blocks_are_those_of_a_shallower_encoder() -> None:
    model = encoder(pool="cls")
    tokens = pack(*batch(), GRID)
    features, between = model.forward_layers(tokens, None, (0, 2))
    assert torch.equal(features.values, model(tokens).values)
    assert torch.equal(model.norm(between[1]), features.values)
    model.norm, model.blocks, model.depth = torch.nn.Identity(), model.blocks[:1], 1
    assert torch.equal(between[0], model(tokens).values)
