"""Train on real video from scratch, dense and with every selector at one mean budget; accuracy beside wall-clock.

160 clips of five gestures (UTD-MHAD), split by subject. Each run is `onereel train actions` or a variant of it with the
same steps, and all read one chunk store. Dense and run-length runs alternate, so that neither has the quieter machine.
The other selectors then keep the share that run-length keeps of the training clips: an exact count, or for the
anchored form the threshold that keeps as many.

    python benchmarks/actions.py --size full     three seeds; --claims: dense and run-length alone, in half the time
    python benchmarks/actions.py                 one seed, a fifth of the epochs: too short for the accuracy claims
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from common import Claim, parser, real_videos, report
from onereel import api, build
from onereel.config import RunConfig, TokensConfig
from onereel.recipes import load_recipe
from onereel.tokens.tubelets import clip_grid
from onereel.types import SampleKey

SMALL_EPOCHS_DIVISOR = 5
PATCH_SIZE = 8  # of vit_micro_patch8_32


def first_configurations() -> dict[str, RunConfig]:
    """The runs that the claims are about."""
    return {"dense": load_recipe("actions"), "run-length": load_recipe("actions_rlt")}


def budget_configurations(keep_ratio: float, anchor_threshold: float) -> dict[str, RunConfig]:
    """Every other selector at the share that run-length kept; random is the control."""
    tokens = {
        "anchored": TokensConfig(kind="run-length", reference="anchor", threshold=anchor_threshold),
        **{
            kind: TokensConfig(kind=kind, keep_ratio=keep_ratio)
            for kind in ("redundancy", "group-dynamic", "random")
        },
    }
    return {name: replace(load_recipe("actions"), tokens=choice) for name, choice in tokens.items()}


def mean_budget(videos: Path, store: Path) -> tuple[float, float]:
    """The share that run-length keeps of the training list's clips, and the anchored threshold that keeps as much."""
    config = load_recipe("actions_rlt")
    config = replace(config, data=replace(config.data, store=str(store)))
    annotations = build.build_annotations(config, str(videos / "train.csv"))
    dataset = build.build_dataset(config, annotations, annotations.label_names(), training=False)
    clips = torch.stack([dataset[SampleKey(0, index)].clip for index in range(len(annotations))])
    grid = clip_grid(clips, config.model.tubelet_size, PATCH_SIZE)

    def kept(tokens: TokensConfig) -> float:
        selector = build.build_selector(tokens, config.model.tubelet_size, PATCH_SIZE)
        return selector.select(clips, None, grid, None).keep_mask.float().mean().item()

    wanted = kept(config.tokens)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        more = kept(replace(config.tokens, reference="anchor", threshold=middle)) > wanted
        low, high = (middle, high) if more else (low, middle)
    return wanted, high


def one_run(
    name: str, config: RunConfig, videos: Path, store: Path, out: Path, seed: int
) -> dict[str, Any]:
    config = replace(config, seed=seed)
    start = time.perf_counter()
    result = api.train(
        config,
        data=str(videos / "train.csv"),
        val=str(videos / "val.csv"),
        store=str(store),
        out=out / f"{name}-{seed}",
    )
    return {
        "tokens": name,
        "seed": seed,
        "top1": result.metrics["top1"],
        "kept at test": result.metrics["kept_ratio"],
        "steps": result.step,
        "step ms": step_milliseconds(out / f"{name}-{seed}", config),
        "wall seconds": time.perf_counter() - start,
    }


def step_milliseconds(run: Path, config: RunConfig) -> float:
    """Median over the log lines of what a training step took, reading clips included."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rates = [line["clips_per_second"] for line in lines if line["kind"] == "train"]
    return 1e3 * config.train.batch_size_per_device / median(rates)


def measure(
    device: str, size: str, out: Path, *, every_selector: bool = True
) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows per run, then a mean per kind of tokens; and the claims."""
    videos, store = real_videos("actions5"), out / "store"
    # Clips are 32 pixels wide: a store of 96 is plenty, and far cheaper to read than one of 288.
    api.prepare(videos, store, short_side=96, progress=False)
    seeds = (0, 1, 2) if size == "full" else (0,)
    rows: list[dict[str, Any]] = []

    def run_all(configs: dict[str, RunConfig]) -> None:
        for seed in seeds:
            for name, config in configs.items():
                epochs = config.train.epochs // (1 if size == "full" else SMALL_EPOCHS_DIVISOR)
                train = replace(config.train, epochs=epochs, device=device)
                config = replace(config, train=train)
                rows.append(one_run(name, config, videos, store, out, seed))

    run_all(first_configurations())
    if every_selector:
        run_all(budget_configurations(*mean_budget(videos, store)))
    means = {name: _mean(rows, name) for name in dict.fromkeys(row["tokens"] for row in rows)}
    dense, run_length = means["dense"], means["run-length"]
    claims = [
        Claim("dense top-1, mean of seeds", dense["top1"], 0.70),
        Claim("run-length top-1 minus dense", run_length["top1"] - dense["top1"], -0.04),
        Claim(
            "run-length wall-clock over dense",
            run_length["wall seconds"] / dense["wall seconds"],
            0.5,
            at_most=True,
        ),
        Claim("dense minutes per run", dense["wall seconds"] / 60, 20, at_most=True),
    ]
    return rows + list(means.values()), claims


def _mean(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    mine = [row for row in rows if row["tokens"] == name]
    numbers = ("top1", "kept at test", "steps", "step ms", "wall seconds")
    return {"tokens": name, "seed": "mean"} | {key: mean(r[key] for r in mine) for key in numbers}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--claims", action="store_true", help="dense and run-length runs alone")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, claims = measure(
            given.device, given.size, Path(folder), every_selector=not given.claims
        )
    report("actions5: 80 training clips, 80 test clips, 5 classes", rows, claims, given.json)


if __name__ == "__main__":
    main()
