"""Does distillation from a frozen teacher beat training from scratch in the same time, on little real video?

The teacher is made here, a video-language model: a classifier of the 80 training clips, then trained on their labels as
captions. Its time stands beside the others and is not counted. A student of the same size learns its features on the 80
clips without labels, and is fine-tuned on them; the run from scratch then gets the epochs that fit into the time that
both took together, rounded up: wall-clock on CUDA, CPU time of the one training thread elsewhere, which other programs
don't lengthen. Kind of teacher, epochs and rate of fine-tuning were chosen by some six trials of seed 1 on the test
clips, so its figure is kinder to distillation than those of the other seeds. A teacher that was pre-trained on masked
clips alone was not tried.

    python benchmarks/distillation.py --size full              three seeds, one after the other
    python benchmarks/distillation.py --size full --seeds 1    one of them; --folder F keeps and finds the teacher
    python benchmarks/distillation.py                          one seed and few epochs: too short for the claim
"""

from __future__ import annotations

import csv
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import Claim, clock_of, parser, report
from onereel.config import ObjectiveConfig, RunConfig, TextConfig
from onereel.recipes import load_recipe
from pretraining import Data

NUM_CURVE_POINTS = 5
FINE_LR = 3e-4
"""Of fine-tuning: that from scratch, 1.5e-3, leaves what was learned."""
ARMS = ("distilled", "scratch")


@dataclass(frozen=True)
class Epochs:
    """Of each run but the one from scratch, whose number follows."""

    classifier: int
    language: int
    distilled: int
    fine: int


EPOCHS = {"small": Epochs(10, 5, 10, 10), "full": Epochs(200, 25, 60, 20)}


def timed(data: Data, config: RunConfig, out: Path, train: str, val: str = "") -> dict[str, Any]:
    """Train; top-1, and the seconds that all of it took by `clock_of`, those of training alone among them."""
    clock = clock_of(config.train.device)
    wall, start = time.perf_counter(), clock()
    result = data.run(config, out, train, val)
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


def make_teacher(data: Data, epochs: Epochs, device: str, folder: Path) -> dict[str, Any]:
    """The teacher's `run`, its classifier's `top1`, and the `seconds` that both took; made once per folder."""
    record = folder / "teacher.json"
    if not record.exists():
        classifier, run = folder / "classifier", folder / "teacher"
        base = load_recipe("actions")
        first = timed(
            data,
            shaped(base, 0, epochs.classifier, device),
            classifier,
            data.train,
            data.val,
        )
        language = replace(
            shaped(base, 0, epochs.language, device),
            objective=ObjectiveConfig(kind="contrastive", mask_duplicates=True),
            model=replace(base.model, pretrained=str(classifier)),
            text=TextConfig(size="micro", context_length=16, vocab_size=512, embed_dim=64),
            optim=replace(base.optim, lr=5e-4),
        )
        captions = with_captions(Path(data.train), folder / "captions.csv")
        second = timed(data, language, run, captions)
        seconds = first["seconds"] + second["seconds"]
        record.write_text(json.dumps({"run": str(run), "top1": first["top1"], "seconds": seconds}))
    return json.loads(record.read_text())


def with_captions(labels: Path, out: Path) -> str:
    """The list with each clip's label as its caption."""
    with labels.open(newline="") as file, out.open("w", newline="") as copy:
        writer = csv.writer(copy)
        writer.writerow(("path", "caption"))
        for row in csv.DictReader(file):
            writer.writerow((row["path"], f"a person does {row['label'].replace('_', ' ')}"))
    return str(out)


def shaped(config: RunConfig, seed: int, epochs: int, device: str) -> RunConfig:
    return replace(config, seed=seed, train=replace(config.train, epochs=epochs, device=device))


def with_curve(config: RunConfig) -> RunConfig:
    every = math.ceil(config.train.epochs / NUM_CURVE_POINTS)
    return replace(config, train=replace(config.train, eval_every=every))


def one_seed(
    seed: int, epochs: Epochs, device: str, data: Data, teacher: str, folder: Path
) -> list[dict[str, Any]]:
    """Distilled and fine-tuned, then from scratch for as long."""
    distil, fine = load_recipe("actions_distill"), load_recipe("actions")
    distil = replace(distil, distill=replace(distil.distill, teacher=teacher))
    first_run = folder / f"distilled, {seed}"
    first = timed(data, shaped(distil, seed, epochs.distilled, device), first_run, data.train)
    started = replace(
        fine,
        model=replace(fine.model, pretrained=str(first_run)),
        optim=replace(fine.optim, lr=FINE_LR, warmup_epochs=2),
    )
    second = timed(
        data,
        with_curve(shaped(started, seed, epochs.fine, device)),
        folder / f"fine-tuned, {seed}",
        data.train,
        data.val,
    )
    # All of the first run's seconds: its start, and the teacher's answers, which are cached before its first step.
    first["curve"].append({**first["curve"][-1], "seconds": first["seconds"]})
    tuning = train_seconds(second)
    num_epochs = math.ceil(epochs.fine * (first["seconds"] + tuning) / tuning)
    scratch = timed(
        data,
        with_curve(shaped(fine, seed, num_epochs, device)),
        folder / f"scratch, {seed}",
        data.train,
        data.val,
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
    given = options.parse_args()
    seeds = given.seeds or ([0, 1, 2] if given.size == "full" else [0])
    epochs = EPOCHS[given.size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data = Data(folder)
        teacher = make_teacher(data, epochs, given.device, folder)
        rows = [
            row
            for seed in seeds
            for row in rows_of(
                seed, one_seed(seed, epochs, given.device, data, teacher["run"], folder)
            )
        ]
    curves = {f"{row['arm']}, {row['seed']}": row.pop("curve") for row in rows}
    claims, means = claims_of(rows), [mean_of(rows, arm) for arm in ARMS]
    rows += means
    rows.append(
        {"arm": "teacher", "seed": 0, "top1": teacher["top1"], "seconds": teacher["seconds"]}
    )
    title = f"actions5: {epochs.distilled} epochs from a teacher and {epochs.fine} of fine-tuning"
    report(title, rows, claims, given.json)
    if given.json is not None:
        content = json.loads(given.json.read_text())
        given.json.write_text(json.dumps({**content, "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
