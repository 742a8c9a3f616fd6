"""Two processes are one process with the same global batch; one process needs no launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onereel.errors import ConfigError
from onereel.training import (
    all_reduce_sum,
    distributed,
    gather_objects,
    is_main,
    pick_device,
    rank,
    run_on_main,
    world_size,
)
from onereel.training.checkpoint import latest_valid
from onereel.training.token_cap import cut

SCRIPT = Path(__file__).parent / "toy_run.py"


def launch(run: Path, with_torchrun: bool, **sections) -> None:
    """The toy run as two processes, started by torchrun, or (which is quicker) as torchrun starts them."""
    job = {"run": str(run), "sections": sections}
    if with_torchrun:
        jobs = [job]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    else:
        launcher = ["-W", "error"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        jobs = [
            {**job, "environment": {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}}
            for rank in range(2)
        ]
    codes = run.parent / "codes.json"
    command = [sys.executable, *launcher, str(SCRIPT), json.dumps(jobs), str(codes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(codes.read_text()) == [0] * len(jobs), done.stderr


def check_two_are_one(toy, tmp_path, accum_steps, with_torchrun=True, **optim):
    """2 processes x `accum_steps` against 1 process x 2 `accum_steps`."""
    sections = {"optim": {"kind": "sgd", "lr": 0.2, "clip_grad_norm": 0.5, **optim}}
    two = {"train": {"batch_size_per_device": 2, "accum_steps": accum_steps}, **sections}
    one = {"train": {"batch_size_per_device": 2, "accum_steps": 2 * accum_steps}, **sections}
    launch(tmp_path / "two", with_torchrun, dropout=0.0, **two)
    toy.train(tmp_path / "one", toy.toy_config(**one), objective=toy.ToyObjective())
    for name in ("loss", "top1", "grad_norm"):
        curves = [[r[name] for r in toy.read_metrics(tmp_path / run)] for run in ("one", "two")]
        assert curves[1] == pytest.approx(curves[0], rel=0, abs=1e-6), name
        assert len(curves[0]) == 2 * (24 // (4 * accum_steps))
    weights = [latest_valid(tmp_path / run)[1]["model"] for run in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=0, atol=1e-6)


def test_two_processes_have_the_losses_of_one(toy, tmp_path):
    check_two_are_one(toy, tmp_path, accum_steps=2, with_torchrun=False)


def test_processes_may_cut_their_clips_into_different_numbers_of_parts(toy, tmp_path):
    """2 processes under a token cap against 1 without: gradients travel once a step, whatever the number of parts."""
    optim = {"kind": "sgd", "lr": 0.2}
    two = {"batch_size_per_device": 6, "max_tokens_per_device": 7}
    launch(tmp_path / "two", False, dropout=0.0, packed=True, train=two, optim=optim)
    one = toy.toy_config(train={"batch_size_per_device": 12}, optim=optim)
    toy.train(tmp_path / "one", one, objective=toy.ToyObjective(), packed=True)
    loaders = [toy.ToyLoader(6, rank=rank, world_size=2, packed=True) for rank in range(2)]
    steps = zip(*(loader.batches(0) for loader in loaders))
    assert any(len(cut(a, 7)) != len(cut(b, 7)) for a, b in steps)
    for name in ("loss", "grad_norm"):
        curves = [[r[name] for r in toy.read_metrics(tmp_path / run)] for run in ("one", "two")]
        assert curves[1] == pytest.approx(curves[0], rel=0, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"kind": "adamw", "lr": 0.01}, {"ema_decay": 0.9}])
def test_two_processes_have_the_losses_of_one_with_other_optimisers(toy, tmp_path, options):
    check_two_are_one(toy, tmp_path, accum_steps=1, **options)


def test_one_process_needs_no_launcher():
    with distributed("cpu") as world:
        assert (world.rank, world.world_size, world.device) == (0, 1, torch.device("cpu"))
        assert (rank(), world_size(), is_main()) == (0, 1, True)
        assert torch.equal(all_reduce_sum(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
        assert gather_objects("x") == ["x"]
        assert run_on_main(lambda: 7) == 7


def test_an_error_of_the_main_process_is_everyones():
    def fail():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        run_on_main(fail)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"'cuda'.*allowed: auto, cpu"):
        pick_device("cuda")
    with pytest.raises(ConfigError, match="'gpu'"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto", local_rank=1) == torch.device("cuda:1")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cuda") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match=r"there are 2.*nproc-per-node"):
        pick_device("auto", local_rank=2)
