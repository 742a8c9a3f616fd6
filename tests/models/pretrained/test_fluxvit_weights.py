"""FluxViT and InternVideo2 from weights under their own names, against the published architecture written straight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onereel import build
from onereel.config import ModelConfig, RunConfig, from_dict
from onereel.errors import ConfigError
from onereel.fitting import load_weights
from onereel.loading import load
from onereel.models.dual_encoder import DualEncoder
from onereel.models.heads import ProjectionHead
from onereel.models.pretrained.fluxvit import family_of_file
from onereel.models.pretrained.reading import Weights
from onereel.models.registry import create_encoder
from onereel.models.student import Student
from onereel.models.video_model import VideoModel
from onereel.tokens.selector import KeepAll

WIDTH, DEPTH, HEADS, PATCH, CLASSES = 96, 4, 3, 14, 5
TABLES = {"fluxvit": (24, 18, 18), "internvideo2": (8, 16, 16)}
TOLERANCE = 1e-5
Weighted = dict[str, Tensor]


def theirs(family: str, table: tuple[int, int, int] | None = None) -> Weighted:
    """Random weights of the published names and shapes, none at a start that would hide it."""
    draws = torch.Generator().manual_seed(0)
    gt, gh, gw = table or TABLES[family]
    flux = family == "fluxvit"
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + gt * gh * gw, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 1, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
    }
    if flux:
        shapes |= {
            "patch_embed.norm_before.weight": (3 * PATCH**2,),
            "patch_embed.norm.weight": (WIDTH,),
            "gpe_proj.depthwise_conv.weight": (WIDTH, 1, 1, 1, 1),
            "gpe_proj.depthwise_conv.bias": (WIDTH,),
        }
    for i in range(DEPTH):
        block = {
            "norm1.weight": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.q_norm.weight": (WIDTH,),
            "attn.k_norm.weight": (WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "ls1.gamma": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH),
            "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            "mlp.fc2.bias": (WIDTH,),
            "ls2.gamma": (WIDTH,),
        }
        if flux:
            block["attn.lpe.depthwise_conv.weight"] = (WIDTH, 1, 1, 1, 1)
            block["attn.lpe.depthwise_conv.bias"] = (WIDTH,)
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    for number in ("0.", "1.", "2.") if flux else ("",):
        pool = f"clip_projector.{number}"
        for part in "qkv":
            shapes |= {f"{pool}norm1_{part}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
            shapes[f"{pool}cross_attn.{part}.weight"] = (WIDTH, WIDTH)
            shapes[f"{pool}cross_attn.{part}_bias"] = (WIDTH,)
        shapes[f"{pool}cross_attn.proj.weight"] = (768, WIDTH)
        shapes[f"{pool}cross_attn.proj.bias"] = (768,)
        shapes[f"head.{number}weight"] = (CLASSES, 768)
        shapes[f"head.{number}bias"] = (CLASSES,)
    if flux:
        for number in range(2):
            aligner = f"final_clip_decoder_for_projs.{number}"
            shapes |= {f"{aligner}.head.weight": (768, 768), f"{aligner}.head.bias": (768,)}
            shapes |= {f"{aligner}.norm.{kind}": (768,) for kind in ("weight", "bias")}
    weights = {}
    for name, shape in shapes.items():
        scale = 0.1 if len(shape) < 2 or "pos_embed" in name else math.prod(shape[1:]) ** -0.5
        weights[name] = scale * torch.randn(shape, generator=draws)
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def straight(w: Weighted, clip: Tensor, table: tuple[int, int, int], head: str = "") -> Tensor:
    """Logits of one clip `(T, 3, H, W)` with all its tokens, written from facts/flux.md section 4."""
    flux = "gpe_proj.depthwise_conv.weight" in w
    num_frames, _, height, width = clip.shape
    tokens = []
    for frame in clip:  # 1 x 14 x 14 px a token
        for top in range(0, height, PATCH):
            for left in range(0, width, PATCH):
                patch = frame[:, top : top + PATCH, left : left + PATCH]
                if flux:  # over (h, w, c)
                    values = rms(
                        patch.permute(1, 2, 0).flatten(), w["patch_embed.norm_before.weight"]
                    )
                    patch = values.unflatten(0, (PATCH, PATCH, 3)).permute(2, 0, 1)
                kernel = w["patch_embed.proj.weight"][:, :, 0]
                tokens.append((kernel * patch).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    x = torch.stack(tokens)
    if flux:
        x = rms(x, w["patch_embed.norm.weight"])
    grid = (num_frames, height // PATCH, width // PATCH)
    x = torch.cat([w["cls_token"][0], x]) + places(w, table, grid)
    for i in range(DEPTH):
        b = {
            name.removeprefix(f"blocks.{i}."): v for name, v in w.items() if f"blocks.{i}." in name
        }
        x = x + b["ls1.gamma"] * attended(b, rms(x, b["norm1.weight"]))
        hidden = F.gelu(F.linear(rms(x, b["norm2.weight"]), b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + b["ls2.gamma"] * F.linear(hidden, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    pooled = pool({n.removeprefix(f"clip_projector.{head}"): v for n, v in w.items()}, x)
    normed = F.layer_norm(pooled, (768,), w["fc_norm.weight"], w["fc_norm.bias"], 1e-5)
    return F.linear(normed, w[f"head.{head}weight"], w[f"head.{head}bias"])


def places(w: Weighted, table: tuple[int, int, int], grid: tuple[int, int, int]) -> Tensor:
    """Affine map of the table, then linear in time, then bicubic in space; the class token's row as it is."""
    first, rest = w["pos_embed"][0, :1], w["pos_embed"][0, 1:]
    if "gpe_proj.depthwise_conv.weight" in w:
        scale = w["gpe_proj.depthwise_conv.weight"].flatten()
        rest = rest * scale + w["gpe_proj.depthwise_conv.bias"]
    by_place = rest.reshape(table[0], -1, WIDTH).permute(1, 2, 0)
    in_time = F.interpolate(by_place, size=grid[0], mode="linear")
    pictures = in_time.permute(2, 1, 0).reshape(grid[0], WIDTH, *table[1:])
    pictures = F.interpolate(pictures, size=grid[1:], mode="bicubic", align_corners=False)
    return torch.cat([first, pictures.permute(0, 2, 3, 1).reshape(-1, WIDTH)])


def attended(b: Weighted, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, b["attn.qkv.weight"]).chunk(3, dim=-1)
    q, k = rms(q, b["attn.q_norm.weight"]), rms(k, b["attn.k_norm.weight"])
    size, outs = WIDTH // HEADS, []
    for part in (slice(h * size, (h + 1) * size) for h in range(HEADS)):
        outs.append((q[:, part] @ k[:, part].T * size**-0.5).softmax(-1) @ v[:, part])
    out = torch.cat(outs, dim=-1)
    if "attn.lpe.depthwise_conv.weight" in b:
        local = b["attn.lpe.depthwise_conv.weight"].flatten()
        out = out + local * v + b["attn.lpe.depthwise_conv.bias"]
    return F.linear(out, b["attn.proj.weight"], b["attn.proj.bias"])


def pool(p: Weighted, x: Tensor) -> Tensor:
    def projected(part: str, tokens: Tensor) -> Tensor:
        norm = (p[f"norm1_{part}.weight"], p[f"norm1_{part}.bias"])
        tokens = F.layer_norm(tokens, (WIDTH,), *norm, 1e-5)
        return F.linear(tokens, p[f"cross_attn.{part}.weight"], p[f"cross_attn.{part}_bias"])

    q, k, v = projected("q", x.mean(0)), projected("k", x), projected("v", x)
    size, outs = WIDTH // 16, []
    for part in (slice(h * size, (h + 1) * size) for h in range(16)):
        outs.append((k[:, part] @ q[part] * size**-0.5).softmax(0) @ v[:, part])
    return F.linear(torch.cat(outs), p["cross_attn.proj.weight"], p["cross_attn.proj.bias"])


def ours(family: str, num_frames: int = 3, size: int = 42, **sections: Any) -> VideoModel:
    """A model of the same size, with other weights."""
    values = {"data": {"num_frames": num_frames, "size": size}, **sections}
    config = from_dict(RunConfig, values)
    model = ModelConfig.named(f"{family}_micro_patch14_{size}", **sections.get("model", {}))
    config = RunConfig(
        data=config.data, tokens=config.tokens, objective=config.objective, model=model
    )
    return build.build_model(config, CLASSES).eval()


def load_into(model: Any, weights: Weighted, whole: bool = True) -> Any:
    return load_weights(model, Weights("file.pth", weights, {}), RunConfig(), whole=whole)


@pytest.mark.parametrize("family", TABLES)
def test_logits_are_those_of_the_published_architecture(family: str) -> None:
    """On the table's own grid of places and on another, in time and in space."""
    weights, model = theirs(family), ours(family)
    report = load_into(model, weights)
    head = "2." if family == "fluxvit" else ""  # 27 tokens: nearest to 1024
    for num_frames, size in ((3, 42), (1, 28), (4, 70)):
        clips = torch.randn(2, num_frames, 3, size, size)
        with torch.no_grad():
            expected = [straight(weights, clip, TABLES[family], head) for clip in clips]
            given = model(clips).logits
        torch.testing.assert_close(given, torch.stack(expected), rtol=0, atol=TOLERANCE)
    assert not report.new
    assert report.family in ("FluxViT", "InternVideo2")


@pytest.mark.parametrize("family", TABLES)
def test_every_tensor_is_accounted_for(family: str) -> None:
    weights = theirs(family)
    report = load_into(ours(family), weights)
    taken = len(report.matched) + len(report.renamed) + len(report.changed)
    invented = sum(how == "not in the file: changes nothing" for how in report.changed.values())
    assert taken - invented + len(report.left_out) == len(weights)
    assert "none unexpected" in str(report)


def test_each_head_is_that_of_its_own_budget() -> None:
    weights = theirs("fluxvit")
    tokens = {"kind": "group-dynamic", "token_budget": 27}
    model = ours("fluxvit", tokens=tokens, objective={"budgets": [3072, 2048, 1024]})
    report = load_into(model, weights)
    assert "head of another budget" not in report.left_out.values()
    clips = torch.randn(1, 3, 3, 42, 42)
    with torch.no_grad():
        outputs = model.forward_budgets(clips, budgets=(3072, 2048, 1024))
        for number, output in enumerate(outputs):  # of so few tokens every budget keeps all
            expected = straight(weights, clips[0], TABLES["fluxvit"], f"{number}.")
            torch.testing.assert_close(output.logits[0], expected, rtol=0, atol=TOLERANCE)


def test_internvideo2_in_a_fluxvit_keeps_its_function_but_for_the_patch_norms() -> None:
    weights = theirs("internvideo2")
    model = ours("fluxvit", model={"patch_norm": False})
    report = load_into(model, weights)
    assert report.changed["encoder.global_positions.pos_embed"] == (
        "interpolated from (8, 16, 16) to (24, 18, 18)"
    )
    same = ours("internvideo2")
    load_into(same, weights)
    table = model.encoder.global_positions
    assert isinstance(table, torch.nn.Module)
    clips = torch.randn(1, 3, 3, 42, 42)
    with torch.no_grad():
        given = same.encoder.global_positions(same.encoder.grid)
        table.forward = lambda grid: given  # type: ignore[method-assign]
        torch.testing.assert_close(model(clips).logits, same(clips).logits, rtol=0, atol=TOLERANCE)
    fresh = load_into(ours("fluxvit"), weights, whole=False)
    assert {name for name in fresh.new if "patch_norms" not in name} == {
        "head.fc.weight",
        "head.fc.bias",
    }


def test_a_run_starts_with_a_classifier_of_its_own() -> None:
    model = ours("fluxvit")
    before = model.head.fc.weight.clone()
    report = load_into(model, theirs("fluxvit"), whole=False)
    assert torch.equal(model.head.fc.weight, before)
    assert set(report.new) == {"head.fc.weight", "head.fc.bias"}


def test_weights_of_distillation_alone_have_decoders_and_no_classifier() -> None:
    weights = theirs("internvideo2")
    for name in [name for name in weights if name.startswith(("head.", "fc_norm."))]:
        del weights[name]
    weights["clip_decoder.0.head.0.weight"] = torch.zeros(WIDTH, WIDTH)
    weights["final_clip_decoder.norm.bias"] = torch.zeros(768)
    weights["clip_pos_embed"] = torch.zeros(1, 2049, WIDTH)
    report = load_into(ours("internvideo2"), weights, whole=False)
    assert set(report.left_out.values()) == {"decoder of distillation"}
    assert set(report.new) == {
        f"head.{part}" for part in ("norm.weight", "norm.bias", "fc.weight", "fc.bias")
    }


def test_a_dual_encoder_takes_all_but_the_classifier() -> None:
    encoder = create_encoder("fluxvit_micro_patch14_28", num_frames=2)
    video = VideoModel(encoder, ProjectionHead(WIDTH, 8, "attention"), KeepAll())
    model = DualEncoder.__new__(DualEncoder)
    torch.nn.Module.__init__(model)
    model.video, model.text = video, torch.nn.Linear(2, 2)
    weights = theirs("fluxvit")
    report = load_into(model, weights, whole=False)
    assert set(report.new) == {"video.head.fc.weight", "text.weight", "text.bias"}
    assert torch.equal(video.head.pooler.q.bias, weights["clip_projector.2.cross_attn.q_bias"])
    assert report.left_out["fc_norm.weight"] == "no head of this model"


def test_a_student_starts_from_all_but_norm_and_classifier() -> None:
    model = Student(create_encoder("fluxvit_micro_patch14_28", num_frames=2), KeepAll())
    weights = theirs("fluxvit")
    report = load_into(model, weights, whole=False)
    assert not report.new
    assert model.head.pooler is not None
    assert torch.equal(model.head.pooler.q.bias, weights["clip_projector.2.cross_attn.q_bias"])


def test_names_may_have_prefixes() -> None:
    weights = {f"module.{name}": value for name, value in theirs("fluxvit").items()}
    assert family_of_file(weights) == "fluxvit"
    assert not load_into(ours("fluxvit"), weights).new


@pytest.mark.parametrize(
    "name", ["extra_mlp.0.weight", "blocks.0.attn.relative", "clip_projector.0.norm2.weight"]
)
def test_what_is_unexpected_is_an_error(name: str) -> None:
    model = ours("fluxvit")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"1 unexpected in the file \({name}\)"):
        load_into(model, {**theirs("fluxvit"), name: torch.zeros(1)})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_missing_is_an_error() -> None:
    weights = theirs("fluxvit")
    del weights["blocks.1.attn.lpe.depthwise_conv.bias"], weights["patch_embed.norm.weight"]
    with pytest.raises(ConfigError, match=r"2 missing in the file"):
        load_into(ours("fluxvit"), weights)


def test_the_name_of_the_model_that_weights_need_is_said() -> None:
    big = build.build_model(RunConfig(model=ModelConfig.named("fluxvit_tiny_patch14_224")), 5)
    with pytest.raises(ConfigError, match=r"FluxViT.*--model.name fluxvit_micro_patch14_224"):
        load_into(ours("vit", num_frames=2), theirs("fluxvit"))
    with pytest.raises(ConfigError, match=r"need another model.*--model.name fluxvit_micro"):
        load_into(ours("internvideo2"), theirs("fluxvit"))
    with pytest.raises(ConfigError, match=r"embed_dim 96, not 192; depth 4, not 12.*fluxvit_micro"):
        load_into(big, theirs("fluxvit"))


def test_a_table_of_no_known_grid_is_refused() -> None:
    weights = theirs("internvideo2", (7, 3, 3))
    with pytest.raises(ConfigError, match="a table of 63 positions"):
        load_into(ours("internvideo2"), weights)


def test_a_fine_tuned_file_is_a_whole_model(tmp_path: Path) -> None:
    weights, path = theirs("fluxvit"), tmp_path / "fluxvit.pth"
    torch.save({"module": weights}, path)
    trained = load(path)
    assert trained.class_names == ("0", "1", "2", "3", "4")
    assert trained.config.model.name == "fluxvit_micro_patch14_224"
    assert trained.config.objective.budgets == (3072, 2048, 1024)
    clips = torch.randn(1, 4, 3, 28, 28)
    with torch.no_grad():
        given = trained.model.forward_budgets(clips, budgets=(3072, 2048, 1024))[0].logits[0]
        expected = straight(weights, clips[0], TABLES["fluxvit"], "0.")
    torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE)


def test_weights_without_a_classifier_are_no_whole_model(tmp_path: Path) -> None:
    weights = {n: v for n, v in theirs("internvideo2").items() if not n.startswith("head.")}
    torch.save(weights, tmp_path / "stage1.pth")
    with pytest.raises(ConfigError, match=r"has no classifier.*--model.pretrained"):
        load(tmp_path / "stage1.pth")
