"""A run from outside: its curve, its stops, its errors."""

from __future__ import annotations

import errno
import os
import signal
import threading
import weakref
from collections import deque
from types import SimpleNamespace

import pytest
import torch

from onereel.errors import ConfigError
from onereel.training import (
    CheckpointError,
    NonFiniteError,
    RunInterrupted,
    list_checkpoints,
    load_checkpoint,
)
from onereel.training import checkpoint as checkpoint_module
from onereel.training.loop import _read
from onereel.training.meters import Meter

LEARNED = ("step", "epoch", "loss", "top1", "lr", "grad_norm", "num_failed")


def curve(toy, run):
    return [{k: record[k] for k in LEARNED} for record in toy.read_metrics(run)]


def steps(run):
    return [int(path.stem.removeprefix("step_")) for path in list_checkpoints(run)]


def test_a_run_learns_and_leaves_what_it_promises(toy, tmp_path):
    config = toy.toy_config(
        train={"epochs": 20, "log_every": 4, "save_every": 50, "keep_checkpoints": 2}
    )
    result = toy.train(tmp_path, config, objective=toy.ToyObjective())
    records = toy.read_metrics(tmp_path)
    assert [r["step"] for r in records] == list(range(4, 121, 4))
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert all(0 <= r["data_wait"] <= 1 and r["kept_ratio"] == 0.5 for r in records)
    assert all(r["clips_per_second"] > 0 and r["mfu"] > 0 for r in records)
    assert steps(tmp_path) == [100, 120]
    assert result.step == 120
    assert (tmp_path / "config.json").exists()
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_same_run_twice_has_the_same_curve(toy, tmp_path):
    for name in ("one", "two"):
        toy.train(tmp_path / name, toy.toy_config())
        torch.rand(5)
    assert curve(toy, tmp_path / "one") == curve(toy, tmp_path / "two")


def test_a_logged_loss_is_the_mean_over_the_clips_since_the_last(toy, tmp_path):
    toy.train(tmp_path / "each", toy.toy_config())
    toy.train(tmp_path / "third", toy.toy_config(train={"log_every": 3}))
    each = [r["loss"] for r in toy.read_metrics(tmp_path / "each")]
    third = [r["loss"] for r in toy.read_metrics(tmp_path / "third")]
    assert third == pytest.approx([sum(each[i : i + 3]) / 3 for i in range(0, 12, 3)], abs=1e-12)


def test_evaluations_come_when_due_and_see_the_averaged_weights(toy, tmp_path):
    seen = []
    objective = toy.ToyObjective()

    def evaluate(step, epoch):
        seen.append((step, epoch, objective.training, objective.last.weight.clone()))
        return {"top1": 0.5 if step == 12 else 0.25}

    config = toy.toy_config(train={"epochs": 4, "eval_every": 2}, optim={"ema_decay": 0.5})
    result = toy.train(tmp_path, config, objective=objective, evaluate=evaluate)
    assert [(step, epoch) for step, epoch, _, _ in seen] == [(12, 2.0), (24, 4.0)]
    assert not any(training for _, _, training, _ in seen)
    assert objective.training
    assert result.metrics == {"top1": 0.25}
    assert [r["step"] for r in toy.read_metrics(tmp_path, "eval")] == [12, 24]
    state = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert torch.equal(state["ema"]["last.weight"], seen[-1][3])
    assert torch.equal(state["model"]["last.weight"], objective.last.weight)
    assert not torch.equal(state["model"]["last.weight"], seen[-1][3])


def test_not_a_number_stops_the_run_and_the_good_checkpoint_stays(toy, tmp_path):
    class Poisoned(toy.ToyLoader):
        def batches(self, epoch, start=0):
            for j, batch in enumerate(super().batches(epoch, start)):
                batch.clips = batch.clips.float() * (float("nan") if (epoch, j) == (1, 2) else 1)
                yield batch

    with pytest.raises(NonFiniteError, match="step 9, epoch 1"):
        toy.train(tmp_path, toy.toy_config(train={"save_every": 3}), loader=Poisoned(4))
    assert steps(tmp_path) == [3, 6]
    state = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_resume_and_loses_nothing(toy, tmp_path, number):
    toy.train(tmp_path / "unbroken", toy.toy_config())

    def interrupt(epoch, batch):
        if (epoch, batch) == (1, 1):
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=r"saved at step 8.*--resume .*broken") as caught:
        toy.train(
            tmp_path / "broken", toy.toy_config(), loader=toy.ToyLoader(4, on_batch=interrupt)
        )
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    assert steps(tmp_path / "broken")[-1] == 8
    toy.train(tmp_path / "broken", toy.toy_config(), resume=True)
    assert curve(toy, tmp_path / "broken") == curve(toy, tmp_path / "unbroken")


def test_a_second_ctrl_c_stops_at_once(toy, tmp_path):
    def interrupt(epoch, batch):
        if (epoch, batch) == (0, 4):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, toy.toy_config(), loader=toy.ToyLoader(4, on_batch=interrupt))
    assert steps(tmp_path) == [3]


def test_a_run_in_a_thread_goes_without_signals(toy, tmp_path):
    thread = threading.Thread(target=toy.train, args=(tmp_path, toy.toy_config()))
    thread.start()
    thread.join()
    assert steps(tmp_path)[-1] == 12


def full_disk(monkeypatch, step):
    write = checkpoint_module._write

    def fail(state, file):
        if state["step"] == step:
            file.write(b"some")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, file)

    monkeypatch.setattr(checkpoint_module, "_write", fail)


def test_a_full_disk_at_a_periodic_save_warns_and_the_run_goes_on(
    toy, tmp_path, monkeypatch, caplog
):
    full_disk(monkeypatch, step=6)
    toy.train(tmp_path, toy.toy_config())
    assert "No space left" in caplog.text
    assert "WITHOUT A NEW CHECKPOINT" in caplog.text
    assert steps(tmp_path) == [3, 9, 12]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_a_full_disk_at_the_last_save_is_an_error_and_older_checkpoints_stay(
    toy, tmp_path, monkeypatch
):
    full_disk(monkeypatch, step=12)
    with pytest.raises(CheckpointError, match="No space left on device"):
        toy.train(tmp_path, toy.toy_config())
    assert steps(tmp_path) == [3, 6, 9]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3


def test_too_few_clips_for_one_step_is_an_error_with_the_remedy(toy, tmp_path):
    config = toy.toy_config(train={"accum_steps": 7})
    with pytest.raises(ConfigError, match=r"accum_steps=7.*lower"):
        toy.train(tmp_path, config)


def test_resuming_with_another_batch_is_refused(toy, tmp_path):
    toy.train(tmp_path, toy.toy_config())
    other = toy.toy_config(train={"batch_size_per_device": 2})
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json")
        .read_text()
        .replace('"batch_size_per_device": 4', '"batch_size_per_device": 2')
    )
    remedy = (
        r"global_batch_size was 4 and would be 2\..*set train.global_batch_size to 4 in its config"
    )
    with pytest.raises(ConfigError, match=remedy):
        toy.train(tmp_path, other, resume=True)


def test_resuming_with_another_list_is_refused(toy, tmp_path):
    toy.train(tmp_path, toy.toy_config())
    loader = toy.ToyLoader(4, num_clips=20)
    with pytest.raises(ConfigError, match=r"steps_per_epoch was 6 and would be 5\..*list"):
        toy.train(tmp_path, toy.toy_config(), resume=True, loader=loader)


def test_too_little_memory_is_an_error_with_the_remedies(toy, tmp_path):
    class Large(toy.ToyObjective):
        def forward(self, batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nand more")

    remedies = (
        r"step 1, which takes 4 clips.*batch_size_per_device: with train.global_batch_size 4 .*accum_steps.*"
        r"model\.checkpointing.*\(CUDA out of memory\. Tried to allocate 20 GiB\.\)$"
    )
    with pytest.raises(ConfigError, match=remedies):
        toy.train(tmp_path, toy.toy_config(), objective=Large())


def test_a_resumed_run_lets_go_of_its_checkpoint(toy, tmp_path, monkeypatch):
    toy.train(tmp_path, toy.toy_config())
    state = toy.resume_state(tmp_path)
    weights = weakref.ref(state["model"]["last.weight"])
    monkeypatch.setattr(toy, "resume_state", lambda run: state)
    assert toy.train(tmp_path, toy.toy_config(), resume=True).step == 12
    assert weights() is None


def test_resuming_a_finished_run_only_evaluates(toy, tmp_path):
    calls = []

    def evaluate(step, epoch):
        calls.append(step)
        return {"top1": 0.5}

    toy.train(tmp_path, toy.toy_config(), evaluate=evaluate)
    before = (tmp_path / "metrics.jsonl").read_text()
    toy.train(tmp_path, toy.toy_config(), evaluate=evaluate, resume=True)
    assert calls == [12, 12]
    assert (tmp_path / "metrics.jsonl").read_text() == before


def numbers(loss, stop=0):
    values = {"num_clips": 1, "num_failed": 0, "loss": loss, "grad_norm": 1.0, "stop": stop}
    return SimpleNamespace(read=lambda: values)


def test_results_are_read_one_step_late_unless_the_run_stops():
    meter, unread = Meter(torch.device("cpu"), 1.0), deque([numbers(1.0), numbers(2.0)])
    _read(unread, meter, lag=1)
    assert len(unread) == 1
    assert meter.sums["loss"] == 1.0
    unread.append(numbers(4.0))
    _read(unread, meter, lag=0)
    assert not unread
    assert meter.sums["loss"] == 7.0
    unread.extend([numbers(8.0, stop=1), numbers(16.0, stop=1)])
    _read(unread, meter, lag=1)
    assert not unread
    assert meter.stop_requested


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_follows_the_cpu_and_resumes(toy, tmp_path, precision):
    gpu = {"device": "cuda", "precision": precision, "log_every": 2}
    for name, train in (("cpu", {"log_every": 2}), ("gpu", gpu)):
        config = toy.toy_config(train=train)
        toy.train(tmp_path / name, config, objective=toy.ToyObjective())
    losses = [[r["loss"] for r in toy.read_metrics(tmp_path / name)] for name in ("cpu", "gpu")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "float32" else 5e-2)
    assert all(record["peak_memory_gib"] > 0 for record in toy.read_metrics(tmp_path / "gpu"))
    before = toy.read_metrics(tmp_path / "gpu")[-1]["loss"]
    (tmp_path / "gpu" / "checkpoints" / "step_00000012.pt").unlink()
    toy.train(tmp_path / "gpu", config, resume=True, objective=toy.ToyObjective())
    assert toy.read_metrics(tmp_path / "gpu")[-1]["loss"] == pytest.approx(before, rel=1e-3)


@pytest.mark.gpu
def test_not_a_number_on_a_gpu_is_found_before_anything_is_saved(toy, tmp_path):
    class Poisoned(toy.ToyLoader):
        def batches(self, epoch, start=0):
            for j, batch in enumerate(super().batches(epoch, start)):
                batch.clips = batch.clips.float() * (float("nan") if (epoch, j) == (0, 4) else 1)
                yield batch

    config = toy.toy_config(train={"device": "cuda", "log_every": 100})
    with pytest.raises(NonFiniteError, match="step 5, epoch 0"):
        toy.train(tmp_path, config, loader=Poisoned(4))
    assert steps(tmp_path) == [3]
