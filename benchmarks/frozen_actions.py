"""What freezing the spatial half costs in accuracy, on real video: rows of its paper's Table 1, and what they mix up.

actions5, 80 training clips. A small factorised encoder sees 16 frames: in full; and with its spatial half frozen, with
or without adapter, its temporal half at random or from the 8-frame model of stage 1. The paper's last row changes the
spatial weights with the temporal ones (image model or stage 1); here all eight combinations are run. The other kinds of
adapter stand beside the bottleneck in its rows III and V.

No image weights are at hand: "image" is a ViT that learned the same labels on the same training clips from single
tubelets (two neighbouring frames), from scratch. Stage 1 and full training start from it, too. "total seconds" has
everything in it that a row starts from, stage 1 and the image model included, as if they were trained for it alone.

    python benchmarks/frozen_actions.py --size full     three seeds
    python benchmarks/frozen_actions.py                 one seed, a tenth of the epochs: too short for the claims
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import Claim, parser, real_videos, report, rows_before, write_json
from onereel import api
from onereel.config import EvalConfig, RunConfig
from onereel.models.adapter import ADAPTERS
from onereel.recipes import load_recipe

EPOCHS = {"image": 50, "stage 1": 80, "full": 80, "frozen": 50}
SMALL_EPOCHS_DIVISOR = 10
NUMBERS = ("top1", "own seconds", "total seconds")
FULL = "full training, 16 frames"
STAGE_1 = "stage 1, 8 frames"


def frozen_name(spatial: str, temporal: str, adapter: str) -> str:
    return f"frozen: spatial {spatial}, temporal {temporal}, adapter {adapter}"


CELLS = [
    (spatial, temporal, adapter)
    for spatial in ("image", "8f")
    for temporal in ("random", "8f")
    for adapter in ("none", "bottleneck")
]
CELLS += [
    (spatial, temporal, adapter)
    for spatial, temporal in (("image", "random"), ("8f", "8f"))
    for adapter in ADAPTERS
    if adapter != "bottleneck"
]
ROW_OF_TABLE_1 = {
    FULL: "–",
    frozen_name("image", "random", "none"): "I",
    frozen_name("image", "random", "bottleneck"): "III",
    frozen_name("8f", "8f", "bottleneck"): "V",
}


class Seed:
    """All runs of one seed, each after what it starts from."""

    def __init__(self, seed: int, size: str, device: str, store: Path, folder: Path) -> None:
        self.seed, self.size, self.device = seed, size, device
        self.store, self.folder = store, folder
        self.videos = real_videos("actions5")
        self.rows: dict[str, dict[str, Any]] = {}

    def run_all(self) -> list[dict[str, Any]]:
        first, second = load_recipe("actions_fe"), load_recipe("actions_sfa")
        joint = replace(first.model, temporal_depth=0)
        image = replace(first, model=joint, data=replace(first.data, num_frames=2))
        self.run("image", image, "image", after=())
        self.run(STAGE_1, self.start(first, "image"), "stage 1", after=("image",))
        full = replace(first, data=second.data)
        self.run(FULL, self.start(full, "image"), "full", after=("image",))
        for cell in CELLS:
            self.run_frozen(second, *cell)
        return list(self.rows.values())

    def run_frozen(self, second: RunConfig, spatial: str, temporal: str, adapter: str) -> None:
        source = "image" if spatial == "image" else STAGE_1
        needs_stage_1 = "8f" in (spatial, temporal)
        model = replace(
            second.model,
            pretrained=str(self.folder_of(source)),
            adapter=adapter,
            keep_head=False,
            temporal_init="random" if temporal == "random" else str(self.folder_of(STAGE_1)),
        )
        started = replace(second, after="", model=model)
        after = ("image", STAGE_1) if needs_stage_1 else ("image",)
        self.run(frozen_name(spatial, temporal, adapter), started, "frozen", after)

    def start(self, config: RunConfig, source: str) -> RunConfig:
        """`config` that starts from the run `source`."""
        model = replace(config.model, pretrained=str(self.folder_of(source)))
        return replace(config, model=model)

    def folder_of(self, name: str) -> Path:
        return self.folder / f"{name}, {self.seed}"

    def run(self, name: str, config: RunConfig, kind: str, after: tuple[str, ...]) -> None:
        epochs = max(2, EPOCHS[kind] // (1 if self.size == "full" else SMALL_EPOCHS_DIVISOR))
        train = replace(config.train, epochs=epochs, device=self.device, save_every=10_000)
        views = EvalConfig(num_clips=1, num_crops=3, batch_size_per_device=24)
        config = replace(config, seed=self.seed, train=train, eval=views)
        lists = {kind: str(self.videos / f"{kind}.csv") for kind in ("train", "val")}
        start = time.perf_counter()
        result = api.train(
            config,
            data=lists["train"],
            val=lists["val"],
            store=str(self.store),
            out=self.folder_of(name),
        )
        seconds = time.perf_counter() - start
        self.rows[name] = {
            "row": ROW_OF_TABLE_1.get(name, ""),
            "run": name,
            "seed": self.seed,
            "size": self.size,
            "top1": result.metrics["top1"],
            "own seconds": seconds,
            "total seconds": seconds + sum(self.rows[n]["own seconds"] for n in after),
        }


def claims_of(means: dict[str, dict[str, Any]]) -> list[Claim]:
    by_row = {row["row"]: row for row in means.values()}
    full, naive, adapted, ours = (by_row[number] for number in ("–", "I", "III", "V"))
    return [
        Claim("row III minus row I: the adapter helps", adapted["top1"] - naive["top1"], 0.0),
        Claim("row V minus row III: stage 1 helps", ours["top1"] - adapted["top1"], 0.0),
        Claim("row V minus full training", ours["top1"] - full["top1"], -0.04),
        Claim(
            "row V, own seconds over full training's",
            ours["own seconds"] / full["own seconds"],
            1.0,
            at_most=True,
        ),
    ]


def _mean(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    mine = [row for row in rows if row["run"] == name]
    numbers = {key: mean(row[key] for row in mine) for key in NUMBERS}
    return {**mine[0], "seed": "mean", **numbers}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2, or 0 when small")
    given = options.parse_args()
    seeds = given.seeds or ((0, 1, 2) if given.size == "full" else (0,))
    rows = rows_before(given.json, given.size)
    with tempfile.TemporaryDirectory() as folder:
        # Clips are 32 pixels wide: a store of 96 is plenty, and far cheaper to read than one of 288.
        store = Path(folder) / "store"
        api.prepare(real_videos("actions5"), store, short_side=96, progress=False)
        for seed in seeds:
            if all(row["seed"] != seed for row in rows):
                rows += Seed(seed, given.size, given.device, store, Path(folder)).run_all()
                if given.json is not None:
                    write_json(given.json, rows)
    means = {name: _mean(rows, name) for name in dict.fromkeys(row["run"] for row in rows)}
    title = "actions5: 80 training clips, 80 test clips, 5 classes"
    report(title, [*rows, *means.values()], claims_of(means), given.json)


if __name__ == "__main__":
    main()
