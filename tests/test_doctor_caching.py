"""What a feature cache takes, by the facts' table, and when it pays."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

import onereel
from onereel import build
from onereel.cli import main
from onereel.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_json
from onereel.doctor import plan_run
from onereel.doctor.arithmetic import Workload
from onereel.doctor.caching import cache_bytes, caching_advice
from onereel.models.registry import SIZES

# Training clips as ViViT's and MTV's configurations count them.
CLIPS = {"K400": 214_834, "K600": 363_213, "SSv2": 168_913, "EK100": 67_217, "MiT": 791_297}
FROZEN = RunConfig(
    data=DataConfig(num_frames=8, size=32),
    model=ModelConfig(name="vit_micro_patch16_32", temporal_depth=2, frozen="spatial"),
    train=TrainConfig(epochs=10),
)


@pytest.mark.parametrize(
    ("name", "b_32f", "l_32f", "b_128f"),
    [
        ("K400", 5.3, 7.0, 21.1),
        ("K600", 8.9, 11.9, 35.7),
        ("SSv2", 4.2, 5.5, 16.6),
        ("EK100", 1.7, 2.2, 6.6),
        ("MiT", 19.4, 25.9, 77.8),
    ],
)
def test_sizes_are_those_of_the_table(name: str, b_32f: float, l_32f: float, b_128f: float) -> None:
    """One view in half precision, tubelets of two frames."""
    base, large = SIZES["base"].embed_dim, SIZES["large"].embed_dim
    for num_frames, width, expected in ((16, base, b_32f), (16, large, l_32f), (64, base, b_128f)):
        size = cache_bytes(CLIPS[name], num_frames, width) / 1e9
        assert size == pytest.approx(expected, abs=0.051)


@given(views=st.integers(0, 20), epochs=st.integers(1, 20))
def test_it_pays_for_fewer_views_than_epochs(views: int, epochs: int) -> None:
    config = replace(
        FROZEN,
        data=replace(FROZEN.data, cache_views=views),
        train=replace(FROZEN.train, epochs=epochs),
    )
    said = caching_advice(config, ENCODER, 1000)
    assert "1000 clips x 4 frames x 96 values in float16 are 0.000768 GB per view" in said
    if not views:
        assert f"it pays for K < {epochs}" in said
    else:
        assert ("it pays" in said) == (views < epochs)
        assert ("it doesn't pay" in said) == (views >= epochs)


ENCODER = build.build_encoder(FROZEN)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    data = replace(FROZEN.data, cache_views=2, cache=str(tmp_path / "not" / "there"))
    config = replace(FROZEN, data=data)
    assert " are free" not in caching_advice(config, ENCODER, 10)
    assert " are free" in caching_advice(config, ENCODER, 10**15)


def test_nothing_is_said_where_nothing_is_frozen() -> None:
    config = replace(FROZEN, model=replace(FROZEN.model, frozen="none"))
    assert not caching_advice(config, build.build_encoder(config), 10)


@pytest.fixture
def config(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RunConfig:
    """Of a list with one video."""
    monkeypatch.setenv("ONEREEL_CACHE", str(tmp_path / "cache"))
    make_video(tmp_path / "a.mp4", num_frames=20, height=48, width=64)
    (tmp_path / "list.csv").write_text("path,label\na.mp4,wave\n")
    return replace(
        FROZEN,
        data=replace(FROZEN.data, train=str(tmp_path / "list.csv"), num_workers=0),
        train=replace(FROZEN.train, batch_size_per_device=1),
    )


def test_a_plan_with_a_cache_is_of_both_parts_of_the_run(config: RunConfig, tmp_path: Path) -> None:
    """Three views are decoded and encoded, and ten epochs trained on features, as they are written."""
    cached = replace(config, data=replace(config.data, cache_views=3))
    plan = plan_run(cached)
    assert plan.making is not None
    assert plan.making.workload == Workload(1, 3, 1, 1)
    assert plan.training.workload == Workload(1, 10, 1, 1)
    making, training = plan.making.forecast, plan.training.forecast
    assert plan.run_seconds == making.run_seconds + training.run_seconds
    onereel.train(replace(cached, train=replace(cached.train, epochs=1)), out=tmp_path / "run")
    (shard,) = (tmp_path / "run" / "features").glob("*.safetensors")
    assert plan.training.rates.bytes_per_clip == load_file(shard)["values"].nbytes
    assert training.cpu == math.inf, "nothing is decoded any more"
    whole = plan_run(config)
    assert whole.making is None
    assert plan.model.flops_per_clip < whole.model.flops_per_clip
    console = Console(width=300, file=io.StringIO())
    console.print(plan)
    said = console.file.getvalue()
    assert "to make the features of 3 views of 1 clips, then" in said
    assert "AVION" not in said, "steps read no chunks"


def test_plan_and_doctor_say_it(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert "it pays for K < 10" in plan_run(config).caching
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from onereel.config import *\n"
        "def recipe():\n"
        "    return RunConfig(data=DataConfig(num_frames=8, size=32), train=TrainConfig(epochs=10),\n"
        "        model=ModelConfig(name='vit_micro_patch16_32', temporal_depth=2, frozen='spatial'))\n"
    )
    assert main(["doctor", "--recipe", str(recipe), "--videos", str(tmp_path / "list.csv")]) == 0
    assert "it pays for K < 10" in capsys.readouterr().out
    assert main(["doctor", "--recipe", str(recipe)]) == 2
    assert "give --videos or --store too" in capsys.readouterr().err


def test_names_are_printed_as_they_are(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    folder = tmp_path / "takes [red] :star:"
    folder.mkdir()
    for name in ("a.mp4", "list.csv"):
        (tmp_path / name).rename(folder / name)
    recipe = tmp_path / "mine.py"
    text = to_json(config)
    recipe.write_text(
        f"from onereel.config import from_json\ndef recipe():\n    return from_json({text!r})\n"
    )
    assert main(["plan", str(recipe), "--data.train", str(folder / "list.csv")]) == 0
    assert str(folder) in capsys.readouterr().out
    assert main(["doctor", "--folder", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
