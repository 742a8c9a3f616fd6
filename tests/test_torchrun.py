"""`torchrun -m onereel.cli train` on two processes is the run of one process with the same global batch."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

OPTIONS = shlex.split(
    "--train.epochs 3 --train.log-every 1 --data.num-workers 0 --data.size 32 --data.num-frames 4 "
    "--model.name vit_micro_patch16_32 --model.drop-path-rate 0.3 --tokens.kind random --train.precision float32 "
    "--eval.num-crops 3"
)


def train(launcher: list[str], run: Path, lists: list[str], extra: list[str]) -> None:
    command = [
        *launcher,
        "onereel.cli",
        "train",
        "actions",
        *lists,
        *OPTIONS,
        "--out",
        str(run),
        *extra,
    ]
    environment = {**os.environ, "ONEREEL_CACHE": str(run.parent / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def numbers(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    names = ("step", "loss", "top1", "grad_norm", "kept_ratio")
    return [{name: r[name] for name in names if name in r} for r in map(json.loads, lines)]


TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    "-m",
]


def write_list(folder: Path, make_video: Callable[..., Path], num_videos: int) -> list[str]:
    """Videos of two classes, and the options that train and test on all of them."""
    rows = "path,label\n"
    for i in range(num_videos):
        make_video(folder / f"{i}.mp4", num_frames=12, height=48, width=64)
        rows += f"{i}.mp4,{'ab'[i % 2]}\n"
    (folder / "list.csv").write_text(rows)
    return [f"--data.{split}={folder / 'list.csv'}" for split in ("train", "val")]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    lists = write_list(tmp_path, make_video, 9)
    batch = ["--train.batch-size-per-device", "2"]
    train([sys.executable, "-m"], tmp_path / "one", lists, [*batch, "--train.accum-steps", "2"])
    train(TORCHRUN, tmp_path / "two", lists, batch)
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    assert len(one) == 7
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-6)
    results = [
        json.loads((tmp_path / name / "eval/val.json").read_text()) for name in ("one", "two")
    ]
    assert results[0]["confusion"] == results[1]["confusion"]
    assert results[0]["num_videos"] == results[1]["num_videos"] == 9


@pytest.mark.slow
def test_two_processes_share_the_features_that_each_makes_half_of(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    """Two processes make them, and train as one without a cache; one process then reads what two have made."""
    lists = write_list(tmp_path, make_video, 9)
    frozen = shlex.split(
        "--model.temporal-depth 2 --model.frozen spatial --train.batch-size-per-device 2"
    )
    alone = [*frozen, "--train.accum-steps", "2"]
    cache = [
        *("--data.cache", str(tmp_path / "features")),
        *shlex.split("--data.cache-views 3 --data.cache-dtype float32"),
    ]
    train([sys.executable, "-m"], tmp_path / "online", lists, alone)
    train(TORCHRUN, tmp_path / "two", lists, [*frozen, *cache])
    shards = {path.name[:11] for path in (tmp_path / "features").glob("*.safetensors")}
    assert shards == {f"view{view:03d}-{rank:03d}" for view in range(3) for rank in range(2)}
    train([sys.executable, "-m"], tmp_path / "one", lists, [*alone, *cache])
    online = numbers(tmp_path / "online")
    for name in ("one", "two"):
        for a, b in zip(online, numbers(tmp_path / name), strict=True):
            a, b = ({k: v for k, v in r.items() if k != "kept_ratio"} for r in (a, b))
            assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
