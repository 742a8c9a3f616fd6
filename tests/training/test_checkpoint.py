"""A checkpoint is there whole or not at all."""

from __future__ import annotations

import errno
import random
import subprocess
from contextlib import suppress

import pytest
import torch

from onereel.training import (
    CheckpointError,
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    resume_state,
)
from onereel.training import checkpoint as checkpoint_module
from onereel.training.checkpoint import save_checkpoint


def state(step: int) -> dict:
    return {
        "model": {"weight": torch.full((100,), float(step))},
        "ema": None,
        "step": step,
        "config": {},
        "class_names": [],
    }


@pytest.fixture
def run(tmp_path):
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, state(step), keep=3)
    return tmp_path


def test_what_is_written_is_read(run):
    path, loaded = latest_valid(run)
    assert path == run / "checkpoints" / "step_00000100.pt"
    assert torch.equal(loaded["model"]["weight"], torch.full((100,), 100.0))
    assert loaded["step"] == 100


def test_the_newest_are_kept(run):
    save_checkpoint(run, state(200), keep=2)
    assert [p.name for p in list_checkpoints(run)] == ["step_00000100.pt", "step_00000200.pt"]
    save_checkpoint(run, state(300), keep=0)
    assert [p.name for p in list_checkpoints(run)] == ["step_00000300.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.95, 0.999])
def test_a_cut_checkpoint_is_passed_over_and_named(run, caplog, share):
    path = list_checkpoints(run)[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert latest_valid(run)[1]["step"] == 10
    assert "step_00000100.pt" in caplog.text


def test_a_flipped_bit_in_the_weights_is_found(run, caplog):
    path = list_checkpoints(run)[-1]
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((100,), 100.0).numpy().tobytes()) + 40
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path)
    assert latest_valid(run)[1]["step"] == 10


def test_no_damage_is_an_unknown_error_or_another_state(run):
    path = list_checkpoints(run)[-1]
    whole, expected = path.read_bytes(), load_checkpoint(path)["model"]["weight"]
    rng = random.Random(0)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 4))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        with suppress(CheckpointError):
            assert torch.equal(load_checkpoint(path)["model"]["weight"], expected)


def test_no_checkpoint_is_a_clear_error(tmp_path, caplog):
    with pytest.raises(CheckpointError, match=f"no checkpoint yet.*train --resume {tmp_path}$"):
        latest_valid(tmp_path)
    assert resume_state(tmp_path) is None
    assert "starting from step 0" in caplog.text


def test_only_damaged_checkpoints_is_a_clear_error(run):
    for path in list_checkpoints(run):
        path.write_bytes(b"PK")
    with pytest.raises(
        CheckpointError, match=r"none of its 3 checkpoints can be read.*--overwrite"
    ):
        resume_state(run)


def test_other_files_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of onereel: it lacks class_names"):
        load_checkpoint(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "missing.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": subprocess.Popen}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "evil.pt")


def test_a_failed_write_leaves_nothing_behind(run, monkeypatch):
    def fail(state, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_write", fail)
    before = sorted(run.rglob("*"))
    with pytest.raises(CheckpointError, match=r"No space left on device.*Free disk space"):
        save_checkpoint(run, state(200), keep=1)
    assert sorted(run.rglob("*")) == before


def test_a_device_that_is_full_is_a_checkpoint_error(run, monkeypatch):
    # /dev/full answers every write with ENOSPC, so this is torch.save's own way to fail.
    def to_full_device(state, file):
        with open("/dev/full", "wb") as full:
            torch.save(state, full)

    monkeypatch.setattr(checkpoint_module, "_write", to_full_device)
    with pytest.raises(CheckpointError):
        save_checkpoint(run, state(200), keep=1)
    assert latest_valid(run)[1]["step"] == 100


def test_a_damaged_checkpoint_does_not_outlive_the_good_ones(run):
    """Resumed from step 10 because step 100 is damaged, the run saves step 20 and keeps one checkpoint: that one."""
    newest = list_checkpoints(run)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert resume_state(run)["step"] == 10
    kept = save_checkpoint(run, state(20), keep=1)
    assert list_checkpoints(run) == [kept]
    assert latest_valid(run)[0] == kept


def test_leftovers_of_a_killed_save_are_removed_on_resume(run):
    partial = run / "checkpoints" / ".step_00000200.pt.partial"
    partial.write_bytes(b"half")
    assert resume_state(run)["step"] == 100
    assert not partial.exists()
