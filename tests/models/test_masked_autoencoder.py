"""The masked autoencoder against transformers' VideoMAE, and what must hold of it whatever its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onereel import build
from onereel.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TokensConfig
from onereel.errors import ConfigError
from onereel.models.masked_autoencoder import MaskedAutoencoder, published_macs
from onereel.models.registry import DECODER_SIZES, SIZES
from onereel.objectives import MaskedObjective
from onereel.seeding import clip_generators
from onereel.tokens.masking import Picked, Split
from onereel.tokens.packing import pack_clips
from onereel.types import Batch, Packed, SampleKey

SMALL = RunConfig(
    data=DataConfig(num_frames=8, size=64),
    model=ModelConfig(name="vit_micro_patch16_64"),
    objective=ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.75),
)


def autoencoder(**sections: Any) -> MaskedAutoencoder:
    """The small model; `model={"positions": "sincos-1d"}` overrides fields."""
    values = {
        name: type(getattr(SMALL, name))(**{**vars(getattr(SMALL, name)), **fields})
        for name, fields in sections.items()
    }
    config = RunConfig(**{**vars(SMALL), **values})
    return build.build_autoencoder(config).eval()


def clips(batch: int = 2, seed: int = 0) -> Tensor:
    """Normalised floats `(B, 8, 3, 64, 64)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 8, 3, 64, 64, generator=generator)


def keys(batch: int = 2) -> list[SampleKey]:
    return [SampleKey(0, i) for i in range(batch)]


# --------------------------------------------------------------------------------------- transformers' VideoMAE


def copy_linear(ours: nn.Linear, theirs: nn.Linear) -> None:
    ours.weight.copy_(theirs.weight)
    if theirs.bias is not None:
        ours.bias.copy_(theirs.bias)


def copy_blocks(ours: nn.ModuleList, theirs: nn.ModuleList) -> None:
    for block, layer in zip(ours, theirs, strict=True):
        q, k, v = (getattr(layer.attention.attention, name) for name in ("query", "key", "value"))
        block.attn.qkv.weight.copy_(torch.cat([q.weight, k.weight, v.weight]))
        block.attn.qkv.bias.copy_(torch.cat([q.bias, torch.zeros_like(q.bias), v.bias]))
        for part, name in (
            (block.attn.proj, layer.attention.output.dense),
            (block.fc1, layer.intermediate.dense),
            (block.fc2, layer.output.dense),
            (block.norm1, layer.layernorm_before),
            (block.norm2, layer.layernorm_after),
        ):
            copy_linear(part, name)


@torch.no_grad()
def copy_weights(ours: MaskedAutoencoder, theirs: Any) -> None:
    """From `VideoMAEForPreTraining`; its decoder orders a patch's values (t, h, w, c), ours (c, t, h, w)."""
    convolution = theirs.videomae.embeddings.patch_embeddings.projection
    ours.encoder.patch_embed.weight.copy_(convolution.weight.flatten(1))
    ours.encoder.patch_embed.bias.copy_(convolution.bias)
    copy_blocks(ours.encoder.blocks, theirs.videomae.encoder.layer)
    copy_linear(ours.encoder.norm, theirs.videomae.layernorm)
    copy_linear(ours.decoder.embed, theirs.encoder_to_decoder)
    ours.decoder.mask_token.copy_(theirs.mask_token.flatten())
    copy_blocks(ours.decoder.blocks, theirs.decoder.decoder_layers)
    copy_linear(ours.decoder.norm, theirs.decoder.norm)
    head = theirs.decoder.head
    ours.decoder.head.weight.copy_(head.weight.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1))
    ours.decoder.head.bias.copy_(head.bias.unflatten(0, (-1, 3)).T.flatten())


@pytest.fixture(scope="module")
def videomae() -> Any:
    """A small `VideoMAEForPreTraining` with random weights, biases and norms too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=64,
        num_frames=8,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=384,
        decoder_hidden_size=96,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=384,
        use_mean_pooling=False,
        layer_norm_eps=1e-6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.VideoMAEForPreTraining(config).eval()
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.1)
    return model


def test_loss_and_gradients_are_those_of_transformers(
    videomae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same mask: loss within 1e-5, and so are its gradients where a weight has a counterpart."""
    ours = autoencoder(model={"positions": "sincos-1d"})
    copy_weights(ours, videomae)
    objective = MaskedObjective(ours, std=(0.229, 0.224, 0.225))
    hidden = torch.ones(2, 64, dtype=torch.bool)
    hidden.scatter_(1, torch.tensor([[3, 17, 40, 63, 9], [0, 1, 2, 62, 30]]), False)

    def same_mask(*args: Any) -> Split:
        place = torch.arange(hidden.numel()).view_as(hidden)
        return Split(Picked((5, 5), place[~hidden]), Picked((59, 59), place[hidden]))

    monkeypatch.setattr("onereel.tokens.masking.Masking.split", same_mask)
    batch = Batch(clips(), keys(), num_clips=2)
    loss = objective(batch)["loss"]
    expected = videomae(batch.clips, bool_masked_pos=hidden).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    for mine, theirs in (
        (
            ours.encoder.patch_embed,
            videomae.videomae.embeddings.patch_embeddings.projection,
        ),
        (ours.encoder.blocks[0].fc1, videomae.videomae.encoder.layer[0].intermediate.dense),
        (ours.decoder.embed, videomae.encoder_to_decoder),
    ):
        wanted = theirs.weight.grad.flatten(1)
        error = (mine.weight.grad - wanted).norm() / wanted.norm()
        assert error < 1e-3


# --------------------------------------------------------------------------------------- counts that are published

PUBLISHED_PARAMETERS = {
    "small": (24_029_376, 21_879_936),
    "base": (94_210_944, 86_227_200),
    "large": (317_782_016, 303_860_736),
    "huge": (653_104_256, 631_607_040),
}
"""Masked autoencoder and encoder alone, with biases on q and v."""


def full_size(size: str) -> MaskedAutoencoder:
    config = RunConfig(
        model=ModelConfig(name=f"vit_{size}_patch16_224"), objective=ObjectiveConfig(kind="masked")
    )
    with torch.device("meta"):
        return build.build_autoencoder(config)


@pytest.mark.parametrize("size", PUBLISHED_PARAMETERS)
def test_parameters_are_the_published_ones_but_for_the_bias_on_k(size: str) -> None:
    """A bias on k changes no softmax (it adds the same to all of a query's scores); ours are simply there."""
    model = full_size(size)
    encoder, decoder = (sum(p.numel() for p in part.parameters()) for part in model.children())
    of_k = [part.depth * part.embed_dim for part in (model.encoder, model.decoder)]
    both, alone = PUBLISHED_PARAMETERS[size]
    assert encoder - of_k[0] == alone
    assert encoder + decoder - sum(of_k) == both


@pytest.mark.parametrize(
    ("size", "visible", "targets", "gmacs"),
    [
        *(("small", 160, 1408, 11.54), ("small", 156, 314, 5.74)),
        *(("base", 160, 1408, 35.44), ("base", 156, 314, 19.78), ("base", 392, 1176, 57.44)),
        *(("large", 160, 1408, 83.03), ("large", 156, 314, 57.92)),
        *(("huge", 160, 1408, 150.77), ("huge", 156, 314, 114.03)),
        ("base", 160, 704, 24.8),
    ],
)
def test_multiply_adds_are_the_published_ones(
    size: str, visible: int, targets: int, gmacs: float
) -> None:
    """In G, as the papers count: all 1568 patches embedded. Ours embeds only what it trains on."""
    model = full_size(size)
    published = published_macs(model, (visible,), (targets,)) / 1e9
    assert published == pytest.approx(gmacs, abs=0.06 if gmacs == 24.8 else 0.006)
    spared = (1568 - visible) * 1536 * model.encoder.embed_dim
    assert published_macs(model, (visible,), (targets,)) - model.macs((visible,), (targets,)) == (
        spared
    )


def test_the_parts_of_a_vit_b_are_the_published_ones() -> None:
    """EVEREST's ViT-B in G: embedding 1.850, encoder blocks 13.698, decoder blocks 4.005, pixel head 0.185."""
    model = full_size("base")
    blocks = 12 * (12 * 156 * 768**2 + 2 * 156**2 * 768)
    assert blocks / 1e9 == pytest.approx(13.698, abs=0.0005)
    assert model.encoder.macs((156,), 1568) - blocks == 1568 * 1536 * 768
    decoder = 4 * (12 * 470 * 384**2 + 2 * 470**2 * 384)
    assert decoder / 1e9 == pytest.approx(4.005, abs=0.0005)
    assert model.decoder.macs((156,), (314,)) - decoder == 156 * 768 * 384 + 314 * 384 * 1536


def test_every_size_has_a_decoder() -> None:
    assert DECODER_SIZES.keys() == SIZES.keys()
    widths = {"small": 192, "base": 384, "large": 512, "huge": 640}
    assert {name: DECODER_SIZES[name].embed_dim for name in widths} == widths
    assert all(size.depth == 4 for size in DECODER_SIZES.values())


# --------------------------------------------------------------------------------------- what must hold


def run(model: MaskedAutoencoder, values: Tensor | Packed, **options: Any) -> Any:
    batch = values.batch_size if isinstance(values, Packed) else len(values)
    return model(values, generators=clip_generators(0, keys(batch)), **options)


@pytest.mark.parametrize("kind", ["all", "run-length"])
def test_hidden_pixels_reach_no_prediction(kind: str) -> None:
    """Whatever stands in patches that are not visible, the prediction is the same (given the same selection)."""
    model = autoencoder(tokens={"kind": kind, "threshold": 1.13})
    values = clips()
    first = run(model, values, scoring_clips=values)
    seen = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    clip = torch.repeat_interleave(torch.arange(2), torch.tensor(first.visible.lengths))
    seen[(clip, *first.visible.coordinates.T)] = True
    pixels = seen.repeat_interleave(2, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    changed = torch.where(pixels[:, :, None], values, clips(seed=9))
    second = run(model, changed, scoring_clips=values)
    assert torch.equal(first.predicted, second.predicted)
    assert not torch.equal(first.targets.values, second.targets.values)


@pytest.mark.parametrize("kind", ["all", "run-length", "random", "redundancy"])
def test_a_clip_alone_is_predicted_as_in_company(kind: str) -> None:
    budget = {"threshold": 1.13} if kind == "run-length" else {"keep_ratio": 0.5}
    model = autoencoder(tokens={"kind": kind, **budget})
    values = clips(3)
    together = run(model, values)
    start = 0
    for i in range(3):
        alone = model(values[i : i + 1], generators=clip_generators(0, keys(3)[i : i + 1]))
        count = together.targets.lengths[i]
        part = together.predicted[start : start + count]
        assert alone.targets.lengths == (count,)
        torch.testing.assert_close(alone.predicted, part, atol=1e-5, rtol=1e-5)
        start += count


@pytest.mark.parametrize("kind", ["run-length", "random"])
def test_patches_selected_before_are_masked_as_in_the_model(kind: str) -> None:
    """As the loader's workers do it with tokens.where loader: the same selection gives the same prediction."""
    model = autoencoder(tokens={"kind": kind, "threshold": 1.13})
    values = clips(3)
    chosen = model.selector.select(
        values, None, model.encoder.grid, clip_generators(0, keys(3), "tokens")
    )
    first, second = run(model, values), run(model, pack_clips(values, chosen, 2, 16))
    assert torch.equal(first.predicted, second.predicted)
    assert torch.equal(first.targets.values, second.targets.values)
    assert second.num_dense_tokens == 64


def test_frame_selection_masks_within_the_chosen_tubelets() -> None:
    """Of 4 tubelets in time 3 are chosen: 48 tokens, of which a quarter is shown; times stay the true ones."""
    model = autoencoder(data={"num_frames": 6}, tokens={"frame_selection": 4 / 3})
    output = run(model, clips())
    assert output.num_dense_tokens == 48
    assert (output.visible.lengths, output.targets.lengths) == ((12, 12), (36, 36))
    times = torch.cat([output.visible.coordinates, output.targets.coordinates])[:, 0]
    assert len(times.unique()) >= 3


def test_run_lengths_reach_encoder_and_decoder() -> None:
    model = autoencoder(tokens={"kind": "run-length", "threshold": 1.13, "length_embedding": True})
    values = clips()
    plain = run(model, values).predicted
    with torch.no_grad():
        model.decoder.length_embed[1:].fill_(0.5)
    assert not torch.allclose(run(model, values).predicted, plain)
    assert model.decoder.length_embed.shape == (4, 96)


def test_targets_are_among_the_kept_tokens_and_disjoint_from_the_visible() -> None:
    model = autoencoder(tokens={"kind": "run-length", "threshold": 1.13})
    values = clips(3)
    output = run(model, values)
    selection = model.selector.select(values, None, model.encoder.grid, None)
    assert len(set(output.targets.lengths)) > 1, (
        "about half is kept: mean |a - b| of normals is 1.128"
    )
    together = []
    for part in (output.visible, output.targets):
        flat = part.coordinates @ torch.tensor([16, 4, 1])
        together.append([set(ids.tolist()) for ids in flat.split(part.lengths)])
        assert all(torch.equal(ids, ids.sort().values) for ids in flat.split(part.lengths))
    for i, kept in enumerate(selection.keep_mask):
        assert together[0][i].isdisjoint(together[1][i])
        assert together[0][i] | together[1][i] == set(kept.nonzero().flatten().tolist())


def test_the_scoring_embedding_leaves_the_weights_trainable_under_autocast() -> None:
    """Autocast must not hand the weights that it cast without gradients to the pass that needs them."""
    model = autoencoder(tokens={"kind": "redundancy"})
    with torch.autocast("cpu", torch.bfloat16):
        run(model, clips()).predicted.float().square().mean().backward()
    assert model.encoder.patch_embed.weight.grad.abs().max() > 0


def test_everest_sees_156_and_reconstructs_314_of_1568_tokens() -> None:
    """Of the 470 that its selector keeps; a square that enters the picture is among them."""
    config = RunConfig(
        model=ModelConfig(name="vit_micro_patch16_224"),
        tokens=TokensConfig(kind="redundancy", keep_ratio=0.3),
        objective=ObjectiveConfig(kind="masked", mask="random", mask_ratio=2 / 3),
    )
    model = build.build_autoencoder(config).eval()
    values = 0.05 * torch.randn(1, 16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    values[:, 8:, :, 32:48, 64:80] = 3.0
    output = run(model, values)
    assert (output.visible.lengths, output.targets.lengths) == ((156,), (314,))
    kept = torch.cat([output.visible.coordinates, output.targets.coordinates]).tolist()
    assert [4, 2, 4] in kept
    assert model.scoring_macs(1, model.encoder.grid) == 1568 * 1536 * 96


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = autoencoder(model={"checkpointing": checkpointing}).train()
        run(model, clips()).predicted.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_class_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="use mean"):
        autoencoder(model={"pool": "cls"})


def test_tubes_through_tokens_that_have_gaps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective\.mask random"):
        autoencoder(tokens={"kind": "redundancy"}, objective={"mask": "tube"})
