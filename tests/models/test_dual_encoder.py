"""Towers against `transformers`' CLIP with random weights; published parameter counts and multiply-adds."""

from __future__ import annotations

import pytest
import torch

from onereel.models.dual_encoder import DualEncoder
from onereel.models.heads import ProjectionHead
from onereel.models.text import TEXT_SIZES, TextSize, TextTower, Tokenizer
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.tokens.run_length import RunLength
from onereel.tokens.selector import KeepAll, Tube
from onereel.types import TubeletGrid

CAPTIONS = ["a red square moves right", "An orange disc grows.", "a  blue ring moves left"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS * 4, vocab_size=300, context_length=12)


@pytest.fixture
def tiny_text(monkeypatch):
    monkeypatch.setitem(TEXT_SIZES, "test", TextSize(24, 2, 2))


def video_tower(selector, num_frames=2, **options):
    encoder = VisionTransformer(
        TubeletGrid(num_frames, 2, 2),
        tubelet_size=1,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        pool="cls",
        positions="space-time",
        style="clip",
        **options,
    )
    return VideoModel(encoder, ProjectionHead(24, 16, "cls"), selector)


def dual_encoder(tokenizer, selector, **options):
    text = TextTower(
        "test",
        vocab_size=tokenizer.vocab_size,
        context_length=12,
        out_dim=16,
        end_id=tokenizer.end_id,
    )
    return DualEncoder(video_tower(selector, **options), text, tokenizer)


def test_features_have_unit_length_and_one_space(tiny_text, tokenizer):
    model = dual_encoder(tokenizer, KeepAll())
    video, output = model.encode_video(torch.randn(3, 2, 3, 16, 16))
    text = model.encode_text(CAPTIONS)
    assert video.shape == text.shape == (3, 16)
    assert output.lengths == (8, 8, 8)
    for features in (video, text):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("selector", [Tube(0.5), RunLength(0.3, patch_size=8, tubelet_size=1)])
def test_any_selector_stands_in_front_of_the_video_tower(tiny_text, tokenizer, selector):
    model = dual_encoder(tokenizer, selector)
    clips = torch.randn(2, 2, 3, 16, 16)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    features, output = model.encode_video(clips, generators=generators)
    assert features.shape == (2, 16)
    assert all(1 <= n <= 8 for n in output.lengths)


def test_a_text_is_what_it_is_alone(tiny_text, tokenizer):
    """Padding to the longest of a batch changes nothing."""
    model = dual_encoder(tokenizer, KeepAll())
    together = model.encode_text(CAPTIONS)
    alone = torch.cat([model.encode_text([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_checkpointing_changes_no_gradient(tiny_text, tokenizer):
    tokens = tokenizer(CAPTIONS)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        text = TextTower(
            "test",
            vocab_size=tokenizer.vocab_size,
            context_length=12,
            out_dim=16,
            end_id=tokenizer.end_id,
            checkpointing=checkpointing,
        ).train()
        text(tokens).square().sum().backward()
        gradients.append([parameter.grad for parameter in text.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def meta_count(module):
    return sum(parameter.numel() for parameter in module.parameters())


VISION = {
    ("base", 4): (768, 12, 12, 16, 85_999_104, 78.494),
    ("base", 16): (768, 12, 12, 16, 86_008_320, 449.675),
    ("large", 4): (1024, 24, 16, 14, 303_446_016, 361.797),
}


@pytest.mark.parametrize(("size", "num_frames"), VISION)
def test_published_size_and_cost_of_the_video_tower(size, num_frames):
    width, depth, heads, patch, parameters, gmacs = VISION[size, num_frames]
    grid = TubeletGrid(num_frames, 224 // patch, 224 // patch)
    with torch.device("meta"):
        encoder = VisionTransformer(
            grid,
            tubelet_size=1,
            patch_size=patch,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            pool="cls",
            positions="space-time",
            style="clip",
        )
        head = ProjectionHead(width, 256)
    # CLIP adds a place to its class token; the sum of the two is one vector here.
    assert meta_count(encoder) + meta_count(head) == parameters - width
    assert encoder.macs((grid.num_tokens,)) / 1e9 == pytest.approx(gmacs, abs=1e-3)


@pytest.mark.parametrize(
    ("size", "parameters", "gmacs"), [("base", 63_297_024, 2.980), ("large", 123_257_088, 6.649)]
)
def test_published_size_and_cost_of_the_text_tower(size, parameters, gmacs):
    with torch.device("meta"):
        text = TextTower(size, vocab_size=49408, context_length=77, out_dim=256, end_id=49407)
    assert meta_count(text) == parameters
    assert (text.macs(1, 77) - text.width * 256) / 1e9 == pytest.approx(gmacs, abs=1e-3)
