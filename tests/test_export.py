"""Exported graphs give the model's own logits, for batches of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onereel import export
from onereel.build import build_selector
from onereel.cli import main
from onereel.config import RunConfig, TokensConfig, from_dict
from onereel.errors import ConfigError
from onereel.loading import TrainedModel
from onereel.models.heads import ClassificationHead
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.tokens.frames import FrameSelection
from onereel.tokens.tubelets import tubelet_grid
from onereel.types import TubeletGrid

FLUX: dict[str, Any] = {
    "style": "flux",
    "positions": "global",
    "pool": "attention",
    "table_grid": TubeletGrid(3, 4, 4),
    "patch_norm": True,
    "local_positions": True,
    "final_norm": False,
}
FIXED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "all"}, {}),
    ({"kind": "all"}, {"pool": "cls", "positions": "learned", "qk_norm": True}),
    ({"kind": "all"}, {"style": "clip", "positions": "space-time", "pool": "cls"}),
    ({"kind": "redundancy"}, {"positions": "sincos-1d", "final_norm": False}),
    ({"kind": "group-dynamic"}, {"pool": "cls"}),
    ({"kind": "run-length", "budget": "clip", "token_budget": 7}, {"length_embedding": True}),
    ({"kind": "group-dynamic", "token_budget": 12}, FLUX),
    ({"kind": "all"}, {"positions": "rope", "pool": "cls"}),
]


def trained(tokens: dict[str, Any], **options: Any) -> TrainedModel:
    """A model of one block on clips of 8 x 16 x 24 px, with a classifier that amplifies every difference."""
    selected = from_dict(TokensConfig, tokens)
    torch.manual_seed(0)
    encoder = VisionTransformer(
        tubelet_grid(8, 16, 24, 2, 8),
        tubelet_size=2,
        patch_size=8,
        embed_dim=32,
        depth=1,
        num_heads=2,
        **options,
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    head = ClassificationHead(32, 5, encoder.pool, norm=not options.get("final_norm", True))
    torch.nn.init.normal_(head.fc.weight)
    model = VideoModel(encoder, head, build_selector(selected, 2, 8))
    config = from_dict(RunConfig, {"data": {"num_frames": 8}, "tokens": tokens})
    return TrainedModel(model.eval(), config, tuple("abcde"))


@pytest.mark.parametrize(("tokens", "options"), FIXED)
def test_fixed_shapes_give_the_models_logits(
    tokens: dict[str, Any], options: dict[str, Any]
) -> None:
    """Before any tracing: a batched forward pass against the packed one."""
    source = trained(tokens, **options)
    fixed = export.FixedShapes(source.model)
    for batch in (1, 3):
        clips = export.example_clips(source.model, batch)
        with torch.no_grad():
            expected = source.model(clips)
            assert torch.allclose(fixed(clips), expected.logits, atol=1e-5)
        assert set(expected.lengths) == {fixed.num_kept}


@pytest.mark.parametrize(("tokens", "options"), FIXED)
@pytest.mark.parametrize("grid", [TubeletGrid(3, 2, 3), TubeletGrid(4, 3, 2)])
def test_clips_of_another_grid_are_placed_as_the_model_does(
    tokens: dict[str, Any], options: dict[str, Any], grid: TubeletGrid
) -> None:
    source = trained(tokens, **options)
    fixed = export.FixedShapes(source.model, grid)
    clips = export.example_clips(source.model, 2, grid)
    assert clips.shape[1:] == (2 * grid.gt, 3, 8 * grid.gh, 8 * grid.gw)
    with torch.no_grad():
        expected = source.model(clips)
        assert torch.allclose(fixed(clips), expected.logits, atol=1e-5)
    assert set(expected.lengths) == {fixed.num_kept}


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        FIXED[5],
        FIXED[6],
        *(pytest.param(*FIXED[i], marks=pytest.mark.slow) for i in (*range(5), 7)),
    ],
)
def test_a_torch_export_program_is_checked_after_reading_it_back(
    tokens: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    source = trained(tokens, **options)
    path = export.export(source, "torch-export", tmp_path / "model.pt2")
    result = export.check(source, "torch-export", path)
    assert result.ok, result
    assert result.largest > 0.5
    extra = {export.FACTS: ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra[export.FACTS])["class_names"] == list("abcde")
    # And a difference is not forgiven.
    with torch.no_grad():
        source.model.head.fc.bias[0] += 1e-3
    result = export.check(source, "torch-export", path)
    assert not result.ok
    assert "1.0e-03, ABOVE the tolerance of 1e-04" in str(result)


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        FIXED[4],
        *(pytest.param(*FIXED[i], marks=pytest.mark.slow) for i in (0, 1, 2, 3, 6, 7)),
    ],
)
def test_an_onnx_file_is_checked_by_onnxruntime(
    tokens: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    source = trained(tokens, **options)
    path = export.export(source, "onnx", tmp_path / "model.onnx")
    result = export.check(source, "onnx", path)
    assert result.ok, result
    assert result.largest > 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    import onnx

    properties = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert properties["mean"] == [0.485, 0.456, 0.406]
    assert properties["class_names"] == list("abcde")


@pytest.mark.slow
def test_what_onnx_cannot_express_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ONNX: .*aten\.cummin.* Use --format torch-export"):
        export.export(trained(FIXED[5][0], **FIXED[5][1]), "onnx", tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({"kind": "run-length"}, "depends on the clip.*--tokens.token-budget K"),
        ({"kind": "random", "keep_ratio": 0.5}, "cannot be exported: random selection draws"),
        ({"kind": "tube", "keep_ratio": 0.5}, "cannot be exported: random selection draws"),
    ],
)
def test_selectors_without_a_fixed_choice_are_refused(tokens: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export.FixedShapes(trained(tokens).model)


def test_frame_selection_is_refused() -> None:
    model = trained({"kind": "redundancy"}).model
    model.frames = FrameSelection(2)
    with pytest.raises(ConfigError, match=r"--tokens\.frame-selection 0"):
        export.FixedShapes(model)


def test_a_factorised_encoder_is_refused() -> None:
    import onereel

    model = onereel.create_model("vit_micro_patch16_32", 3, num_frames=4, temporal_depth=2)
    with pytest.raises(ConfigError, match=r"cannot be exported: .*model\.temporal_depth 0"):
        export.FixedShapes(model)


def test_the_verb_exports_checks_and_fails_where_logits_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onereel

    model = onereel.create_model("vit_micro_patch16_32", 3, num_frames=4, tokens="run-length")
    model.save_pretrained(tmp_path / "model")
    arguments = ["export", str(tmp_path / "model"), "--format", "torch-export", "--check"]
    assert main(arguments) == 2
    assert "--tokens.kind all" in capsys.readouterr().err
    assert main([*arguments, "--tokens.kind", "all"]) == 0
    assert "model.pt2" in (said := capsys.readouterr().out)
    assert "within the tolerance" in said
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert main([*arguments, "--tokens.kind", "all", "--out", str(tmp_path / "x.pt2")]) == 1
