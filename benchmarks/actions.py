"""Train on real video from scratch: dense, run-length, and as many random tokens; accuracy beside wall-clock.

160 clips of five gestures (UTD-MHAD), split by subject. Each run is `onereel train actions` or a variant of it with the
same steps, and all read one chunk store. Dense and run-length runs alternate, so that neither has the quieter machine.

    python benchmarks/actions.py --size full     three seeds
    python benchmarks/actions.py                 one seed, a fifth of the epochs: too short for the accuracy claims
"""

from __future__ import annotations

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

SMALL_EPOCHS_DIVISOR = 5


def configurations(keep_ratio: float | None) -> dict[str, RunConfig]:
    """The runs that are compared; random tokens need the share that run-length kept."""
    dense, run_length = load_recipe("actions"), load_recipe("actions_rlt")
    if keep_ratio is None:
        return {"dense": dense, "run-length": run_length}
    return {"random": replace(dense, tokens=TokensConfig(kind="random", keep_ratio=keep_ratio))}


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
        "wall seconds": time.perf_counter() - start,
    }


def measure(device: str, size: str, out: Path) -> tuple[list[dict[str, Any]], list[Claim]]:
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

    run_all(configurations(None))
    kept = mean(row["kept at test"] for row in rows if row["tokens"] == "run-length")
    run_all(configurations(kept))
    means = {name: _mean(rows, name) for name in ("dense", "run-length", "random")}
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
    numbers = ("top1", "kept at test", "steps", "wall seconds")
    return {"tokens": name, "seed": "mean"} | {key: mean(r[key] for r in mine) for key in numbers}


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        rows, claims = measure(options.device, options.size, Path(folder))
    report("actions5: 80 training clips, 80 test clips, 5 classes", rows, claims, options.json)


if __name__ == "__main__":
    main()
