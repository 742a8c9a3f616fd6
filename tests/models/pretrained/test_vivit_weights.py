"""ViViT of transformers in: the same logits, whole or as a start; and weights for a factorised encoder's halves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import onereel
from onereel import loading
from onereel.config import ModelConfig, RunConfig
from onereel.errors import ConfigError
from onereel.models.factorised import FactorisedEncoder
from onereel.models.pretrained.convert import Converted
from onereel.models.pretrained.halves import chosen_blocks, into_halves
from onereel.models.video_model import VideoModel
from onereel.tokens.packing import pack_all
from onereel.tokens.tubelets import patchify

TOLERANCE = 1e-4


def vivit(foreign: Any, num_frames: int = 8, **options: Any) -> Any:
    sizes = {name: value for name, value in foreign.SIZES.items() if name != "patch_size"}
    config = transformers.VivitConfig(
        **sizes, image_size=48, num_frames=num_frames, tubelet_size=[2, 16, 16], **options
    )
    config.num_labels = 5
    return foreign.perturbed(transformers.VivitForVideoClassification(config))


def image_vit(foreign: Any) -> Any:
    config = transformers.ViTConfig(**foreign.SIZES, image_size=48)
    return foreign.perturbed(transformers.ViTForImageClassification(config))


def joint(foreign: Any, **options: Any) -> VideoModel:
    given = {"positions": "learned", "pool": "cls", "style": "vivit"}
    return foreign.ours(**(given | options))


def factorised(foreign: Any, **options: Any) -> VideoModel:
    return joint(foreign, **({"style": "vit", "temporal_depth": 2} | options))


def start(model: VideoModel, source: Path | str, **options: Any) -> loading.LoadReport:
    settings: dict[str, Any] = {"pretrained": str(source)}
    if model.encoder.temporal_depth:
        settings |= {"temporal_depth": 2, "positions": "learned", "pool": "cls"}
    return loading.load_encoder(model, RunConfig(model=ModelConfig(**settings | options)))


def halves(model: VideoModel) -> FactorisedEncoder:
    assert isinstance(model.encoder, FactorisedEncoder)
    return model.encoder


@torch.no_grad()
def test_a_whole_model_gives_the_same_logits(foreign: Any, tmp_path: Path) -> None:
    theirs = vivit(foreign)
    loaded = onereel.load(foreign.saved(theirs, tmp_path))
    clips = torch.randn(2, 8, 3, 48, 48)
    expected = theirs(clips).logits
    assert (loaded.model(clips).logits - expected).abs().max() < TOLERANCE
    assert loaded.config.data.num_frames == 8
    assert loaded.config.augment.mean == (0.5, 0.5, 0.5)
    assert len(loaded.class_names) == 5


@torch.no_grad()
def test_a_run_starts_from_the_same_features(foreign: Any, tmp_path: Path) -> None:
    theirs, model = vivit(foreign), joint(foreign)
    report = start(model, foreign.saved(theirs, tmp_path), style="vivit")
    clips = torch.randn(2, 8, 3, 48, 48)
    expected = theirs.vivit(clips).last_hidden_state
    given = model(clips).features.values.unflatten(0, (2, -1))
    assert given.shape == expected.shape == (2, 37, 96)
    assert (given - expected).abs().max() < TOLERANCE
    assert report.changed["encoder.cls_token"] == "with its position added"
    assert set(report.new) == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize(
    ("options", "match"),
    [({"style": "vit"}, "model.style vivit"), ({"pool": "mean"}, "model.pool cls")],
)
def test_another_model_is_refused(
    options: dict[str, Any], match: str, foreign: Any, tmp_path: Path
) -> None:
    model = joint(foreign, **options)
    with pytest.raises(ConfigError, match=match):
        start(model, foreign.saved(vivit(foreign), tmp_path))


def test_another_activation_is_refused(foreign: Any, tmp_path: Path) -> None:
    folder = foreign.saved(vivit(foreign, hidden_act="gelu"), tmp_path)
    with pytest.raises(ConfigError, match="activation 'gelu'"):
        onereel.load(folder)


# ----------------------------------------------------------------------------------- halves of a factorised encoder


@torch.no_grad()
@pytest.mark.parametrize("inflation", ["central", "mean"])
def test_an_image_vit_becomes_the_spatial_half(
    inflation: str, foreign: Any, tmp_path: Path
) -> None:
    theirs, model = image_vit(foreign), factorised(foreign)
    report = start(model, foreign.saved(theirs, tmp_path), inflation=inflation)
    clips = torch.randn(1, 4, 3, 48, 48).repeat_interleave(2, dim=1)
    if inflation == "central":
        clips[:, ::2] = 7.0  # the second frame of each pair is the one that counts
    patches = pack_all(patchify(clips, 2, 16), model.encoder.grid)
    expected = theirs.vit(clips[0, 1::2]).last_hidden_state[:, 0]
    assert (halves(model).frame_features(patches).values - expected).abs().max() < TOLERANCE
    assert {name.split(".")[1] for name in report.new if name.startswith("encoder")} == {"temporal"}


@torch.no_grad()
def test_the_image_class_token_may_be_left_out_as_in_scenic(foreign: Any, tmp_path: Path) -> None:
    theirs, model = image_vit(foreign), factorised(foreign)
    report = start(model, foreign.saved(theirs, tmp_path), image_class_token=False)
    position = theirs.vit.embeddings.position_embeddings[0, 0]
    token = halves(model).spatial.cls_token
    assert token is not None
    assert torch.equal(token, position)
    assert report.left_out["vit.embeddings.cls_token"] == "model.image_class_token is off"


@pytest.mark.parametrize("choice", ["even", "first"])
@pytest.mark.parametrize("family", ["image", "videomae"])
def test_the_temporal_half_takes_blocks_of_other_models(
    family: str, choice: str, foreign: Any, tmp_path: Path
) -> None:
    spatial = foreign.saved(image_vit(foreign), tmp_path / "spatial")
    theirs = image_vit(foreign) if family == "image" else foreign.videomae("ForPreTraining")
    foreign.perturbed(theirs)
    source = foreign.saved(theirs, tmp_path / "temporal")
    model = factorised(foreign)
    report = start(model, spatial, temporal_init=str(source), temporal_blocks=choice)
    taken = [0, 3] if choice == "even" else [0, 1]
    stored = foreign.stored(theirs)
    prefix = "vit." if family == "image" else "videomae."
    for index, number in enumerate(taken):
        ours = halves(model).temporal.blocks[index].fc1.weight
        name = f"{prefix}encoder.layer.{number}.intermediate.dense.weight"
        assert torch.equal(ours, stored[name])
    assert report.changed["encoder.temporal.blocks.0.fc1.weight"] == "from model.temporal_init"
    assert "encoder.temporal.pos_embed" in report.new


def test_which_blocks() -> None:
    assert chosen_blocks(12, 4, "even") == [0, 4, 7, 11]
    assert chosen_blocks(24, 4, "first") == [0, 1, 2, 3]
    assert chosen_blocks(12, 12, "even") == list(range(12))
    assert chosen_blocks(12, 1, "even") == [0]


def zoom(table: torch.Tensor, length: int) -> torch.Tensor:
    """scipy.ndimage.zoom of order 1 along the rows, by its definition: ends fixed, straight lines between rows."""
    rows = []
    for i in range(length):
        x = i * (len(table) - 1) / (length - 1)
        low = min(int(x), len(table) - 2)
        rows.append(table[low] * (1 - (x - low)) + table[low + 1] * (x - low))
    return torch.stack(rows)


@pytest.mark.parametrize("num_frames", [4, 16, 32])
def test_places_in_time_are_interpolated_as_scenic_does(foreign: Any, num_frames: int) -> None:
    first, second = factorised(foreign), factorised(foreign, num_frames=num_frames)
    tensors = foreign.perturbed(first).state_dict()
    found = Converted("onereel", dict(tensors), {name: name for name in tensors})
    into_halves(found, halves(second))
    given = found.tensors["encoder.temporal.pos_embed"]
    assert torch.allclose(
        given, zoom(tensors["encoder.temporal.pos_embed"], num_frames // 2), atol=1e-6
    )
    assert given.shape == (num_frames // 2, 96)
    # The class tokens hold their own places, which no other length changes.
    for name in ("encoder.temporal.cls_token", "encoder.spatial.cls_token"):
        assert torch.equal(found.tensors[name], tensors[name])


@torch.no_grad()
def test_clips_of_another_length_get_the_same_places(foreign: Any) -> None:
    """At run time as at load time."""
    model = foreign.perturbed(factorised(foreign))
    longer = factorised(foreign, num_frames=16)
    tensors = dict(model.state_dict())
    name = "encoder.temporal.pos_embed"
    longer.load_state_dict(tensors | {name: zoom(tensors[name], 8)})
    clips = torch.randn(1, 16, 3, 48, 48)
    assert torch.allclose(model(clips).logits, longer(clips).logits, atol=1e-5)


@torch.no_grad()
def test_a_model_is_loaded_for_clips_of_another_length(foreign: Any, tmp_path: Path) -> None:
    model = foreign.perturbed(factorised(foreign))
    folder = model.save_pretrained(tmp_path, class_names=tuple("abcde"))
    assert model.config is not None
    data = replace(model.config.data, num_frames=16)
    longer = onereel.load(folder, replace(model.config, data=data)).model
    assert longer.encoder.grid.gt == 8
    clips = torch.randn(1, 16, 3, 48, 48)
    assert torch.allclose(model(clips).logits, longer(clips).logits, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_frozen_half_needs_a_class_token(depth: int, foreign: Any, tmp_path: Path) -> None:
    """Of a joint run, or of a factorised one."""
    folder = foreign.ours(positions="learned", temporal_depth=depth).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no class token.*model.pool to mean"):
        start(factorised(foreign, style="vit", frozen="spatial"), folder)
    start(factorised(foreign, style="vit"), folder)
    start(factorised(foreign, style="vit", frozen="spatial", pool="mean"), folder)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_a_joint_run_becomes_the_spatial_half(positions: str, foreign: Any, tmp_path: Path) -> None:
    before = foreign.perturbed(foreign.ours(positions=positions, pool="cls"))
    onereel_folder = before.save_pretrained(tmp_path)
    model = factorised(foreign, positions=positions)
    report = start(model, onereel_folder, positions=positions)
    ours = halves(model).spatial
    assert torch.equal(ours.blocks[3].fc2.weight, before.encoder.blocks[3].fc2.weight)
    if positions == "learned":
        mean = before.encoder.pos_embed.unflatten(0, (4, 9)).mean(0)
        assert torch.allclose(ours.pos_embed, mean)
        assert report.changed["encoder.spatial.pos_embed"] == "the mean of 4 times"


def test_a_random_temporal_half_is_asked_for_by_name(foreign: Any, tmp_path: Path) -> None:
    before, model = foreign.perturbed(factorised(foreign)), factorised(foreign)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    report = start(model, before.save_pretrained(tmp_path), temporal_init="random")
    for name, value in model.state_dict().items():
        kept = fresh if ".temporal." in name or name.startswith("head") else before.state_dict()
        assert torch.equal(value, kept[name]), name
    assert any(name.startswith("encoder.temporal.") for name in report.left_out)


def test_a_classifier_is_kept_for_the_same_classes_alone(foreign: Any, tmp_path: Path) -> None:
    before, model = foreign.perturbed(factorised(foreign)), factorised(foreign)
    folder = before.save_pretrained(tmp_path, class_names=tuple("abcde"))
    config = RunConfig(
        model=ModelConfig(pretrained=str(folder), keep_head=True, positions="learned")
    )
    loading.load_encoder(model, config, tuple("abcde"))
    assert torch.equal(model.head.fc.weight, before.head.fc.weight)
    with pytest.raises(ConfigError, match="keep_head"):
        loading.load_encoder(model, config, tuple("abcdf"))
    source = foreign.saved(image_vit(foreign), tmp_path / "image")
    with pytest.raises(ConfigError, match="keep_head"):
        loading.load_encoder(
            model, replace(config, model=replace(config.model, pretrained=str(source)))
        )
