"""Who may write into a run's folder."""

from __future__ import annotations

import errno
import fcntl

import pytest

from onereel.config import OptimConfig, RunConfig
from onereel.errors import ConfigError
from onereel.training import create_run, holds_run, read_config, run_lock, versions


def test_a_new_run_holds_its_config_and_versions(tmp_path):
    config = RunConfig(recipe="x", optim=OptimConfig(lr=0.25))
    run = create_run(tmp_path / "deep" / "run", config)
    assert holds_run(run)
    assert read_config(run) == config
    assert sorted(p.name for p in run.iterdir()) == ["config.json", "versions.json"]


def test_a_folder_that_holds_a_run_is_refused_and_both_ways_out_are_named(tmp_path):
    create_run(tmp_path, RunConfig())
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"--resume .*--overwrite"):
        create_run(tmp_path, RunConfig(seed=1))
    assert read_config(tmp_path).seed == 0


def test_a_run_that_never_made_a_step_is_in_nobodys_way(tmp_path):
    create_run(tmp_path, RunConfig())
    create_run(tmp_path, RunConfig(seed=1))
    assert read_config(tmp_path).seed == 1


def test_one_process_at_a_time(tmp_path):
    with run_lock(tmp_path / "run"):
        create_run(tmp_path / "run", RunConfig())
        with (
            pytest.raises(ConfigError, match="another process is training"),
            run_lock(tmp_path / "run"),
        ):
            pass
    with run_lock(tmp_path / "run"):
        pass
    with run_lock(tmp_path / "unused"):
        pass
    assert not (tmp_path / "unused").exists()


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_lock(tmp_path / "run"):
        create_run(tmp_path / "run", RunConfig())
    assert "run cannot be locked (No locks available)" in caplog.text


def test_a_folder_with_nothing_but_a_checkpoint_counts_as_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        create_run(tmp_path, RunConfig())


def test_a_first_stage_that_was_trained_is_not_removed_unasked(tmp_path):
    create_run(tmp_path, RunConfig(after="actions_fe"))
    create_run(tmp_path / "first", RunConfig())
    create_run(tmp_path, RunConfig(after="actions_fe"))  # nothing has been trained
    create_run(tmp_path / "first", RunConfig())
    (tmp_path / "first" / "metrics.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="already holds a run"):
        create_run(tmp_path, RunConfig(after="actions_fe"))
    assert (tmp_path / "first" / "metrics.jsonl").exists()
    create_run(tmp_path, RunConfig(), overwrite=True)
    assert not (tmp_path / "first").exists()


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    create_run(tmp_path, RunConfig())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000001.pt").touch()
    for name in ("metrics.jsonl", "model.pt2", "model.onnx", "model.onnx.data", "thesis.tex"):
        (tmp_path / name).touch()
    create_run(tmp_path, RunConfig(seed=1), overwrite=True)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["config.json", "thesis.tex", "versions.json"]
    assert read_config(tmp_path).seed == 1


def test_resume_keeps_the_config_of_the_start(tmp_path):
    create_run(tmp_path, RunConfig())
    create_run(tmp_path, RunConfig(seed=1), resume=True)
    assert read_config(tmp_path).seed == 0


def test_a_file_in_the_way_and_an_empty_folder_are_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        create_run(tmp_path / "file", RunConfig())
    with pytest.raises(ConfigError, match="cannot be written"):
        create_run(tmp_path / "file" / "run", RunConfig())
    with pytest.raises(ConfigError, match="holds no run"):
        read_config(tmp_path)


def test_versions_say_what_a_result_depends_on():
    assert {"onereel", "torch", "python", "git_commit"} <= versions().keys()
