"""The front door: fast, grouped, and helpful when a name is mistyped."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onereel import api, commands, create_model
from onereel.cli import VERBS, main
from onereel.config import DataConfig, RunConfig, TokensConfig
from onereel.config.reading import to_json


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onereel.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def seconds_for_help() -> float:
    start = time.perf_counter()
    result = run("--help")
    seconds = time.perf_counter() - start
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in VERBS)
    return seconds


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    assert min(seconds_for_help() for _ in range(2)) < 2
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, onereel.cli; onereel.cli.main(['--help']); print(*sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "numpy", "av", "tyro", "rich", "pyarrow"} & set(loaded)


@pytest.mark.slow
def test_help_comes_in_half_a_second() -> None:
    """Of a machine that does nothing else: a busy one fails this."""
    assert min(seconds_for_help() for _ in range(5)) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example_that_fits_on_a_screen(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([verb, "--help"])
    except SystemExit as stop:
        code = stop.code
    text = capsys.readouterr().out
    assert code == 0
    assert f"onereel {verb}" in text
    assert len(text.splitlines()) <= 60


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "'train'"),
        (["train", "actoins"], "'actions'"),
        (["train", "--data.train", "x.csv"], "recipe first"),
        (["train", "--resume"], "run folder and nothing else"),
        (["prepare"], "--out STORE"),
        (["prepare", "videos", "--check", "list.csv"], "either it, or a source"),
        (["eval", "runs/one", "runs/two", "--name", "x"], "takes one run at a time"),
        (["predict", "run"], "predict needs videos"),
        (["predict", "run", "a.mp4", "--top-k", "0"], "--top-k is 0"),
        (["train", "actions", "--data.train", "none.csv"], "none.csv"),
        (
            ["train", "actions_flux", "--tokens.keep-ratio", "0.3"],
            "token_budget is 32, which counts",
        ),
        (["plan", "actions", "--tokens.kind", "tube", "--tokens.threshold", "0.3"], "no threshold"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("onereel: error: ")
    assert hint in error
    assert "Traceback" not in error


@pytest.mark.parametrize("verb", sorted({*VERBS} - {"train", "eval"}))
def test_a_verb_of_one_process_is_refused_under_torchrun(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([verb, "runs/one"]) == 2
    assert f"`onereel {verb}` is the work of one process" in capsys.readouterr().err


def test_a_run_is_tested_with_other_tokens_whatever_its_own_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = TokensConfig(kind="run-length", threshold=0.05)
    (tmp_path / "config.json").write_text(to_json(RunConfig(tokens=tokens)))
    tested: list[TokensConfig] = []
    monkeypatch.setattr(api, "evaluate", lambda *_, config, **__: tested.append(config.tokens))
    random = ["eval", str(tmp_path), "--tokens.kind", "random", "--tokens.keep-ratio", "0.3"]
    assert main(random) == 0
    assert (tested[0].kind, tested[0].keep_ratio, tested[0].threshold) == ("random", 0.3, 0.05)
    assert main([*random, "--tokens.threshold", "0.2"]) == 2
    assert "tokens.threshold is 0.2, but the budget of random" in capsys.readouterr().err
    assert len(tested) == 1


@pytest.mark.parametrize(
    "field", ["train x.csv", "repeats 2", "crop center", "cache_views 3", "hold-out-ratio 0.5"]
)
def test_what_only_training_uses_is_no_setting_of_a_test(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(repeats=4)  # the run's own does no harm
    (tmp_path / "config.json").write_text(to_json(RunConfig(data=data)))
    name, value = field.split()
    assert main(["eval", str(tmp_path), "--name", "other", f"--data.{name}", value]) == 2
    error = capsys.readouterr().err
    assert f"data.{name.replace('-', '_')} is {value}, but only training uses it" in error
    assert main(["eval", str(tmp_path), "--name", "other", "--data.num-frames", "8"]) == 2
    assert "names no validation list" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report"], ["train", "--resume"]])
def test_a_saved_model_is_named_where_a_run_is_needed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = create_model("vit_micro_patch16_32", 2).save_pretrained(tmp_path / "saved")
    before = sorted(folder.iterdir())
    assert main([*words, str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"{folder} holds a saved model (onereel) and no run" in error
    assert f"`onereel train RECIPE --model.pretrained {folder}`" in error
    assert f"`onereel predict {folder} VIDEO`" in error
    assert sorted(folder.iterdir()) == before


def test_a_misspelt_technique_names_the_nearest(
    tmp_path: Path,
    make_video: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEREEL_CACHE", str(tmp_path / "cache"))
    make_video(tmp_path / "a.mp4")
    (tmp_path / "train.csv").write_text("path,label\n" + "a.mp4,clap\na.mp4,wave\n" * 8)
    arguments = ["train", "actions", "--data.train", str(tmp_path / "train.csv")]
    arguments += ["--tokens.kind", "run-lenght", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--train.batch-size-per-device", "2", "--data.num-workers", "0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onereel: error: unknown tokens.kind 'run-lenght'")
    assert "'run-length'" in error
    assert not (tmp_path / "run").exists()


def test_a_misspelt_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "actions", "--optim.lrr", "3e-4"])
    assert stop.value.code == 2
    assert "--optim.lr" in capsys.readouterr().err


def test_help_takes_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "train"]) == 0
    assert "onereel train RECIPE" in capsys.readouterr().out


@pytest.mark.parametrize("form", [["--model.name", "{}"], ["--model.name={}"]])
def test_a_models_name_brings_its_familys_fields_to_any_recipe(form: list[str]) -> None:
    argv = ["actions", *(part.format("fluxvit_micro_patch8_48") for part in form)]
    model = commands._recipe(argv).model
    assert model.name == "fluxvit_micro_patch8_48"
    assert (model.style, model.positions, model.pool, model.tubelet_size) == (
        *("flux", "global", "attention"),
        1,
    )
    default = commands.PlanOptions(config=commands._recipe(argv))
    argv = [*argv[1:], "--model.positions", "rope"]
    given = commands._parse("plan", commands.PlanOptions, argv, default=default).config.model
    assert (given.positions, given.style) == ("rope", "flux")
    assert commands._recipe(["actions"]).model.style == "vit"
