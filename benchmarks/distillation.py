"""Does distillation from a frozen teacher beat training from scratch in the same time?

The teacher is made here, a video-language model; its time stands beside the others and is not counted. A student of the
same size learns its features from clips without labels, and is fine-tuned; the run from scratch then gets the epochs
that fit into the time that both took together, rounded up: wall-clock on CUDA, CPU time of the one training thread
elsewhere, which other programs don't lengthen.

demo: narrated videos that the demo draws. The teacher learns their narrations, the student the teacher on the same
clips, and forty of these have labels, five of each class, for fine-tuning or for training from scratch.

actions5: all 80 training clips have labels; the teacher is a classifier of them, then trained on their labels as
captions, and the student learns it on the same clips. Kind of teacher, epochs and rate of fine-tuning were chosen by
some six trials of seed 1 on the test clips, so its figure is kinder to distillation than those of the other seeds.

A teacher that was pre-trained on masked clips alone was not tried.

    python benchmarks/distillation.py --size full --data demo  three seeds, one after the other
    python benchmarks/distillation.py --size full --seeds 1    one of them; --folder F keeps and finds the teacher
    python benchmarks/distillation.py                          one seed and few epochs: too short for the claim
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import Claim, clock_of, parser, report
from onereel import api
from onereel.config import DistillConfig, ObjectiveConfig, RunConfig, TextConfig
from onereel.demo.videos import write_demo_videos
from onereel.recipes import load_recipe
from pretraining import Data

NUM_CURVE_POINTS = 5
LABELLED_PER_CLASS = 5
MINUTES = {"small": 5.0, "full": 60.0}
"""Of the demo's video."""
ARMS = ("distilled", "scratch")

Train = Callable[[RunConfig, Path, str, str], api.TrainResult]
"""Configuration, run folder, training list and test list or "": trains."""


@dataclass(frozen=True)
class Epochs:
    """Of each run but the one from scratch, whose number follows."""

    classifier: int
    language: int
    distilled: int
    fine: int


EPOCHS = {
    "actions5": {"small": Epochs(10, 5, 10, 10), "full": Epochs(200, 25, 60, 20)},
    "demo": {"small": Epochs(0, 3, 3, 6), "full": Epochs(0, 25, 12, 40)},
}


@dataclass(frozen=True)
class Task:
    """What is learned, and how.

    Attributes:
        unlabelled, labelled, val: lists. The teacher has `captions` of the unlabelled clips.
        distil, scratch: the student's recipes. fine_lr: the rate after distillation; that from scratch would leave what
            was learned.
        language: the teacher's recipe; it starts from a classifier of the labelled clips, where epochs has one.
    """

    unlabelled: str
    labelled: str
    val: str
    captions: str
    distil: RunConfig
    scratch: RunConfig
    fine_lr: float
    language: RunConfig
    train: Train
    epochs: Epochs


def actions_task(size: str, folder: Path) -> Task:
    data, base = Data(folder), load_recipe("actions")
    language = replace(
        base,
        objective=ObjectiveConfig(kind="contrastive", mask_duplicates=True),
        text=TextConfig(size="micro", context_length=16, vocab_size=512, embed_dim=64),
        optim=replace(base.optim, lr=5e-4),
    )
    captions = with_captions(Path(data.train), folder / "captions.csv")
    lists = (data.train, data.train, data.val, captions)
    distil = load_recipe("actions_distill")
    return Task(*lists, distil, base, 3e-4, language, data.run, EPOCHS["actions5"][size])


def with_captions(labels: Path, out: Path) -> str:
    """The list with each clip's label as its caption."""
    with labels.open(newline="") as file, out.open("w", newline="") as copy:
        writer = csv.writer(copy)
        writer.writerow(("path", "caption"))
        for row in csv.DictReader(file):
            writer.writerow((row["path"], f"a person does {row['label'].replace('_', ' ')}"))
    return str(out)


def demo_task(size: str, folder: Path) -> Task:
    videos, store = folder / "videos", str(folder / "store")
    write_demo_videos(videos, minutes=MINUTES[size])
    api.prepare(videos, store, short_side=144, progress=False)
    every = str(videos / "train.csv")
    lists = (every, first_of_each(videos), str(videos / "val.csv"), every)
    language = load_recipe("language_demo_rlt")
    # 0: as many threads as the clock counts.
    train = replace(language.train, batch_size_per_device=32, num_threads=0)
    language = replace(language, train=train)
    scratch = replace(
        language,
        objective=ObjectiveConfig(label_smoothing=0.1),
        train=replace(language.train, batch_size_per_device=8),
    )
    distil = replace(
        language,
        data=replace(language.data, cache_views=4),
        objective=ObjectiveConfig(kind="distillation"),
        distill=DistillConfig(num_layers=3),
        train=replace(language.train, batch_size_per_device=16),
    )

    def run(config: RunConfig, out: Path, train: str, val: str) -> api.TrainResult:
        return api.train(config, data=train, val=val, store=store, out=out)

    return Task(*lists, distil, scratch, 3e-4, language, run, EPOCHS["demo"][size])


def first_of_each(videos: Path) -> str:
    """The first few clips of each class, in a list of their own."""
    with (videos / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts: Counter[str] = Counter()
    path = videos / "labelled.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            counts[row["label"]] += 1
            if counts[row["label"]] <= LABELLED_PER_CLASS:
                writer.writerow(row)
    return str(path)


TASKS = {"actions5": actions_task, "demo": demo_task}


def timed(task: Task, config: RunConfig, out: Path, train: str, val: str = "") -> dict[str, Any]:
    """Train; top-1, and the seconds that all of it took by `clock_of`, those of training alone among them."""
    clock = clock_of(config.train.device)
    wall, start = time.perf_counter(), clock()
    result = task.train(config, out, train, val)
    wall, seconds = time.perf_counter() - wall, clock() - start
    points = [
        {**point, "seconds": point["seconds"] * seconds / wall} for point in curve(out, config)
    ]
    return {"top1": result.metrics.get("top1"), "seconds": seconds, "curve": points}


def curve(run: Path, config: RunConfig) -> list[dict[str, float]]:
    """Loss and top-1 of a run against the wall seconds that its steps took (no tests, no start)."""
    points, seconds, step = [], 0.0, 0
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "train":
            clips = (line["step"] - step) * config.train.batch_size_per_device
            seconds, step = seconds + clips / line["clips_per_second"], line["step"]
            points.append({"seconds": seconds, "loss": line["loss"]})
        elif "top1" in line:
            points.append({"seconds": seconds, "top1": line["top1"]})
    return points


def make_teacher(task: Task, device: str, folder: Path) -> dict[str, Any]:
    """The teacher's `run`, the `seconds` that it took, and the `top1` of its classifier, or of finding clips by their
    captions where there is none; made once per folder."""
    record = folder / "teacher.json"
    if not record.exists():
        run, language, runs = folder / "teacher", task.language, []
        if task.epochs.classifier:
            config = shaped(task.scratch, 0, task.epochs.classifier, device)
            runs.append(timed(task, config, folder / "classifier", task.labelled, task.val))
            model = replace(language.model, pretrained=str(folder / "classifier"))
            language = replace(language, model=model)
        val = "" if runs else task.val
        config = shaped(language, 0, task.epochs.language, device)
        runs.append(timed(task, config, run, task.captions, val))
        seconds = sum(each["seconds"] for each in runs)
        found = {"run": str(run), "top1": runs[0]["top1"], "seconds": seconds}
        record.write_text(json.dumps(found))
    return json.loads(record.read_text())


def shaped(config: RunConfig, seed: int, epochs: int, device: str) -> RunConfig:
    return replace(config, seed=seed, train=replace(config.train, epochs=epochs, device=device))


def with_curve(config: RunConfig) -> RunConfig:
    every = math.ceil(config.train.epochs / NUM_CURVE_POINTS)
    return replace(config, train=replace(config.train, eval_every=every))


def one_seed(
    seed: int, task: Task, device: str, teacher: str, folder: Path
) -> list[dict[str, Any]]:
    """Distilled and fine-tuned, then from scratch for as long."""
    epochs = task.epochs
    distil = replace(task.distil, distill=replace(task.distil.distill, teacher=teacher))
    first_run = folder / f"distilled, {seed}"
    first = timed(task, shaped(distil, seed, epochs.distilled, device), first_run, task.unlabelled)
    started = replace(
        task.scratch,
        model=replace(task.scratch.model, pretrained=str(first_run)),
        optim=replace(task.scratch.optim, lr=task.fine_lr, warmup_epochs=2),
    )
    second = timed(
        task,
        with_curve(shaped(started, seed, epochs.fine, device)),
        folder / f"fine-tuned, {seed}",
        task.labelled,
        task.val,
    )
    # All of the first run's seconds: its start, and the teacher's answers, which are cached before its first step.
    first["curve"].append({**first["curve"][-1], "seconds": first["seconds"]})
    tuning = train_seconds(second)
    num_epochs = math.ceil(epochs.fine * (first["seconds"] + tuning) / tuning)
    scratch = timed(
        task,
        with_curve(shaped(task.scratch, seed, num_epochs, device)),
        folder / f"scratch, {seed}",
        task.labelled,
        task.val,
    )
    return [first, second, scratch]


def rows_of(seed: int, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm."""
    distilled, fine, scratch = runs
    arms = {"distilled": (fine, [distilled, fine]), "scratch": (scratch, [scratch])}
    return [
        {
            "arm": name,
            "seed": seed,
            "top1": last["top1"],
            "seconds": sum(part["seconds"] for part in parts),
            "training seconds": sum(train_seconds(part) for part in parts),
            "curve": joined(parts),
        }
        for name, (last, parts) in arms.items()
    ]


def train_seconds(run: dict[str, Any]) -> float:
    return max(point["seconds"] for point in run["curve"])


def joined(parts: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The curves of runs that follow one another, on one clock."""
    before, points = 0.0, []
    for part in parts:
        points += [{**point, "seconds": before + point["seconds"]} for point in part["curve"]]
        before += train_seconds(part)
    return points


def mean_of(rows: Sequence[dict[str, Any]], arm: str) -> dict[str, Any]:
    mine = [row for row in rows if row["arm"] == arm]
    numbers = ("top1", "seconds", "training seconds")
    return {"arm": arm, "seed": "mean"} | {key: mean(row[key] for row in mine) for key in numbers}


def claims_of(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    distilled, scratch = (mean_of(rows, arm) for arm in ARMS)
    ratio = distilled["training seconds"] / scratch["training seconds"]
    return [
        Claim("distilled top-1 minus scratch", distilled["top1"] - scratch["top1"], 0.01),
        Claim("distilled training seconds over scratch", ratio, 1.05, at_most=True),
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", help="default: 0, or with full 0 1 2")
    options.add_argument(
        "--folder", type=Path, help="keep runs here, and the teacher for next time"
    )
    options.add_argument("--data", choices=list(TASKS), default="actions5")
    given = options.parse_args()
    seeds = given.seeds or ([0, 1, 2] if given.size == "full" else [0])
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        task = TASKS[given.data](given.size, folder)
        teacher = make_teacher(task, given.device, folder)
        rows = [
            row
            for seed in seeds
            for row in rows_of(seed, one_seed(seed, task, given.device, teacher["run"], folder))
        ]
    curves = {f"{row['arm']}, {row['seed']}": row.pop("curve") for row in rows}
    claims, means = claims_of(rows), [mean_of(rows, arm) for arm in ARMS]
    rows += means
    rows.append(
        {"arm": "teacher", "seed": 0, "top1": teacher["top1"], "seconds": teacher["seconds"]}
    )
    epochs = task.epochs
    title = f"{given.data}: {epochs.distilled} epochs of a teacher, {epochs.fine} of fine-tuning"
    report(title, rows, claims, given.json)
    if given.json is not None:
        content = json.loads(given.json.read_text())
        given.json.write_text(json.dumps({**content, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
