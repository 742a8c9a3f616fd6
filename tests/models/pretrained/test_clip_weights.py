"""CLIP with random weights in a small configuration: our towers give what `transformers`' give."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from onereel.errors import ConfigError
from onereel.models.dual_encoder import DualEncoder
from onereel.models.heads import ProjectionHead
from onereel.models.pretrained.clip import MAY_BE_NEW, convert_clip, is_clip
from onereel.models.pretrained.report import load_converted
from onereel.models.text import TEXT_SIZES, TextSize, TextTower
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.tokens.selector import KeepAll
from onereel.types import TubeletGrid

SIZE, PATCH, WIDTH, DEPTH, HEADS, SPACE = 32, 8, 48, 3, 4, 24
VOCABULARY, LENGTH, END = 60, 12, 59
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def theirs():
    """A `CLIPModel` whose norms and biases are not ones and zeros, which would hide a mistake."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": LENGTH,
        "eos_token_id": END,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=SPACE))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def ours(monkeypatch):
    """`ours(num_frames, size, space)`: a dual encoder in CLIP's style."""
    monkeypatch.setitem(TEXT_SIZES, "test", TextSize(24, 2, 2))

    def make(num_frames=1, size=SIZE, space=SPACE, **options):
        encoder = VisionTransformer(
            TubeletGrid(num_frames, size // PATCH, size // PATCH),
            tubelet_size=1,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            **{"pool": "cls", "positions": "space-time", "style": "clip", **options},
        )
        video = VideoModel(encoder, ProjectionHead(WIDTH, space, encoder.pool), KeepAll())
        text = TextTower(
            "test", vocab_size=VOCABULARY, context_length=LENGTH, out_dim=space, end_id=END
        )
        return DualEncoder(video, text, SimpleNamespace()).eval()

    return make


def load_clip(model, theirs, tensors=None):
    tensors = theirs.state_dict() if tensors is None else tensors
    converted = convert_clip(tensors, theirs.config.to_dict(), model, "clip")
    return load_converted(model, converted, source="clip", may_be_new=MAY_BE_NEW)


def test_both_towers_give_what_transformers_gives(theirs, ours):
    model = ours()
    report = load_clip(model, theirs)
    pictures = torch.randn(2, 3, SIZE, SIZE)
    tokens = torch.randint(0, END, (3, LENGTH))
    tokens[:, -1] = END
    with torch.no_grad():
        expected = theirs.vision_model(pictures).pooler_output
        expected = theirs.visual_projection(expected)
        video = model.video(pictures[:, None]).logits
        texts = theirs.text_projection(theirs.text_model(tokens).pooler_output)
        torch.testing.assert_close(video, expected, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(model.text(tokens), texts, rtol=0, atol=TOLERANCE)
    assert report.new == ("video.encoder.temporal_embed",)
    assert set(report.left_out) == {"logit_scale"}
    assert "none unexpected" in str(report)


def test_without_times_the_order_of_frames_is_not_seen(theirs, ours):
    model = ours(num_frames=4)
    load_clip(model, theirs)
    clips = torch.randn(2, 4, 3, SIZE, SIZE)
    with torch.no_grad():
        features = model.video(clips).logits
        torch.testing.assert_close(model.video(clips.flip(1)).logits, features, rtol=0, atol=1e-5)
        model.video.encoder.temporal_embed.normal_()
        assert not torch.allclose(model.video(clips.flip(1)).logits, features, atol=1e-3)


def test_another_size_and_another_space_are_said(theirs, ours):
    model = ours(num_frames=2, size=48, space=10)
    report = load_clip(model, theirs)
    assert "4 x 4 places" in report.changed["video.encoder.pos_embed"]
    fresh = {"video.head.fc.weight", "text.model.text_projection.weight"}
    assert set(report.new) == {"video.encoder.temporal_embed", *fresh}
    assert "24 dimensions" in report.left_out["visual_projection.weight"]


def test_what_is_unexpected_or_missing_is_refused(theirs, ours):
    model = ours()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    more = {**theirs.state_dict(), "vision_model.encoder.layers.0.extra.weight": torch.ones(1)}
    with pytest.raises(ConfigError, match=r"unexpected.*extra"):
        load_clip(model, theirs, more)
    less = theirs.state_dict()
    del less["vision_model.encoder.layers.1.self_attn.q_proj.bias"]
    with pytest.raises(ConfigError, match=r"missing|not in this model"):
        load_clip(model, theirs, less)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"style": "vit"}, {"pool": "mean"}, {"positions": "learned"}], ids=str
)
def test_another_kind_of_encoder_is_refused(theirs, ours, options):
    with pytest.raises(ConfigError, match="space-time"):
        load_clip(ours(**options), theirs)


def test_other_activations_and_heads_are_refused(theirs, ours):
    tensors, config = theirs.state_dict(), theirs.config.to_dict()
    config["text_config"]["hidden_act"] = "gelu"
    with pytest.raises(ConfigError, match="quick_gelu"):
        convert_clip(tensors, config, ours(), "clip")
    config["vision_config"]["num_attention_heads"] = 2
    with pytest.raises(ConfigError, match="2 attention heads"):
        convert_clip(tensors, config, ours(), "clip")


def test_families_are_told_apart(theirs):
    assert is_clip(theirs.state_dict())
    assert not is_clip({"blocks.0.norm1.weight": torch.ones(1)})
