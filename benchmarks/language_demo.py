"""Contrastive training from scratch on narrated videos, for minutes on two cores: does a text find its moment?

The demo's narrated synthetic videos ("a red square moves right"), prepared as a chunk store. The test is 64 clips of
held-out videos with 64 different captions, none of which occurs in training: the model must put together words and
motions that it has seen apart. Dense tokens, run-length tokens, and as many random ones; same steps each.

Ten minutes on two cores are twenty core-minutes: on the CPU, claims about time are of CPU time, which does not count
the wait for other programs: that of the training process on one thread, from list to result, plus that of reading all
its clips.

    python benchmarks/language_demo.py --size full     two hours of video
    python benchmarks/language_demo.py                 ten minutes of video, a few epochs: too little for the claims
"""

from __future__ import annotations

import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Claim, arguments, report
from onereel import api, build
from onereel.config import RunConfig, TokensConfig
from onereel.demo.videos import write_demo_videos
from onereel.recipes import load_recipe
from onereel.types import SampleKey

MINUTES = {"small": 10.0, "full": 120.0}
EPOCHS = {"small": 3, "full": 0}
NUM_CAPTIONS = 64
SHORT_SIDE = 144
CLIPS_READ = 64
TIME_GOAL = {"cpu": ("dense core-minutes", 20), "cuda": ("dense minutes", 10)}


def write_lists(videos: Path) -> tuple[Path, Path]:
    """Training and test list. The test is 64 clips of val.csv with different captions, or as many as there are; of the
    rest all clips train whose videos and captions are not in the test."""
    lists = {}
    for name in ("train", "val"):
        with (videos / f"{name}.csv").open(newline="") as file:
            lists[name] = list(csv.DictReader(file))
    test = list({row["caption"]: row for row in reversed(lists["val"])}.values())[::-1]
    test = test[:NUM_CAPTIONS]
    held_out, videos_of_test = ({row[column] for row in test} for column in ("caption", "path"))
    rows = lists["train"] + [row for row in lists["val"] if row["path"] not in videos_of_test]
    train = [row for row in rows if row["caption"] not in held_out]
    paths = videos / "seen.csv", videos / "unseen.csv"
    for path, rows in zip(paths, (train, test)):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return paths


def reading_seconds(config: RunConfig, run: Path, num_clips: int) -> float:
    """CPU seconds that reading so many training clips of `run` takes, judged by some of them."""
    config = replace(config, data=api.run_config(run).data)
    annotations = build.build_annotations(config, config.data.train)
    dataset = build.build_dataset(config, annotations, None, training=True)
    keys = [SampleKey(0, index) for index in range(min(CLIPS_READ, len(dataset)))]
    start = time.process_time()
    for key in keys:
        dataset[key]
    return (time.process_time() - start) / len(keys) * num_clips


def one_run(
    name: str, config: RunConfig, lists: tuple[Path, Path], store: Path, out: Path
) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = api.train(
        config, data=str(lists[0]), val=str(lists[1]), store=str(store), out=out / name
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_clips = result.step * config.train.batch_size_per_device
    reading = reading_seconds(config, out / name, num_clips)
    found = result.metrics
    return {
        "tokens": name,
        "text to video R@1": found["top1"],
        "R@5": found["top5"],
        "median rank": found["median_rank"],
        "video to text R@1": found["video_to_text_top1"],
        "kept at test": found["kept_ratio"],
        "steps": result.step,
        "wall seconds": wall,
        "CPU seconds": cpu,
        "of reading": reading,
        "seconds": wall if config.train.device == "cuda" else cpu + reading,
    }


def measure(size: str, device: str, out: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
    videos, store = out / "videos", out / "store"
    write_demo_videos(videos, minutes=MINUTES[size])
    api.prepare(videos, store, short_side=SHORT_SIDE, progress=False)
    lists = write_lists(videos)

    def configured(recipe: str, **changes: Any) -> RunConfig:
        config = load_recipe(recipe)
        epochs, threads = EPOCHS[size] or config.train.epochs, 1 if device == "cpu" else 0
        train = replace(config.train, epochs=epochs, device=device, num_threads=threads)
        return replace(config, train=train, **changes)

    rows = [
        one_run("dense", configured("language_demo"), lists, store, out),
        one_run("run-length", configured("language_demo_rlt"), lists, store, out),
    ]
    random = TokensConfig(kind="random", keep_ratio=rows[1]["kept at test"])
    rows.append(one_run("random", configured("language_demo", tokens=random), lists, store, out))
    dense, run_length = rows[0], rows[1]
    metric = "text to video R@1"
    what, limit = TIME_GOAL[device]
    return rows, [
        Claim("dense text to video R@1 (chance 0.016)", dense[metric], 0.7),
        Claim(what, dense["seconds"] / 60, limit, at_most=True),
        Claim("run-length R@1 minus dense", run_length[metric] - dense[metric], -0.03),
        Claim(
            "run-length time over dense",
            run_length["seconds"] / dense["seconds"],
            0.6,
            at_most=True,
        ),
    ]


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        rows, claims = measure(options.size, options.device, Path(folder))
    report("narrated synthetic videos: 64 captions never seen", rows, claims, options.json)


if __name__ == "__main__":
    main()
