"""Contrastive training from scratch on narrated videos, for minutes on two cores: does a text find its moment?

The demo's narrated synthetic videos ("a red square moves right"), prepared as a chunk store. A test is 64 clips of
held-out videos with 64 different captions, none of which occurs in training: the model must put together words and
motions that it has seen apart. Recall is the mean of four such tests, with the same captions and other clips, since one
alone is off by six points. Dense tokens; run-length tokens, with two more epochs in what they save; and as many
random ones for as long.

Ten minutes on two cores are twenty core-minutes: on the CPU, claims about time are of CPU time, which does not count
the wait for other programs: that of the training process on one thread, from list to result, plus that of reading all
its clips.

    python benchmarks/language_demo.py --size full     280 minutes of video
    python benchmarks/language_demo.py                 ten minutes of video, a few epochs: too little for the claims
"""

from __future__ import annotations

import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import Claim, arguments, report
from onereel import api, build
from onereel.config import RunConfig, TokensConfig
from onereel.demo.videos import write_demo_videos
from onereel.recipes import load_recipe
from onereel.types import SampleKey

MINUTES = {"small": 10.0, "full": 280.0}
EPOCHS = {"small": 3, "full": 0}
NUM_CAPTIONS, NUM_TESTS = 64, 4
SHORT_SIDE = 144
CLIPS_READ = 64
FIGURES = ("top1", "top5", "median_rank", "video_to_text_top1", "kept_ratio")
TIME_GOAL = {"cpu": ("dense core-minutes", 20), "cuda": ("dense minutes", 10)}


def write_lists(videos: Path) -> tuple[Path, list[Path]]:
    """Training list and test lists. A test has one clip of each of the captions that are most frequent in val.csv, 64
    or as many as there are; no test shares a clip with another, nor training a caption with them."""
    rows = {}
    for name in ("train", "val"):
        with (videos / f"{name}.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    clips_of: dict[str, list[dict[str, str]]] = {}
    for row in rows["val"]:
        clips_of.setdefault(row["caption"], []).append(row)
    captions = sorted(clips_of, key=lambda caption: -len(clips_of[caption]))[:NUM_CAPTIONS]
    num_tests = min(NUM_TESTS, *(len(clips_of[caption]) for caption in captions))
    train = [row for row in rows["train"] if row["caption"] not in captions]
    tests = [[clips_of[caption][k] for caption in captions] for k in range(num_tests)]
    paths = [videos / "seen.csv", *(videos / f"unseen_{k}.csv" for k in range(num_tests))]
    for path, members in zip(paths, (train, *tests), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(members[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(members)
    return paths[0], paths[1:]


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
    name: str, config: RunConfig, lists: tuple[Path, list[Path]], store: Path, out: Path
) -> dict[str, Any]:
    train, tests = lists
    wall, cpu = time.perf_counter(), time.process_time()
    result = api.train(config, data=str(train), val=str(tests[0]), store=str(store), out=out / name)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_clips = result.step * config.train.batch_size_per_device
    reading = reading_seconds(config, out / name, num_clips)
    found = [
        api.evaluate(
            out / name, val=str(path), name=path.stem, device=config.train.device
        ).figures()
        for path in tests
    ]
    figures = {key: mean(each[key] for each in found) for key in FIGURES}
    return {
        "tokens": name,
        "text to video R@1": figures["top1"],
        "of each test": ", ".join(f"{each['top1']:.3f}" for each in found),
        "R@5": figures["top5"],
        "median rank": figures["median_rank"],
        "video to text R@1": figures["video_to_text_top1"],
        "kept at test": figures["kept_ratio"],
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
    at_random = configured("language_demo_rlt", tokens=random)
    rows.append(one_run("random", at_random, lists, store, out))
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
