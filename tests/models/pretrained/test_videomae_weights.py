"""VideoMAE in and out: the logits of transformers' model, from its own files, from VideoMAE's, and back."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

import onereel
from onereel import build, loading
from onereel.cli import main
from onereel.config import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, to_dict
from onereel.errors import ConfigError, DataError
from onereel.models.video_model import VideoModel
from onereel.objectives.masked import MaskedObjective, normalised_patches, pixel_error
from onereel.tokens.packing import pack_clips
from onereel.training.checkpoint import REQUIRED
from onereel.types import TokenSelection

TOLERANCE = 1e-4


def clips(num_frames: int = 8, size: int = 48) -> torch.Tensor:
    return torch.randn(2, num_frames, 3, size, size)


def load_into(model: VideoModel, source: Path, **options: Any) -> loading.LoadReport:
    settings = ModelConfig(pretrained=str(source), **options)
    return loading.load_encoder(model, RunConfig(model=settings))


def features(model: VideoModel, videos: torch.Tensor) -> torch.Tensor:
    """Features of every token, `(B, N, D)`."""
    with torch.no_grad():
        return model(videos).features.values.unflatten(0, (len(videos), -1))


@pytest.mark.parametrize(("num_frames", "tubelet_size"), [(8, 2), (4, 1), (2, 2), (8, 4)])
def test_a_classifier_of_transformers_gives_its_own_logits_here(
    num_frames: int, tubelet_size: int, foreign: Any, tmp_path: Path
) -> None:
    theirs = foreign.videomae("ForVideoClassification", num_frames, tubelet_size, num_labels=7)
    trained = onereel.load(foreign.saved(theirs, tmp_path))
    videos = clips(num_frames)
    with torch.no_grad():
        expected, given = theirs(videos).logits, trained.model(videos).logits
    assert given.shape == (2, 7)
    assert (given - expected).abs().max() < TOLERANCE
    assert trained.class_names == tuple(theirs.config.id2label[i] for i in range(7))
    assert expected.abs().max() > 0.1


def test_biases_of_queries_and_values_arrive_and_keys_have_none(
    foreign: Any, tmp_path: Path
) -> None:
    theirs = foreign.videomae("ForVideoClassification", num_labels=5)
    model = onereel.load(foreign.saved(theirs, tmp_path)).model
    for block, source in zip(model.encoder.blocks, theirs.videomae.encoder.layer, strict=True):
        q, k, v = block.attn.qkv.bias.chunk(3)
        assert torch.equal(q, source.attention.attention.query.bias)
        assert torch.equal(v, source.attention.attention.value.bias)
        assert q.abs().min() > 0
        assert not k.any()


def test_a_model_of_ours_gives_its_own_logits_in_transformers(foreign: Any, tmp_path: Path) -> None:
    """Through `onereel convert`; biases of our keys have no place there, and must not be missed."""
    model = foreign.perturbed(foreign.ours(3, fc_norm=True))
    assert model.encoder.blocks[0].attn.qkv.bias.chunk(3)[1].any()
    model.save_pretrained(tmp_path / "ours", ("a", "b", "c"))
    arguments = ["convert", str(tmp_path / "ours"), "--to", "videomae", "--out"]
    assert main([*arguments, str(tmp_path / "theirs")]) == 0
    theirs, account = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(account[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    videos = clips()
    with torch.no_grad():
        expected = model(videos).logits
        assert (theirs.eval()(videos).logits - expected).abs().max() < TOLERANCE
        back = onereel.load(tmp_path / "theirs")
        assert (back.model(videos).logits - expected).abs().max() < 1e-5
    assert back.class_names == tuple(theirs.config.id2label.values()) == ("a", "b", "c")
    processor = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "sincos", "fc_norm": True},
        {"fc_norm": True, "qk_norm": True},
        {"fc_norm": True, "local_positions": True},
    ],
)
def test_what_videomae_cannot_express_is_refused(
    options: dict[str, Any], foreign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.ours(**options).save_pretrained(tmp_path / "ours")
    arguments = ["convert", str(tmp_path / "ours"), "--to", "videomae", "--out"]
    assert main([*arguments, str(tmp_path / "theirs")]) == 2
    assert "it needs one trained with model." in capsys.readouterr().err
    assert not (tmp_path / "theirs").exists()


def test_heads_of_budgets_have_no_place_in_videomaes_layout(
    foreign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = foreign.ours(fc_norm=True).config
    config = replace(config, objective=ObjectiveConfig(budgets=(36, 18)))
    build.build_model(config, 3).save_pretrained(tmp_path / "ours")
    arguments = ["convert", str(tmp_path / "ours"), "--to", "videomae", "--out"]
    assert main([*arguments, str(tmp_path / "theirs")]) == 2
    assert "trained with no objective.budgets" in capsys.readouterr().err


@pytest.mark.parametrize("container", ["model", "module", "state_dict"])
def test_videomaes_own_files_of_pre_training(container: str, foreign: Any, tmp_path: Path) -> None:
    """As its scripts write them: with the parsed arguments, which `weights_only` would refuse, beside the weights."""
    theirs = foreign.videomae("ForPreTraining", use_mean_pooling=False)
    tensors = foreign.original(theirs)
    arguments = argparse.Namespace(model="pretrain_videomae_base_patch16_224")
    torch.save({container: tensors, "epoch": 799, "args": arguments}, tmp_path / "checkpoint.pth")
    model, videos = foreign.ours(), clips()
    report = load_into(model, tmp_path / "checkpoint.pth")
    with torch.no_grad():
        expected = theirs.videomae(videos).last_hidden_state
    assert (features(model, videos) - expected).abs().max() < TOLERANCE
    assert set(report.left_out.values()) == {"decoder of pre-training"}
    assert set(report.new) == {"head.fc.weight", "head.fc.bias"}
    assert "encoder.blocks.0.norm1.weight" in report.matched
    assert "zeros for key" in report.changed["encoder.blocks.0.attn.qkv.bias"]


def test_visible_tokens_alone_are_encoded_as_there(foreign: Any, tmp_path: Path) -> None:
    theirs = foreign.videomae("ForPreTraining", use_mean_pooling=False)
    model, videos = foreign.ours(), clips()
    load_into(model, foreign.saved(theirs, tmp_path))
    hidden = torch.stack([torch.randperm(36) < 30 for _ in videos])
    with torch.no_grad():
        expected = theirs.videomae(videos, bool_masked_pos=hidden).last_hidden_state
        given = model.encoder(pack_clips(videos, TokenSelection(~hidden), 2, 16)).values
    assert (given.unflatten(0, (2, 6)) - expected).abs().max() < TOLERANCE


def test_videomaes_own_fine_tuned_file(foreign: Any, tmp_path: Path) -> None:
    """Without prefix, with fc_norm and a classifier of other classes, which ours does not take."""
    theirs = foreign.videomae("ForVideoClassification", num_labels=9)
    torch.save({"module": foreign.original(theirs)}, tmp_path / "tuned.pth")
    model = foreign.ours(5, fc_norm=True)
    fresh = model.head.fc.weight.clone()
    report = load_into(model, tmp_path / "tuned.pth")
    videos = clips()
    with torch.no_grad():
        pooled = theirs.fc_norm(theirs.videomae(videos).last_hidden_state.mean(1))
        assert (model(videos).logits - model.head.fc(pooled)).abs().max() < TOLERANCE
    assert torch.equal(model.head.fc.weight, fresh)
    assert "left out: head.weight, head.bias: classifier of 9 classes" in str(report)
    assert "new: head.fc.weight, head.fc.bias" in str(report)


def test_a_norm_of_tokens_starts_that_of_the_pooled_feature(foreign: Any, tmp_path: Path) -> None:
    theirs = foreign.videomae("ForPreTraining", use_mean_pooling=False)
    foreign.saved(theirs, tmp_path)
    model = foreign.ours(fc_norm=True)
    report = load_into(model, tmp_path)
    assert torch.equal(model.head.norm.weight, theirs.videomae.layernorm.weight)
    assert report.changed["head.norm.weight"] == "was the norm of the tokens"
    # Pre-training that pooled had no norm at all: ours starts fresh, and that is said.
    report = load_into(model, foreign.saved(foreign.videomae("ForPreTraining"), tmp_path / "none"))
    assert {"head.norm.weight", "head.norm.bias"} <= set(report.new)


def test_a_stored_sincos_table_is_checked(foreign: Any, tmp_path: Path) -> None:
    theirs = foreign.videomae("ForPreTraining", use_mean_pooling=False)
    table = theirs.videomae.embeddings.position_embeddings
    tensors = foreign.original(theirs)
    torch.save({"model": tensors | {"encoder.pos_embed": table}}, tmp_path / "fixed.pth")
    report = load_into(foreign.ours(), tmp_path / "fixed.pth")
    assert report.left_out["encoder.pos_embed"] == "fixed table, computed here"
    learned = torch.randn_like(table)
    torch.save({"model": tensors | {"encoder.pos_embed": learned}}, tmp_path / "learned.pth")
    with pytest.raises(ConfigError, match=r"needs model\.positions learned; it is sincos-1d"):
        load_into(foreign.ours(), tmp_path / "learned.pth")
    model = foreign.ours(positions="learned")
    load_into(model, tmp_path / "learned.pth")
    assert torch.equal(model.encoder.pos_embed, learned[0])


OUR_DECODER = {
    "decoder_hidden_size": 96,
    "decoder_num_attention_heads": 3,
    "decoder_num_hidden_layers": 4,
    "decoder_intermediate_size": 384,
}
MASKED = RunConfig(
    data=DataConfig(num_frames=8, size=48),
    model=ModelConfig(name="vit_micro_patch16_48", positions="sincos-1d"),
    objective=ObjectiveConfig(kind="masked"),
)


@pytest.mark.parametrize("source", ["transformers", "original"])
def test_a_decoder_predicts_the_same_pixels(source: str, foreign: Any, tmp_path: Path) -> None:
    """To go on pre-training: encoder and decoder, its pixels in our order."""
    theirs = foreign.videomae("ForPreTraining", use_mean_pooling=False, **OUR_DECODER)
    path = tmp_path / "checkpoint.pth"
    if source == "original":
        torch.save({"model": foreign.original(theirs)}, path)
    else:
        path = foreign.saved(theirs, tmp_path)
    model = build.build_autoencoder(MASKED).eval()
    config = replace(MASKED, model=replace(MASKED.model, pretrained=str(path)))
    report = loading.load_encoder(model, config)
    assert not report.new
    assert not report.left_out
    videos = clips()
    hidden = torch.stack([torch.randperm(36) < 30 for _ in videos])
    with torch.no_grad():
        expected = theirs(videos, bool_masked_pos=hidden).logits
        visible = model.encoder(pack_clips(videos, TokenSelection(~hidden), 2, 16))
        given = model.decoder(visible, pack_clips(videos, TokenSelection(hidden), 2, 16))
    # Theirs are in order (t, h, w, c), ours in (c, t, h, w).
    expected = expected.unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)
    assert expected.abs().max() > 0.5
    assert (given.unflatten(0, (2, 30)) - expected).abs().max() < TOLERANCE


def test_a_pre_training_run_predicts_the_same_pixels_in_transformers(
    foreign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through `onereel convert`: predictions, transformers' own loss, and back again."""
    model = foreign.perturbed(build.build_autoencoder(MASKED))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    state = dict.fromkeys(REQUIRED) | {"model": tensors, "config": to_dict(MASKED)}
    torch.save(state | {"step": 1, "class_names": []}, tmp_path / "step.pt")
    arguments = ["convert", str(tmp_path / "step.pt"), "--to", "videomae", "--out"]
    assert main([*arguments, str(tmp_path / "theirs")]) == 0
    theirs, account = transformers.VideoMAEForPreTraining.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not any(account[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    videos = clips()
    hidden = torch.stack([torch.randperm(36) < 30 for _ in videos])
    targets = pack_clips(videos, TokenSelection(hidden), 2, 16)
    with torch.no_grad():
        # Transformers undoes the normalisation by ImageNet's statistics itself.
        expected = theirs.eval()(videos, bool_masked_pos=hidden)
        given = model.decoder(
            model.encoder(pack_clips(videos, TokenSelection(~hidden), 2, 16)), targets
        )
    eps = MaskedObjective(model, MASKED.augment.std).eps
    loss = pixel_error(given, normalised_patches(targets.values, eps)[0]).mean()
    by_color = expected.logits.unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)
    assert (given.unflatten(0, (2, 30)) - by_color).abs().max() < TOLERANCE
    assert loss.item() == pytest.approx(expected.loss.item(), abs=TOLERANCE)
    back = build.build_autoencoder(MASKED).eval()
    config = replace(MASKED, model=replace(MASKED.model, pretrained=str(tmp_path / "theirs")))
    loading.load_encoder(back, config)
    assert torch.equal(back.decoder.head.weight, model.decoder.head.weight)
    capsys.readouterr()
    arguments = ["convert", str(tmp_path / "step.pt"), "--to", "onereel", "--out"]
    assert main([*arguments, str(tmp_path / "ours")]) == 2
    assert "was pre-trained without labels" in capsys.readouterr().err


def test_a_decoder_of_other_heads_or_depth_is_refused(foreign: Any, tmp_path: Path) -> None:
    other = {"decoder_num_attention_heads": 6}, {"decoder_num_hidden_layers": 2}
    for options, message in zip(other, ("decoder_num_attention_heads 6", r"decoder\.blocks\.2\.")):
        theirs = foreign.videomae("ForPreTraining", **(OUR_DECODER | options))
        folder = foreign.saved(theirs, tmp_path / next(iter(options)))
        config = replace(MASKED, model=replace(MASKED.model, pretrained=str(folder)))
        with pytest.raises(ConfigError, match=message):
            loading.load_encoder(build.build_autoencoder(MASKED), config)


# -------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "sincos"}, r"needs model\.positions sincos-1d; it is sincos"),
        ({"fc_norm": False}, r"needs model\.fc_norm True; it is False"),
        ({"patch_norm": True}, r"missing in the file \(encoder\.patch_norms"),
        ({"pool": "cls"}, r"1 missing in the file \(encoder\.cls_token\)"),
        ({"tubelet_size": 4}, "tubelet_size 2, not 4"),
    ],
)
def test_options_that_the_weights_do_not_know(
    options: dict[str, Any], message: str, foreign: Any, tmp_path: Path
) -> None:
    foreign.saved(foreign.videomae("ForVideoClassification"), tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_into(foreign.ours(**({"fc_norm": True} | options)), tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.update({"encoder.extra": torch.zeros(2)}), r"1 unexpected.*encoder\.extra"),
        (
            lambda t: t.pop("encoder.blocks.2.mlp.fc1.bias"),
            r"missing.*encoder\.blocks\.2\.fc1\.bias",
        ),
        (
            lambda t: t.update({"encoder.blocks.1.norm1.weight": torch.ones(95)}),
            r"encoder\.blocks\.1\.norm1\.weight \(95,\), not \(96,\)",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if ".blocks.3." in name],
            "depth 3, not 4",
        ),
    ],
    ids=["unexpected", "missing", "shape", "depth"],
)
def test_nothing_is_half_loaded(spoil: Any, message: str, foreign: Any, tmp_path: Path) -> None:
    tensors = foreign.original(foreign.videomae("ForPreTraining", use_mean_pooling=False))
    spoil(tensors)
    torch.save({"model": tensors}, tmp_path / "spoilt.pth")
    model = foreign.ours()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_into(model, tmp_path / "spoilt.pth")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_a_file_is_refused(suffix: str, foreign: Any, tmp_path: Path) -> None:
    tensors = foreign.original(foreign.videomae("ForPreTraining", use_mean_pooling=False))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": tensors}, path)
    else:
        safetensors.torch.save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_into(foreign.ours(), path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "module.pth")
    with pytest.raises(DataError, match="cannot be read"):
        onereel.load(tmp_path / "module.pth")


def test_heads_and_activations_that_shapes_cannot_tell(foreign: Any, tmp_path: Path) -> None:
    foreign.saved(foreign.videomae("ForPreTraining"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("num_attention_heads", 6, "has num_attention_heads 6, this model 3"),
        ("hidden_act", "quick_gelu", "uses the activation 'quick_gelu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(ConfigError, match=message):
            load_into(foreign.ours(), tmp_path)
    with pytest.raises(ConfigError, match="no model that can be used as it is"):
        onereel.load(tmp_path)
