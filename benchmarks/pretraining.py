"""Does masked pre-training help on little real video? Pre-train without labels, fine-tune, compare with scratch.

Unlabelled: the training clips of actions5 and three-second pieces of the longer videos; no test clip among them.
Every arm fine-tunes on the same 80 clips for the same epochs; "total seconds" has the pre-training in it. Arms with
selected tokens pre-train within 30 % of them and fine-tune with 60 %, EVEREST's shares; chance is the control.

    python benchmarks/pretraining.py --size full     three seeds
    python benchmarks/pretraining.py                 one seed and few epochs: too short for the claims
"""

from __future__ import annotations

import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import Claim, arguments, real_videos, report
from onereel import api
from onereel.config import RunConfig, TokensConfig
from onereel.recipes import load_recipe
from onereel.video.store import ChunkStore

PIECE_SECONDS = 3.0
"""About the length of a clip of actions5."""
EPOCHS = {"small": (12, 12), "full": (100, 100)}
"""Of pre-training and of fine-tuning."""
NUMBERS = ("top1", "pre-training seconds", "fine-tuning seconds", "total seconds")


def arms() -> dict[str, tuple[RunConfig | None, RunConfig]]:
    """Pre-training (or none) and fine-tuning of each arm."""
    dense, masked, everest = map(load_recipe, ("actions", "actions_mae", "actions_everest"))

    def with_tokens(config: RunConfig, kind: str, keep_ratio: float) -> RunConfig:
        return replace(config, tokens=TokensConfig(kind=kind, keep_ratio=keep_ratio))

    robust, chance = (with_tokens(dense, kind, 0.6) for kind in ("redundancy", "random"))
    return {
        "scratch": (None, dense),
        "VideoMAE": (masked, dense),
        "scratch, 60 % robust tokens": (None, robust),
        "EVEREST": (everest, robust),
        "random tokens": (with_tokens(everest, "random", 0.3), chance),
    }


class Data:
    """One store for all videos, and the three lists that name what is in it."""

    def __init__(self, folder: Path) -> None:
        actions, long = real_videos("actions5"), real_videos("long")
        self.store, self.root = str(folder / "store"), str(actions.parent)
        lists = {name: _rows(actions / f"{name}.csv") for name in ("train", "val")}
        clips = [row["path"] for row in lists["train"]]
        longer = [f"long/{path.name}" for path in sorted(long.iterdir()) if path.is_file()]
        every = [*clips, *(row["path"] for row in lists["val"]), *longer]
        everything = _write(folder / "all.csv", [{"path": path} for path in every])
        # Clips are 32 pixels wide: a store of 96 is plenty, and far cheaper to read than one of 288.
        api.prepare(everything, self.store, root=self.root, short_side=96, progress=False)
        store = ChunkStore(self.store)
        pieces = [{"path": path, "start": "", "end": ""} for path in clips]
        for path in longer:
            for number in range(int(store.info(path).duration_seconds // PIECE_SECONDS)):
                start = number * PIECE_SECONDS
                pieces.append({"path": path, "start": start, "end": start + PIECE_SECONDS})
        self.unlabelled = _write(folder / "unlabelled.csv", pieces)
        self.train, self.val = (
            _write(folder / f"{name}.csv", rows) for name, rows in lists.items()
        )

    def run(self, config: RunConfig, out: Path, train: str, val: str = "") -> api.TrainResult:
        config = replace(config, data=replace(config.data, root=self.root))
        return api.train(config, data=train, val=val, store=self.store, out=out)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {"path": f"actions5/{row['path']}", "label": row["label"]}
            for row in csv.DictReader(file)
        ]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def one_run(
    name: str, seed: int, size: str, device: str, data: Data, folder: Path
) -> dict[str, Any]:
    pre, fine = arms()[name]
    pre_epochs, fine_epochs = EPOCHS[size]

    def shaped(config: RunConfig, epochs: int) -> RunConfig:
        train = replace(config.train, epochs=epochs, device=device)
        return replace(config, seed=seed, train=train)

    start = time.perf_counter()
    if pre is not None:
        run = folder / f"{name}, {seed}, pre-trained"
        data.run(shaped(pre, pre_epochs), run, data.unlabelled)
        fine = replace(fine, model=replace(fine.model, pretrained=str(run)))
    middle = time.perf_counter()
    result = data.run(shaped(fine, fine_epochs), folder / f"{name}, {seed}", data.train, data.val)
    end = time.perf_counter()
    seconds = (middle - start, end - middle, end - start)
    return {"arm": name, "seed": seed, **dict(zip(NUMBERS, (result.metrics["top1"], *seconds)))}


def measure(size: str, device: str, folder: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows per run, arms in turn; then a mean per arm; and the claims."""
    data = Data(folder)
    rows = [
        one_run(name, seed, size, device, data, folder)
        for seed in range(3 if size == "full" else 1)
        for name in arms()
    ]
    means = {name: _mean(rows, name) for name in arms()}
    gain = {name: means[name]["top1"] - means["scratch"]["top1"] for name in means}
    claims = [
        Claim("VideoMAE top-1 minus scratch", gain["VideoMAE"], 0.0),
        Claim("EVEREST top-1 minus scratch", gain["EVEREST"], 0.0),
        Claim("EVEREST top-1 minus random tokens", gain["EVEREST"] - gain["random tokens"], 0.0),
    ]
    return rows + list(means.values()), claims


def _mean(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    mine = [row for row in rows if row["arm"] == name]
    return {"arm": name, "seed": "mean", **{key: mean(row[key] for row in mine) for key in NUMBERS}}


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        rows, claims = measure(options.size, options.device, Path(folder))
    pre, fine = EPOCHS[options.size]
    title = f"actions5 after {pre} epochs without labels: {fine} epochs of fine-tuning"
    report(title, rows, claims, options.json)


if __name__ == "__main__":
    main()
