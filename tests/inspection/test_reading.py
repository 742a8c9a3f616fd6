"""Which clip is read: in the middle or where it is told to start; with a run, as the run tests itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import onereel
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TextConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.errors import ConfigError, DecodeError
from onereel.inspection.clip import draw, inspect_clip
from onereel.inspection.options import ClipOptions
from onereel.inspection.pages import inspect
from onereel.inspection.reading import clip_reading
from onereel.loading import load_trained
from onereel.models.choosing import chosen_tokens
from onereel.models.dual_encoder import DualEncoder
from onereel.report.inspect_index import video_entry
from onereel.report.inspect_page import render_page
from onereel.types import VideoInfo
from onereel.video.library import open_library

TINY = RunConfig(
    recipe="tiny",
    data=DataConfig(num_frames=8, size=32, num_workers=0),
    augment=AugmentConfig(hflip_prob=0.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    model=ModelConfig(name="vit_micro_patch16_32", pool="cls"),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=0),
    train=TrainConfig(epochs=1, batch_size_per_device=2),
)


@pytest.fixture(scope="module")
def run(moving_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "train.csv").write_text(f"path,label\n{moving_video},a\n{moving_video},b\n")
    return onereel.train(TINY, data=str(folder / "train.csv"), out=folder / "run").run


def test_a_run_gives_its_clips_its_embedding_and_its_model(
    run: Path, moving_video: Path, tmp_path: Path
) -> None:
    reading, trained = clip_reading(ClipOptions(), run), onereel.load(run)
    assert (reading.num_frames, reading.size, reading.sampling) == (8, 32, "segment")
    assert reading.augment == TINY.augment
    patches = torch.randn(1, reading.grid.num_tokens, trained.model.encoder.patch_values)
    assert torch.equal(reading.embed(patches), trained.model.encoder.embed(patches))
    own = reading.models[0]
    assert (own.name, own.chosen, own.extra_tokens) == (TINY.model.name, True, 1)
    assert not any(model.chosen for model in reading.models[1:])
    page = inspect(moving_video, run=run, out=tmp_path / "page.html").page.read_text()
    assert "the run&#39;s embedding" in page or "the run\\u0027s embedding" in page


@pytest.mark.parametrize(
    ("objective", "tokens"),
    [
        (ObjectiveConfig(), TokensConfig(kind="run-length", threshold=0.3, noise_cell=2)),
        (ObjectiveConfig(), TokensConfig(kind="run-length", follow_camera=True)),
        (ObjectiveConfig(), TokensConfig(kind="redundancy", keep_ratio=0.4, min_per_tubelet=1)),
        (ObjectiveConfig(kind="masked", mask="random"), TokensConfig(kind="random")),
        (ObjectiveConfig(kind="contrastive"), TokensConfig(kind="group-dynamic", keep_ratio=0.7)),
    ],
    ids=["noise", "camera", "floor", "masked", "pairs"],
)
def test_a_page_begins_with_what_any_run_keeps(
    objective: ObjectiveConfig, tokens: TokensConfig, moving_video: Path, tmp_path: Path
) -> None:
    if objective.kind == "contrastive":
        pytest.importorskip("transformers", reason="needs onereel[text]")
    (tmp_path / "train.csv").write_text(
        f"path,label,caption\n{moving_video},a,one\n{moving_video},b,two\n"
    )
    model = replace(TINY.model, name="vit_micro_patch8_32", pool="mean")
    text = TextConfig(size="micro", embed_dim=16, context_length=12, vocab_size=300)
    config = replace(TINY, objective=objective, tokens=tokens, model=model, text=text)
    run = onereel.train(config, data=str(tmp_path / "train.csv"), out=tmp_path / "run").run
    reading = clip_reading(ClipOptions(), run)
    inspected = inspect_clip(open_library(), str(moving_video), reading)
    assert inspected.own is not None
    # The run's own code, on the clip as the run tests itself.
    trained = load_trained(run).model
    video = trained.video if isinstance(trained, DualEncoder) else trained
    library = open_library()
    clip = library.read(reading.spec(str(moving_video), library.info(str(moving_video))))
    clips = (clip[None].float() / 255 - 0.5) / 0.25
    kept = chosen_tokens(video.encoder, video.selector, None, clips, None, draw(), draws=False)[
        0
    ].coordinates
    t, h, w = kept[kept[:, 0] >= 0].T
    mask = torch.zeros(*inspected.grid, dtype=torch.bool)
    mask[t, h, w] = True
    assert torch.equal(inspected.own.keep_mask, mask.flatten())
    assert 0 < mask.sum() < mask.numel()
    shown = inspected.selectors[0]
    assert (shown.key, inspected.threshold) == ("own", tokens.threshold)
    assert f"tokens.kind {tokens.kind}" in shown.rule
    page = render_page(inspected)
    assert 'value="own" checked' in page
    assert page.count(" checked") == 1
    assert video_entry(inspected, "").kept_ratio == mask.float().mean()


def test_options_go_before_the_run(run: Path) -> None:
    reading = clip_reading(ClipOptions(num_frames=4, size=64, sampling_rate=2), run)
    assert (reading.num_frames, reading.size, reading.sampling) == (4, 64, "dense")
    assert clip_reading(ClipOptions(start=0.5), run).sampling == "dense"
    with pytest.raises(ConfigError, match="run's model has 16"):
        clip_reading(ClipOptions(patch_size=8), run)
    clip_reading(ClipOptions(patch_size=16, tubelet_size=2), run)


def test_the_clip_lies_in_the_middle_or_starts_where_it_is_told() -> None:
    info = VideoInfo(num_frames=100, fps=25.0, height=90, width=120)
    middle = clip_reading(ClipOptions(num_frames=4, sampling_rate=5)).spec("v", info)
    assert middle.frame_indices == (42, 47, 52, 57)
    assert (middle.crop.height, middle.crop.width) == (90, 90)
    told = clip_reading(ClipOptions(start=2.0, num_frames=4, sampling_rate=5)).spec("v", info)
    assert told.frame_indices == (50, 55, 60, 65)
    late = clip_reading(ClipOptions(start=3.9, num_frames=4, sampling_rate=5)).spec("v", info)
    assert late.frame_indices == (98, 99, 99, 99)
    with pytest.raises(DecodeError, match="starts at 4"):
        clip_reading(ClipOptions(start=4.0)).spec("v", info)


@pytest.mark.parametrize(
    "options", [{"num_frames": 15}, {"size": 40}, {"patch_size": 15}, {"tubelet_size": 3}]
)
def test_tubelets_that_do_not_cut_the_clip_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="multiple"):
        clip_reading(ClipOptions(**options))


@pytest.mark.parametrize("options", [{"start": -1.0}, {"num_frames": 0}, {"size": 31}])
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        ClipOptions(**options)  # type: ignore[arg-type]
