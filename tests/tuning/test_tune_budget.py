"""The budget from search to answer on a small run: what a user does, and what a user does wrong."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import onereel
from onereel import answering, api
from onereel.cli import main
from onereel.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.errors import ConfigError
from onereel.evaluation import token_optimisation
from onereel.evaluation.budget_table import BudgetTable, Setting
from onereel.evaluation.classification import ClassificationResult
from onereel.evaluation.predict import predict as predict_under
from onereel.report.run_report import write_report
from onereel.tuning import Choice, search
from onereel.tuning.settings import at_setting, fit_to
from onereel.types import Prediction, Quarantined
from onereel.video.library import RawVideos

TINY = RunConfig(
    recipe="tiny",
    data=DataConfig(num_frames=4, size=32, num_workers=0, hold_out_ratio=0.3),
    augment=AugmentConfig(hflip_prob=0.0),
    tokens=TokensConfig(kind="redundancy"),
    model=ModelConfig(name="vit_micro_patch16_32"),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(epochs=1, batch_size_per_device=2, log_every=1),
    eval=EvalConfig(num_clips=2),
)
GRID = {"frames": (4, 8), "sizes": (32,), "budgets": (8, 3)}
SETTINGS = [(4, 32, 3), (4, 32, 8), (8, 32, 3), (8, 32, 8)]


@pytest.fixture(autouse=True)
def _few_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "NUM_TIMED", 4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """Ten videos of two classes: train.csv has six, tune.csv four more and a file that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(10):
        make_video(folder / f"{i}.mp4", num_frames=20, height=48, width=64)
    rows = [f"{i}.mp4,{'wave' if i % 2 else 'clap'}\n" for i in range(10)]
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "train.csv").write_text("path,label\n" + "".join(rows[:6]))
    (folder / "tune.csv").write_text(
        "path,label\n" + "".join(rows[6:8]) + "broken.mp4,clap\n" + "".join(rows[8:])
    )
    (folder / "good.csv").write_text("path,label\n" + "".join(rows[6:]))
    return folder


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tiny"
    onereel.train(TINY, data=str(videos / "train.csv"), val=str(videos / "good.csv"), out=run)
    return run


@pytest.fixture(scope="module")
def tuned(trained: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with its table, measured by the command line."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    shutil.copytree(trained, run)
    words = ["tune-budget", str(run), "--val", str(videos / "tune.csv"), "--sizes", "32"]
    assert main([*words, "--frames", "4", "8", "--budgets", "8", "3"]) == 0
    return run


@pytest.fixture
def run(tuned: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(tuned, tmp_path / "run")
    return tmp_path / "run"


def table_of(run: Path) -> BudgetTable:
    return BudgetTable.load(run / "budgets.json")


def test_every_row_is_what_eval_finds_under_that_setting(tuned: Path, videos: Path) -> None:
    table = table_of(tuned)
    assert [row.setting for row in table.rows] == SETTINGS
    own = replace(api.run_config(tuned), data=replace(TINY.data, val=str(videos / "good.csv")))
    for row in table.rows:
        config = at_setting(own, row.setting)
        result = api.evaluate(tuned, name="check", config=config)
        assert isinstance(result, ClassificationResult)
        assert row.accuracy == result.top1
        assert row.macs_per_clip == result.macs_per_view
        assert row.token_budget / row.num_tokens == result.kept_ratio
        if row.token_budget == row.num_tokens:
            assert row.random_correct == row.correct


def test_what_it_cost_was_measured(tuned: Path) -> None:
    table = table_of(tuned)
    assert table.complete
    assert table.index_ms > 0
    for row in table.rows:
        assert 0 < row.clip_ms <= row.clip_p95_ms
        assert 0 < row.video_ms <= row.video_p95_ms
        assert row.clips_per_second > 0
    assert table.conditions["weights"].startswith("step 2, ")
    assert table.num_views == 2


def test_a_broken_video_is_left_out_everywhere_and_named(tuned: Path) -> None:
    table = table_of(tuned)
    assert list(table.left_out) == ["2"]
    assert "broken.mp4" in table.left_out["2"]
    assert table.num_videos == 4
    assert {row.correct[2] for row in table.rows} == {"-"}
    text = (tuned / "report.html").read_text()
    assert 'id="budgets"' in text


def test_a_broken_video_is_said_once(
    trained: Path, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        onereel.tune_budget(tmp_path / "run", val=str(videos / "tune.csv"), **GRID)  # type: ignore[arg-type]
    said = [record for record in caplog.records if "broken.mp4" in record.getMessage()]
    assert len(said) == 1


def test_a_search_that_was_stopped_goes_on(
    trained: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    measured: list[list[Setting]] = []
    whole = search._Search.measure

    def until_second(self: search._Search, settings: list[Setting], quarantine: Path) -> list:
        if measured and len(measured) == 1:
            measured.append([])
            raise KeyboardInterrupt
        measured.append(settings)
        return whole(self, settings, quarantine)

    monkeypatch.setattr(search._Search, "measure", until_second)
    with pytest.raises(KeyboardInterrupt):
        onereel.tune_budget(run, val=str(videos / "good.csv"), **GRID)  # type: ignore[arg-type]
    half = table_of(run)
    assert ([row.setting for row in half.rows], half.complete) == (SETTINGS[:2], False)
    lines: list[str] = []
    table = onereel.tune_budget(run, val=str(videos / "good.csv"), say=lines.append, **GRID)  # type: ignore[arg-type]
    assert measured[2] == [(8, 32, 8), (8, 32, 3)]
    assert len(measured) == 3
    assert "2 of 4 settings are measured already" in lines
    assert table.rows[:2] == half.rows
    assert table.complete
    assert table == table_of(run)
    for row in table.rows:  # and chance keeps what it keeps in `onereel eval`
        config = at_setting(api.run_config(run), row.setting)
        random = replace(config, tokens=TokensConfig(kind="random", token_budget=row.token_budget))
        chance = api.evaluate(run, name="chance", config=random, val=str(videos / "good.csv"))
        assert isinstance(chance, ClassificationResult)
        assert row.random_accuracy == chance.top1


def test_a_whole_table_that_is_added_to_is_whole_when_all_is_added(
    run: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = table_of(run).rows[0]

    def until_12_frames(self: search._Search, settings: list[Setting], quarantine: Path) -> list:
        if settings[0].num_frames == 12:
            raise KeyboardInterrupt
        return [replace(row, **one._asdict()) for one in settings]

    monkeypatch.setattr(search._Search, "measure", until_12_frames)
    more = {**GRID, "frames": (4, 6, 8, 12)}
    with pytest.raises(KeyboardInterrupt):
        onereel.tune_budget(run, val=str(videos / "tune.csv"), **more)  # type: ignore[arg-type]
    table = table_of(run)
    assert (len(table.rows), table.complete) == (6, False)


def test_other_seconds_of_the_same_videos_are_another_list(
    run: Path, videos: Path, tmp_path: Path
) -> None:
    listed = (videos / "tune.csv").read_text().splitlines()
    lines = [listed[0] + ",start,end", *(line + ",0,0.5" for line in listed[1:])]
    path = videos / "spans.csv"
    path.write_text("\n".join(lines) + "\n")
    trained = onereel.load(run)
    whole, parts = (
        search.conditions_of(
            trained,
            trained.config,
            api.build.build_annotations(trained.config, str(one)),
            torch.device("cpu"),
        )
        for one in (videos / "tune.csv", path)
    )
    assert whole["records"] != parts["records"]


def test_no_answer_pays_for_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a promise counts apart, and the first of a grid's rows would pay alone."""
    calls: list[object] = []
    monkeypatch.setattr(
        token_optimisation, "_answer", lambda bench, one, videos, index: calls.append((one, index))
    )
    videos = SimpleNamespace(
        library=SimpleNamespace(info=calls.append),
        annotations=SimpleNamespace(record=lambda index: SimpleNamespace(path=f"{index}.mp4")),
    )
    bench = SimpleNamespace(device=torch.device("cpu"))
    found = token_optimisation.time_videos(bench, ["a", "b"], videos, [3, 5])  # type: ignore[arg-type, list-item]
    assert [len(own) for own in found] == [2, 2]
    assert calls[-3:] == ["5.mp4", ("a", 5), ("b", 5)]
    assert calls[0] == "3.mp4"


def test_without_a_list_it_takes_what_was_kept_from_training(
    trained: Path, videos: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    table = onereel.tune_budget(tmp_path / "run", frames=(4,), sizes=(32,), budgets=(8,))
    assert table.num_videos == 2  # 0.3 of six
    assert table.caveats == ()
    # The two were not in the four that an epoch has.
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 2


def test_what_accuracies_must_be_read_with_is_said(
    trained: Path, videos: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.csv"
    rows = [f"{videos / f'{i}.mp4'},{'wave' if i % 2 else 'clap'}\n" for i in range(8)]
    mixed.write_text("path,label\n" + "".join(rows))
    shutil.copytree(trained, tmp_path / "run")
    small = {"frames": (4,), "sizes": (32,), "budgets": (8,)}
    table = onereel.tune_budget(tmp_path / "run", val=str(mixed), **small)  # type: ignore[arg-type]
    assert table.caveats == (
        "the run has trained on 4 of the 8 videos of mixed.csv: accuracies are too high, and too much alike",
    )
    own = str(videos / "good.csv")
    table = onereel.tune_budget(tmp_path / "run", val=own, overwrite=True, **small)  # type: ignore[arg-type]
    assert "is the list that the run is tested on" in table.caveats[0]


def test_files_are_timed_as_predict_reads_them_though_one_is_missing(
    trained: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("6.mp4", "7.mp4", "8.mp4", "9.mp4", "good.csv"):
        shutil.copy(videos / name, folder)
    onereel.prepare(folder, tmp_path / "store")
    config = replace(TINY, data=replace(TINY.data, store=str(tmp_path / "store")))
    annotations = api.build.build_annotations(config, str(folder / "good.csv"))
    model = onereel.load(trained)

    def found() -> search._Search:
        return search._Search.of(model, config, annotations, torch.device("cpu"))

    (folder / "7.mp4").unlink()
    assert found().timed_from == "files"
    assert set(found().timed) == {0, 2, 3}
    for name in ("6.mp4", "8.mp4", "9.mp4"):
        (folder / name).unlink()
    assert found().timed_from == "chunk store"

    run, small = tmp_path / "run", {"frames": (4,), "sizes": (32,), "budgets": (8,)}
    shutil.copytree(trained, run)
    stored = replace(model, config=replace(model.config, data=config.data))
    monkeypatch.setattr(search, "load", lambda run: stored)
    table = onereel.tune_budget(run, val=str(folder / "good.csv"), **small)  # type: ignore[arg-type]
    assert (table.index_ms, table.from_store) == (0.0, True)
    assert "read from the chunk store" in table.caveats[-1]
    with pytest.raises(ConfigError, match="latencies are of videos in a chunk store"):
        onereel.predict(run, [videos / "6.mp4"], latency_ms=60000)
    choices: list[Choice] = []
    onereel.predict(run, [videos / "6.mp4"], budget=8, on_choice=choices.append)
    assert "promised" not in str(choices[0])
    assert "--latency-ms" not in write_report(run).read_text()


def test_what_accuracy_is_of_is_said_with_it(
    trained: Path, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, small = tmp_path / "run", {"frames": (4,), "sizes": (32,), "budgets": (8,)}
    shutil.copytree(trained, run)
    choices: list[Choice] = []

    def choose() -> str:
        onereel.predict(run, [videos / "6.mp4"], budget=8, on_choice=choices.append)
        return str(choices[-1])

    onereel.tune_budget(run, **small)  # type: ignore[arg-type]
    assert "on 2 records held out of train.csv\n" in choose()
    (videos / "again.csv").write_text((videos / "train.csv").read_text())
    onereel.tune_budget(run, val=str(videos / "again.csv"), overwrite=True, **small)  # type: ignore[arg-type]
    assert "on 6 records of again.csv\n" in choose()
    assert "has trained on 4 of the 6 videos of again.csv" in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"val": "train.csv"}, "is the list that the run trained on"),
        ({"val": "tune.csv", "frames": (5,)}, "num_frames 5 is not a multiple of tubelet_size 2"),
        (
            {"val": "tune.csv", "num_clips": 1},
            r"num_clips was 2, is 1. Measure anew with --overwrite",
        ),
        ({"val": "tune.csv", "tokens_kind": "all"}, "tokens_kind is 'all', which has no budget"),
        (
            {"val": "tune.csv", "tokens_kind": "random"},
            "conditions: tokens.kind was redundancy, is random. Measure",
        ),
        ({"val": "good.csv"}, "measured under other conditions: list was"),
        ({"val": "none.csv"}, "no such file"),
        ({"val": "tune.csv", "tokens_kind": "redundancey"}, "'redundancy'"),
    ],
)
def test_a_mistake_is_said_before_anything_is_measured(
    options: dict[str, object], says: str, run: Path, videos: Path
) -> None:
    before = (run / "budgets.json").read_bytes()
    given = {**options, "val": str(videos / str(options["val"]))}
    with pytest.raises(onereel.errors.OnereelError, match=says):  # type: ignore[attr-defined]
        onereel.tune_budget(run, **given)  # type: ignore[arg-type]
    assert (run / "budgets.json").read_bytes() == before


def test_answers_are_those_of_the_row_that_was_picked(tuned: Path, videos: Path) -> None:
    paths = [str(videos / f"{i}.mp4") for i in (6, 7)]
    choices: list[Choice] = []
    answers = onereel.predict(tuned, paths, budget=5, on_choice=choices.append)
    (choice,) = choices
    assert choice.row.token_budget == 3
    assert choice.row.accuracy == max(
        r.accuracy for r in table_of(tuned).rows if r.token_budget == 3
    )
    trained_model = api.load(tuned)
    config = at_setting(trained_model.config, choice.row.setting)
    fit_to(trained_model.model, config)
    expected = predict_under(
        trained_model.model,
        RawVideos(),
        paths,
        class_names=trained_model.class_names,
        num_frames=config.data.num_frames,
        size=32,
        num_clips=2,
    )
    assert answers == list(expected)
    for answer in answers:
        assert isinstance(answer, Prediction)
        assert answer.index_ms is not None
        assert answer.answer_ms is not None
        assert answer.answer_ms > 0
    assert "measured: " in choice.measured(answers)
    assert choice.measured(expected) == ""


def test_the_command_line_says_what_is_promised_and_what_it_took(
    tuned: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(tuned), str(videos / "6.mp4"), "--latency-ms", "60000"]
    assert main([*words, "--out", str(tmp_path / "out.csv")]) == 0
    out = capsys.readouterr().out
    assert "the most accurate within 60000 ms per video: " in out
    assert "its 2 views" in out
    assert "\nmeasured: " in out
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["answer_ms"]) > 0
    assert float(row["index_ms"]) >= 0


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (["--latency-ms", "0.001"], "the fastest there is takes"),
        (["--target-accuracy", "90"], "0.9 is 90 %"),
        (["--budget", "2"], "--budget 3 or more"),
        (["--budget", "3", "--latency-ms", "9"], "exactly one of budget, latency_ms"),
        (["--budget", "3", "--num-clips", "1"], "the views are part of what was measured"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line_with_the_remedy(
    wish: list[str], says: str, tuned: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(tuned), str(videos / "6.mp4"), *wish]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onereel: error: ")
    assert says in error


def test_without_a_table_the_command_is_named(trained: Path, videos: Path) -> None:
    with pytest.raises(ConfigError, match=r"`onereel tune-budget .* --val LIST`"):
        onereel.predict(trained, [videos / "6.mp4"], budget=3)


def test_a_table_of_other_weights_is_refused(run: Path, videos: Path) -> None:
    values = json.loads((run / "budgets.json").read_text())
    values["conditions"]["weights"] = "step 1, 00"
    (run / "budgets.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"for other weights \(step 1, 00; the run's are step 2"):
        onereel.predict(run, [videos / "6.mp4"], budget=3)


def test_a_table_of_another_machine_or_half_a_search_is_a_warning(
    run: Path, videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = json.loads((run / "budgets.json").read_text())
    values["conditions"]["processor"] = "abacus, 1 cores"
    values["complete"] = False
    (run / "budgets.json").write_text(json.dumps(values))
    assert len(onereel.predict(run, [videos / "6.mp4"], budget=3)) == 1
    assert "measured on another machine (abacus, 1 cores" in caplog.text
    assert "the search was stopped" in caplog.text


def test_as_many_threads_as_were_measured_with_and_none_afterwards(
    run: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = json.loads((run / "budgets.json").read_text())
    values["conditions"]["num_threads"] = 2
    (run / "budgets.json").write_text(json.dumps(values))
    seen: list[int] = []

    def spy(model: object, library: object, paths: list[str], **options: object) -> Iterator:
        seen.append(torch.get_num_threads())
        return iter([Quarantined(path, "not asked") for path in paths])

    monkeypatch.setattr(answering, "_predict", spy)
    onereel.predict(run, [videos / "6.mp4"], budget=3)
    onereel.predict(run, [videos / "6.mp4"])
    assert seen == [2, 1]


def test_overwriting_the_run_takes_its_table_away(run: Path, videos: Path) -> None:
    onereel.train(TINY, data=str(videos / "train.csv"), out=run, overwrite=True)
    assert not (run / "budgets.json").exists()


@pytest.mark.slow
def test_a_budget_is_exported_and_checked(
    run: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", str(run), "--format", "torch-export", "--check"]
    assert main([*export, "--budget", "3"]) == 0
    out = capsys.readouterr().out
    assert "3 tokens: top-1" in out
    assert "within the tolerance" in out
    extra = {"onereel.json": ""}
    program = torch.export.load(run / "model.pt2", extra_files=extra)
    facts = json.loads(extra["onereel.json"])
    assert (facts["token_budget"], facts["size"]) == (3, 32)
    assert program.module()(torch.randn(2, facts["num_frames"], 3, 32, 32)).shape == (2, 2)
    assert main([*export, "--budget", "4"]) == 2
    assert "measured are 3, 8" in capsys.readouterr().err
    (run / "budgets.json").unlink()
    assert main([*export, "--budget", "4"]) == 0
    assert "the run's own clips" in capsys.readouterr().out
    assert main([*export, "--budget", "4", "--tokens.kind", "all"]) == 2
