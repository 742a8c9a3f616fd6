"""One model for every token budget against models of their own, trained from scratch.

On actions5, or on videos that the demo draws; there with twice the pixels, so that clips have as many tokens.
Clips of 16 x 32 x 32 have 128. "flux" is `onereel train actions_flux`: clips of flexible shape, budgets of 128,
64 and 32 in each step; "flux, two drawn" takes two of these in each step. "fixed grid" is `actions`, with all tokens
of such clips and fixed positions, which serve it better; "fixed grid, then flux" spends the first half of its steps on
such clips with all tokens and the second on "flux", for Flux is published as tuning of models that have learned before;
"own budget K" is `actions` with K of them, by the same selector, in training and test. All make the same number of
optimiser steps and are tested on the same clips at 100, 50, 25 and 12.5 % of the tokens, by the selector and at random;
"larger grid" selects as many from clips of 24 x 32 x 32.

Arms and seeds that are in the JSON file already are not trained again, so the work may be done in pieces.

    python benchmarks/flux_accuracy.py --size full --json flux_actions.json --seeds 0 1 2
    python benchmarks/flux_accuracy.py --size full --data demo --json flux_demo.json
    python benchmarks/flux_accuracy.py            one seed and few epochs: too short for the claims
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from common import Claim, parser, real_videos, report, rows_before, write_json
from onereel import api
from onereel.config import EvalConfig, RunConfig, TokensConfig
from onereel.demo.videos import write_demo_videos
from onereel.recipes import load_recipe

NUM_TOKENS = 128
BUDGETS = (128, 64, 32, 16)
FIRST_FIXED = "fixed grid, then flux"
TUNING_LR = 5e-4
"""Of "fixed grid, then flux", a third of the rate from scratch; the one value that was tried."""
LARGER_FRAMES = 24
ONE_POINT = 0.01
EPOCHS = {
    "actions5": {"small": 20, "full": 200},
    "demo": {"small": 8, "full": 15},
}
MINUTES = {"small": 4.0, "full": 40.0}
"""Of the demo's video."""


@dataclass(frozen=True)
class Task:
    """What is learned: lists, the store that holds their clips, and how often the training list is seen."""

    train: str
    val: str
    store: str
    epochs: int
    is_drawn: bool

    def shaped(self, config: RunConfig) -> RunConfig:
        """A recipe of actions5 for these clips."""
        if not self.is_drawn:
            return config
        sizes = tuple(2 * size for size in config.data.size_choices)
        data = replace(config.data, size=2 * config.data.size, size_choices=sizes)
        model = config.model.renamed("vit_micro_patch16_64")
        return replace(config, data=data, model=model, eval=EvalConfig())


def prepare_task(name: str, size: str, folder: Path) -> Task:
    """Clips are 48 or 96 pixels wide at most: a store of 96 is plenty, and cheaper to read than one of 288."""
    videos, store = folder / "videos", str(folder / "store")
    if name == "demo":
        write_demo_videos(videos, minutes=MINUTES[size])
    else:
        videos = real_videos("actions5")
    api.prepare(videos, store, short_side=96, progress=False)
    lists = (str(videos / f"{part}.csv") for part in ("train", "val"))
    return Task(*lists, store, EPOCHS[name][size], is_drawn=name == "demo")


Arm = tuple[Sequence[RunConfig], Sequence[int]]
"""Runs that share the steps, each but the first from the weights of the one before; and budgets to test at."""


def arms() -> dict[str, Arm]:
    fixed, flux = load_recipe("actions"), load_recipe("actions_flux")
    start = replace(fixed, model=flux.model)
    tuned = replace(flux, optim=replace(flux.optim, lr=TUNING_LR))
    own: dict[str, Arm] = {
        f"own budget {k}": (
            [replace(fixed, tokens=TokensConfig(kind="group-dynamic", token_budget=k))],
            (k,),
        )
        for k in BUDGETS[1:]
    }
    return {
        "fixed grid": ([fixed], BUDGETS),
        "flux": ([flux], BUDGETS),
        "flux, two drawn": ([load_recipe("actions_flux_two")], BUDGETS),
        FIRST_FIXED: ([start, tuned], BUDGETS),
        **own,
    }


def tests_of(budgets: Sequence[int], *, flexible: bool) -> dict[str, Mapping[str, Any]]:
    """Test settings by name: tokens, and frames where they differ."""
    tests: dict[str, Mapping[str, Any]] = {}
    for k in budgets:
        tests[f"{k}"] = {"kind": "group-dynamic", "token_budget": k}
        if k < NUM_TOKENS:
            tests[f"{k} random"] = {"kind": "random", "token_budget": k}
        if flexible:
            tests[f"{k} larger grid"] = {**tests[f"{k}"], "num_frames": LARGER_FRAMES}
    return tests


def one_run(
    arm: str, seed: int, options: argparse.Namespace, task: Task, folder: Path
) -> dict[str, Any]:
    """Train one arm and test it at its budgets: one row."""
    stages, budgets = arms()[arm]
    weights, steps, start = "", 0, time.perf_counter()
    for number, recipe in enumerate(stages):
        config = task.shaped(recipe)
        train = replace(config.train, epochs=task.epochs // len(stages), device=options.device)
        model = replace(config.model, pretrained=weights)
        config = replace(config, seed=seed, train=train, model=model)
        run = folder / f"{arm}-{seed}-{number}"
        result = api.train(config, data=task.train, store=task.store, out=run)
        weights, steps = str(run), steps + result.step
    seconds = time.perf_counter() - start
    row = {"arm": arm, "seed": seed, "size": options.size, "steps": steps}
    row["train seconds"] = seconds
    trained = api.run_config(run)
    for name, settings in tests_of(budgets, flexible=trained.data.is_flexible).items():
        tokens = {key: value for key, value in settings.items() if key != "num_frames"}
        frames = settings.get("num_frames", trained.data.num_frames)
        tested = replace(
            trained,
            tokens=TokensConfig(**tokens),
            data=replace(trained.data, num_frames=frames),
        )
        found = api.evaluate(run, val=task.val, name="test", config=tested, device=options.device)
        row[name] = found.figures()["top1"]
    return row


def claims_of(means: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """What the paper leads one to expect; each arm that it is about must have been run."""
    quarter, full = f"{NUM_TOKENS // 4}", f"{NUM_TOKENS}"
    claims = []
    for arm in ("flux", "flux, two drawn", FIRST_FIXED):
        if arm in means and "fixed grid" in means:
            gain = means[arm][quarter] - means["fixed grid"][full]
            claims.append(Claim(f"{arm} at 25 % minus fixed grid at 100 %", gain, -ONE_POINT))
    if "flux" in means:
        gain = means["flux"][quarter] - means["flux"][f"{quarter} random"]
        claims.append(Claim("flux at 25 %, selected minus random", gain, 0.0))
    if {"flux", "flux, two drawn"} <= means.keys():
        gain = means["flux, two drawn"][quarter] - means["flux"][quarter]
        claims.append(Claim("two drawn minus all three, at 25 %", gain, -ONE_POINT))
    return claims


def mean_rows(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each arm over its seeds, in the order of `arms`."""
    found = {}
    for arm in arms():
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            names = [name for name in mine[0] if name not in ("arm", "seed", "size")]
            numbers = {name: mean(row[name] for row in mine) for name in names}
            found[arm] = {"arm": arm, "seed": "mean", "size": mine[0]["size"], **numbers}
    return found


def read_options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2, or 0 when small")
    options.add_argument("--data", choices=list(EPOCHS), default="actions5")
    options.add_argument("--arms", nargs="+", choices=list(arms()), default=list(arms()))
    return options.parse_args()


def main() -> None:
    options = read_options()
    seeds = options.seeds or ((0, 1, 2) if options.size == "full" else (0,))
    rows = rows_before(options.json, options.size)
    with tempfile.TemporaryDirectory() as folder:
        task = prepare_task(options.data, options.size, Path(folder))
        for seed in seeds:
            for arm in options.arms:
                if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                    continue
                rows.append(one_run(arm, seed, options, task, Path(folder)))
                if options.json is not None:
                    write_json(options.json, rows)
    means = mean_rows(rows)
    report(
        f"{options.data}: top-1 by tokens of a test clip, 128 being all",
        [*rows, *means.values()],
        claims_of(means),
        options.json,
    )


if __name__ == "__main__":
    main()
