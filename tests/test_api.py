"""The main job through the Python API and the command line: what a user does, and what a user does wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import onereel
from onereel import answering, api, build
from onereel.cli import main
from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
    to_json,
)
from onereel.errors import ConfigError, DataError, DecodeError
from onereel.evaluation.classification import ClassificationResult
from onereel.training import CheckpointError, create_run, list_checkpoints
from onereel.types import Quarantined

TINY = RunConfig(
    recipe="tiny",
    data=DataConfig(num_frames=4, size=32, num_workers=0),
    augment=AugmentConfig(hflip_prob=0.0),
    tokens=TokensConfig(kind="run-length"),
    model=ModelConfig(name="vit_micro_patch16_32"),
    optim=OptimConfig(lr=1e-3, lr_batch_size=0, warmup_epochs=1),
    train=TrainConfig(epochs=2, batch_size_per_device=2, log_every=1, save_every=2),
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    """A folder with eight videos of two classes, train.csv and val.csv."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(8):
        make_video(folder / f"clip {i}.mp4", num_frames=20, height=48, width=64)
    rows = [f"clip {i}.mp4,{'wave' if i % 2 else 'clap'}\n" for i in range(8)]
    (folder / "train.csv").write_text("path,label\n" + "".join(rows[:6]))
    (folder / "val.csv").write_text("path,label\n" + "".join(rows[4:]))
    return folder


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on raw files."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    onereel.train(TINY, data=str(videos / "train.csv"), val=str(videos / "val.csv"), out=run)
    return run


def records(run: Path, kind: str = "train") -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in records(run)]


def test_a_run_folder_holds_everything(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    wanted = {
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "eval",
        "report.html",
        "examples",
    }
    assert wanted <= names
    assert api.run_config(trained).train.global_batch_size == 2, "to go on on other devices"
    assert len(losses(trained)) == 6
    (evaluation,) = records(trained, "eval")
    result = json.loads((trained / "eval" / "val.json").read_text())
    assert result["top1"] == evaluation["top1"]
    assert result["num_videos"] == 4
    assert "data:image" in (trained / "report.html").read_text()
    assert {"clips_per_second", "tokens_per_second", "mfu", "data_wait", "kept_ratio"} <= set(
        records(trained)[0]
    )


def test_prepared_and_raw_videos_train_alike(videos: Path, trained: Path, tmp_path: Path) -> None:
    report = onereel.prepare(videos, tmp_path / "store", num_workers=1)
    assert (report.videos, report.quarantined) == (8, ())
    lists = {"data": str(videos / "train.csv"), "val": str(videos / "val.csv")}
    onereel.train(TINY, **lists, store=str(tmp_path / "store"), out=tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(trained), rel=0.1)


def test_load_evaluate_predict(trained: Path, videos: Path) -> None:
    loaded = onereel.load(trained)
    assert loaded.class_names == ("clap", "wave")
    first, second = (onereel.evaluate(trained, name="again") for _ in range(2))
    assert first.confusion == second.confusion
    assert first.top1 == json.loads((trained / "eval" / "val.json").read_text())["top1"]
    (answer,) = onereel.predict(trained, [videos / "clip 0.mp4"], num_clips=2, num_crops=3)
    assert set(answer.labels) == {"clap", "wave"}
    assert sum(answer.probabilities) == pytest.approx(1)
    assert onereel.predict(loaded, videos / "clip 0.mp4", num_clips=2, num_crops=3) == [answer]
    with pytest.raises(ConfigError, match="give the folder of the run"):
        onereel.predict(loaded, videos / "clip 0.mp4", budget=2)
    dense = replace(loaded.config, tokens=TokensConfig())
    assert onereel.evaluate(trained, name="dense", config=dense).kept_ratio == 1


def test_create_model() -> None:
    model = onereel.create_model("vit_micro_patch16_32", 3, num_frames=4, tokens="run-length")
    assert model.eval()(torch.zeros(2, 4, 3, 32, 32)).logits.shape == (2, 3)
    with pytest.raises(ConfigError, match="Did you mean 'vit_micro"):
        onereel.create_model("vit_mcro_patch16_32", 3)
    with pytest.raises(ConfigError, match="drop_path_rate"):
        onereel.create_model("vit_micro_patch16_32", 3, drop_path=0.1)
    with pytest.raises(ConfigError, match=r"'num_frame'\. Did you mean 'num_frames'"):
        onereel.create_model("vit_micro_patch16_32", 3, num_frame=4)


def test_predict_says_which_file_it_could_not_read(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    arguments = ["predict", str(trained), str(tmp_path / "text.mp4"), str(videos / "clip 1.mp4")]
    assert main([*arguments, "--out", str(tmp_path / "labels.csv")]) == 1
    out, error = capsys.readouterr()
    assert "text.mp4: not read" in error
    assert "clip 1.mp4" in out
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 3


def test_predict_takes_one_file_a_folder_and_a_list(
    trained: Path, videos: Path, tmp_path: Path
) -> None:
    one = onereel.predict(trained, str(videos / "clip 0.mp4"))
    assert one == onereel.predict(trained, videos / "clip 0.mp4")
    assert [answer.video for answer in one] == [str(videos / "clip 0.mp4")]
    for given, count in ((videos, 8), (videos / "val.csv", 4)):
        out = tmp_path / f"{count}.csv"
        assert main(["predict", str(trained), str(given), "--out", str(out)]) == 0
        assert len(out.read_text().splitlines()) == 1 + count


def test_an_interrupted_prediction_goes_on_from_its_journal(
    trained: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    files = [broken, videos]
    whole = onereel.predict(trained, files, num_workers=1)
    assert len(whole) == 9
    journal, asked, told = tmp_path / "j.jsonl", [], []
    predict = answering._predict

    def remembering(model: Any, library: Any, paths: list[str], **options: Any) -> Any:
        asked.append(paths)
        return predict(model, library, paths, **options)

    def stop(answer: object) -> None:
        told.append(answer)
        if len(told) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(answering, "_predict", remembering)
    with pytest.raises(KeyboardInterrupt):
        onereel.predict(trained, files, journal=journal, on_answer=stop)
    told.clear()
    assert onereel.predict(trained, files, journal=journal, on_answer=told.append) == whole == told
    # What could not be read is tried again.
    everything = [one.path if isinstance(one, Quarantined) else one.video for one in whole]
    assert asked == [everything, [everything[0], *everything[5:]]]
    onereel.predict(trained, files, journal=journal, num_crops=3)
    assert asked[2] == everything


def test_a_notebook_completes_the_public_names() -> None:
    assert set(onereel.__all__) <= set(dir(onereel))


def test_starting_from_another_run(trained: Path, videos: Path, tmp_path: Path) -> None:
    config = replace(TINY, model=replace(TINY.model, pretrained=str(trained)))
    data = str(videos / "train.csv")
    onereel.train(config, data=data, out=tmp_path / "tuned")
    assert losses(tmp_path / "tuned") != losses(trained)
    wrong = replace(config, model=replace(config.model, name="vit_mini_patch16_32"))
    with pytest.raises(ConfigError, match=r"does not fit this model, and nothing was loaded"):
        onereel.train(wrong, data=data, out=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_a_saved_folder_is_tested_as_its_run(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = onereel.load(trained).save_pretrained(tmp_path / "saved")
    assert main(["eval", str(folder)]) == 2
    assert f"{folder} names no validation list: give --data.val" in capsys.readouterr().err
    test = ["eval", str(folder), "--data.val", str(videos / "val.csv")]
    assert main(test) == 2
    assert "give the result a --name" in capsys.readouterr().err
    assert main([*test, "--name", "val"]) == 0
    results = [json.loads((of / "eval" / "val.json").read_text()) for of in (folder, trained)]
    assert results[0]["confusion"] == results[1]["confusion"]
    onereel.load(folder).save_pretrained(folder)  # it is still a saved model, and no run


def test_starting_from_a_saved_folder_on_the_command_line(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Convert, share, fine-tune, predict, and a card that says what is known of the run."""
    folder = str(tmp_path / "shared")
    assert main(["convert", str(trained), "--to", "onereel", "--out", folder]) == 0
    card = (tmp_path / "shared" / "README.md").read_text()
    for line in ("- 6 optimiser steps", "- trained on `train.csv`", "| top1 |", "2: clap, wave"):
        assert line in card
    assert main(["predict", folder, str(videos / "clip 1.mp4")]) == 0
    config = replace(TINY, model=replace(TINY.model, pretrained=folder))
    capsys.readouterr()
    onereel.train(config, data=str(videos / "train.csv"), out=tmp_path / "tuned")
    said = capsys.readouterr().out
    assert f"weights from {folder} (onereel): " in said
    assert "new: head.fc.weight, head.fc.bias" in said
    assert "classifier of 2 classes" in said


# ------------------------------------------------------------------------------------------------ mistakes


def test_a_run_is_not_overwritten_by_mistake(trained: Path, videos: Path) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"--resume .* --overwrite"):
        onereel.train(TINY, data=str(videos / "train.csv"), out=trained)
    # Nor by a run that was to replace it and cannot start.
    with pytest.raises(DataError):
        onereel.train(TINY, data=str(videos / "absent.csv"), out=trained, overwrite=True)
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_lists_that_cannot_work(videos: Path, tmp_path: Path) -> None:
    (videos / "empty.csv").write_text("path,label\n")
    (videos / "other.csv").write_text("path,label\nclip 0.mp4,jump\n")
    data = str(videos / "train.csv")
    with pytest.raises(DataError, match=r"empty\.csv"):
        onereel.train(TINY, data=str(videos / "empty.csv"), out=tmp_path / "a")
    with pytest.raises(DataError, match="jump"):
        onereel.train(TINY, data=data, val=str(videos / "other.csv"), out=tmp_path / "b")
    with pytest.raises(ConfigError, match=r"--data.train"):
        onereel.train(TINY, out=tmp_path / "c")
    large = replace(TINY, train=replace(TINY.train, batch_size_per_device=64))
    with pytest.raises((ConfigError, DataError), match="batch_size_per_device"):
        onereel.train(large, data=data, out=tmp_path / "d")
    assert not list(tmp_path.iterdir()), "nothing is written before everything is checked"


def test_a_class_with_one_clip_trains_and_is_named(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (videos / "rare.csv").write_text(
        "path,label\nclip 0.mp4,jump\nclip 1.mp4,wave\nclip 2.mp4,wave\nclip 3.mp4,wave\n"
    )
    onereel.train(TINY, data=str(videos / "rare.csv"), out=tmp_path / "run")
    assert "one clip only of 'jump'" in caplog.text


def test_a_broken_video_is_skipped_and_named(videos: Path, tmp_path: Path) -> None:
    whole = (videos / "clip 0.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    rows = "".join(f"clip {i}.mp4,{'wave' if i % 2 else 'clap'}\n" for i in range(7))
    (videos / "some.csv").write_text("path,label\ncut.mp4,wave\n" + rows)
    config = replace(TINY, data=replace(TINY.data, max_bad_ratio=0.2))
    onereel.train(config, data=str(videos / "some.csv"), out=tmp_path / "run")
    quarantined = (tmp_path / "run" / "quarantine.csv").read_text().splitlines()[1:]
    assert quarantined
    assert all(line.startswith("cut.mp4,") for line in quarantined)
    assert "cut.mp4" in (tmp_path / "run" / "report.html").read_text()


def test_a_checkpoint_cut_in_half_is_passed_over(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    onereel.train(TINY, data=str(videos / "train.csv"), out=run)
    whole = losses(run)
    newest = list_checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    api.resume(run)
    assert "using the one before it" in caplog.text
    assert losses(run) == whole
    assert newest.with_suffix(".damaged").exists(), "kept, but out of the way of newer checkpoints"


def test_a_run_without_a_checkpoint_is_begun_by_resume_as_is_said(
    videos: Path, trained: Path, tmp_path: Path
) -> None:
    run = create_run(tmp_path / "run", api.run_config(trained))
    with pytest.raises(CheckpointError, match=f"onereel train --resume {run}$"):
        onereel.load(run)
    api.resume(run)
    assert losses(run) == losses(trained)


def test_a_finished_run_says_so_and_goes_on_where_it_is_given_epochs(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    api.resume(run)
    assert f"{run} is finished: all its 2 epochs are trained" in caplog.text
    assert losses(run) == losses(trained)
    caplog.clear()
    config = api.run_config(run)
    longer = replace(config, train=replace(config.train, epochs=3))
    (run / "config.json").write_text(to_json(longer))
    assert api.resume(run).step == 9
    assert "is finished" not in caplog.text
    assert losses(run)[:6] == losses(trained)


def test_a_run_is_resumed_from_any_folder(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(videos)
    onereel.train(TINY, data="train.csv", out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert api.resume("run").step == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "allowed: named values"),
        ("config.json", '{"data": {"num_frames": "16"}}', "data.num_frames is '16'; allowed: int"),
        ("config.json", '{"data": 3}', "config data is 3"),
        ("config.json", "\udce4", "cannot be read"),
    ],
)
def test_a_spoilt_run_folder_is_named(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / "versions.json").write_text("{}")
    for arguments in (["eval", str(tmp_path)], ["train", "--resume", str(tmp_path)]):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_weights_from_elsewhere_are_refused_by_name(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {"stem.weight": torch.zeros(1)}}, tmp_path / "foreign.pth")
    arguments = [
        "train",
        "actions",
        "--data.train",
        str(videos / "train.csv"),
        "--out",
        str(tmp_path / "x"),
    ]
    assert (
        main(
            [
                *arguments,
                "--model.pretrained",
                str(tmp_path / "foreign.pth"),
                "--train.batch-size-per-device",
                "2",
            ]
        )
        == 2
    )
    assert "unknown format, with names as stem.weight. Looked for: a run" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("do not delete")
    assert (
        main([*arguments[:-1], str(tmp_path), "--overwrite", "--train.batch-size-per-device", "2"])
        == 2
    )
    assert "is not empty and holds no run" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").exists()


def test_a_recipe_with_a_mistake_names_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    for text, message in (
        ("def recipe(:\n", "line 1: SyntaxError"),
        (
            "from onereel.config import *\ndef recipe():\n    return DataConfig(crop_scale=0.5)\n",
            "line 3: TypeError",
        ),
    ):
        path.write_text(text)
        assert main(["train", str(path)]) == 2
        assert message in capsys.readouterr().err


def test_names_with_brackets_are_printed_as_they_are(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "holiday [dQw4].mp4"
    path.write_bytes((videos / "clip 1.mp4").read_bytes())
    assert main(["predict", str(trained), str(path)]) == 0
    assert "holiday [dQw4].mp4" in capsys.readouterr().out


def test_predictions_are_refused_before_they_are_made(
    trained: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(trained), str(videos / "clip 1.mp4")]
    assert main([*arguments, "--out", str(tmp_path / "labels.txt")]) == 2
    assert ".json or .csv" in capsys.readouterr().err
    assert main([*arguments, "--num-clips", "0"]) == 2
    assert "eval.num_clips is 0" in capsys.readouterr().err


def test_check_writes_what_is_usable(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, out = tmp_path / "list.csv", tmp_path / "usable.csv"
    listed.write_text("path,label\nclip 0.mp4,wave\ngone.mp4,wave\nclip 1.mp4,throw\n")
    check = ["prepare", "--check", str(listed), "--root", str(videos)]
    assert main([*check, "--usable", str(out)]) == 0
    assert f"wrote {out}: 2 of 3 records" in capsys.readouterr().out
    assert main(["prepare", "--check", str(out)]) == 0
    listed.write_text("path,label\ngone.mp4,wave\n")
    assert main([*check, "--usable", str(tmp_path / "none.csv")]) == 1
    assert not (tmp_path / "none.csv").exists()
    assert main(["prepare", "videos", "--out", "store", "--usable", "x.csv"]) == 2


def test_check_names_labels_that_training_lacks(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "typo.csv").write_text("path,label\nclip 0.mp4,wvae\nclip 1.mp4,wave\n")
    check = ["prepare", "--check", str(videos / "typo.csv"), "--labels", str(videos / "train.csv")]
    assert main(check) == 1
    assert "wvae" in capsys.readouterr().out
    assert (
        main(["prepare", "--check", str(videos / "val.csv"), "--labels", str(videos / "train.csv")])
        == 0
    )


def test_averaged_weights_follow_the_weights(videos: Path, tmp_path: Path) -> None:
    """After one step the average is decay * first + (1 - decay) * last, and it is what is loaded."""
    config = replace(
        TINY,
        optim=replace(TINY.optim, ema_decay=0.75),
        train=replace(TINY.train, epochs=1, batch_size_per_device=6, device="cpu"),
    )
    onereel.train(config, data=str(videos / "train.csv"), out=tmp_path / "run")
    first = build.build_model(config, 2).state_dict()
    (path,) = list_checkpoints(tmp_path / "run")
    last = torch.load(path, weights_only=True)["model"]
    loaded = onereel.load(tmp_path / "run").model.state_dict()
    for name, value in loaded.items():
        expected = 0.75 * first[name] + 0.25 * last[f"model.{name}"]
        torch.testing.assert_close(value, expected)
    assert not torch.equal(loaded["head.fc.weight"], first["head.fc.weight"])


# ------------------------------------------------------------------------------------ killed, interrupted, resumed


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "onereel.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(losses(run)) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(
        f"the run never reached step {step}: {process.stderr and process.stderr.read()}"
    )


@pytest.fixture
def long_recipe(tmp_path: Path, videos: Path) -> Path:
    path = tmp_path / "long.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from onereel.config import *\n"
        f"def recipe():\n    return replace({TINY!r}, train=TrainConfig(epochs=8, batch_size_per_device=2, "
        f"log_every=1, save_every=2), data=DataConfig(num_frames=4, size=32, num_workers=1, "
        f"train={str(videos / 'train.csv')!r}))\n"
    )
    return path


EVEREST = [
    "--objective.kind",
    "masked",
    "--objective.mask",
    "random",
    "--objective.mask-ratio",
    "0.5",
]
EVEREST += ["--tokens.kind", "redundancy", "--tokens.keep-ratio", "0.75"]


@pytest.mark.parametrize("options", [[], EVEREST], ids=["classification", "EVEREST"])
def test_kill_and_ctrl_c_and_resume_give_the_same_losses(
    long_recipe: Path, tmp_path: Path, options: list[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", str(long_recipe), "--out", str(whole), *options]) == 0
    process = start(["train", str(long_recipe), "--out", str(broken), *options])
    wait_for_step(broken, 5, process)
    process.kill()
    process.communicate()
    process = start(["train", "--resume", str(broken)])
    wait_for_step(broken, 11, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Resume: onereel train --resume {broken}" in error
    assert "Traceback" not in error
    assert main(["train", "--resume", str(broken)]) == 0
    assert losses(broken) == losses(whole)
    assert len(losses(whole)) == 24


# ------------------------------------------------------------------------------------------------ results and names


def test_a_result_under_other_settings_needs_a_name_of_its_own(trained: Path) -> None:
    before = (trained / "eval" / "val.json").read_bytes()
    config = api.run_config(trained)
    fewer = replace(config, tokens=TokensConfig(kind="random", keep_ratio=0.5))
    with pytest.raises(ConfigError, match="give the result a --name"):
        onereel.evaluate(trained, config=fewer)
    assert (trained / "eval" / "val.json").read_bytes() == before
    for name in ("../evil", "a/b", ".hidden", "<b>"):
        with pytest.raises(ConfigError, match="the name of a result is"):
            onereel.evaluate(trained, config=fewer, name=name)
    assert onereel.evaluate(trained, config=fewer, name="random50").kept_ratio == 0.5
    settings = json.loads((trained / "eval" / "random50.json").read_text())["settings"]
    assert settings["tokens"]["kind"] == "random"
    assert settings["data"]["val"].endswith("val.csv")


def test_missing_test_videos_are_named_before_training(videos: Path, tmp_path: Path) -> None:
    (videos / "absent.csv").write_text("path,label\nclip 0.mp4,clap\nnot here.mp4,wave\n")
    lists = {"data": str(videos / "train.csv"), "val": str(videos / "absent.csv")}
    with pytest.raises(DataError, match=r"1 of 2 videos are not there: not here\.mp4"):
        onereel.train(TINY, **lists, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_for_fine_tuning_says_that_it_has_no_weights(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(TINY, recipe="k400_vitb", train=replace(TINY.train, epochs=1))
    onereel.train(config, data=str(videos / "train.csv"), out=tmp_path / "run")
    assert "k400_vitb is a recipe for fine-tuning, and the model starts at random" in caplog.text


def test_a_training_list_without_its_videos_is_refused_before_training(
    videos: Path, tmp_path: Path
) -> None:
    (videos / "moved.csv").write_text(
        "path,label\n" + "".join(f"old/{i}.mp4,{'ab'[i % 2]}\n" for i in range(6))
    )
    with pytest.raises(DataError, match=r"6 of 6 videos are not there: old/0\.mp4, .* and 1 more"):
        onereel.train(TINY, data=str(videos / "moved.csv"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_test_that_fails_costs_no_training(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged test video is said in the log; the run ends, and the evaluation by itself raises."""
    whole = (videos / "clip 0.mp4").read_bytes()
    (videos / "damaged.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "damaged.csv").write_text("path,label\nclip 1.mp4,wave\ndamaged.mp4,clap\n")
    lists = {"data": str(videos / "train.csv"), "val": str(videos / "damaged.csv")}
    run = tmp_path / "run"
    assert onereel.train(TINY, **lists, out=run).step == 6
    assert "the evaluation failed, training goes on" in caplog.text
    assert list_checkpoints(run)
    with pytest.raises(DecodeError, match="damaged"):
        onereel.evaluate(run)


def test_prepare_in_a_script_without_a_main_guard(videos: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import onereel\n"
        f"report = onereel.prepare({str(videos)!r}, {str(tmp_path / 'store')!r}, num_workers=2, progress=False)\n"
        "print(report.chunks)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


def test_epic_kitchens_trains_and_tests_actions_from_its_own_tables(
    videos: Path, tmp_path: Path
) -> None:
    """Ids find files, an action only in the test list is a class, and verbs and nouns are scored too."""
    header = "narration_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class,all_noun_classes\n"
    row = '{0}_{1},{0},00:00:00.00,00:00:00.50,do it,{1},{2},"[{2}]"\n'
    train = [row.format(f"clip {i}", i % 2, 10 + i % 2) for i in range(4)]
    val = [row.format(f"clip {i}", i % 2, 10) for i in (4, 5)]
    (tmp_path / "train.csv").write_text(header + "".join(train))
    (tmp_path / "val.csv").write_text(header + "".join(val))
    config = replace(TINY, data=replace(TINY.data, root=str(videos)))
    lists = {"data": str(tmp_path / "train.csv"), "val": str(tmp_path / "val.csv")}
    result = onereel.train(config, out=tmp_path / "run", **lists)
    assert onereel.load(tmp_path / "run").class_names == ("0:10", "1:10", "1:11")
    assert {"top1", "verb_top1", "noun_top1"} <= set(result.metrics)
    found = json.loads((tmp_path / "run" / "eval" / "val.json").read_text())
    assert found["num_videos"] == 2
    assert 0 <= found["top1"] <= found["verb_top1"] <= 1
    assert onereel.evaluate(tmp_path / "run").verb_top1 == found["verb_top1"]


def test_a_full_disk_at_a_test_costs_no_training(
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def save(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ClassificationResult, "save", save)
    lists = {"data": str(videos / "train.csv"), "val": str(videos / "val.csv")}
    config = replace(TINY, train=replace(TINY.train, eval_every=1))
    result = onereel.train(config, **lists, out=tmp_path / "run")
    assert (result.step, result.metrics) == (6, {})
    assert "training goes on: [Errno 28] No space left on device" in caplog.text


def test_too_little_memory_shows_no_traceback(
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def forward(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(build.models.ClassificationObjective, "forward", forward)
    (tmp_path / "tiny.py").write_text(
        "from onereel.config import from_json\n\n\ndef recipe():\n"
        f"    return from_json({to_json(TINY)!r})\n"
    )
    arguments = ["train", str(tmp_path / "tiny.py"), "--data.train", str(videos / "train.csv")]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "train.batch_size_per_device" in said
    assert "Traceback" not in said
