"""`make demo`: the main job from end to end on videos that it draws itself.

    python -m onereel.demo --out runs/demo

Draws narrated videos, prepares a chunk store, trains a small ViT with run-length tokens, tests it dense, with
run-length tokens and with random tokens at the same budget, and writes the report. Every figure comes from this run.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from onereel import api
from onereel.config import RunConfig, TokensConfig
from onereel.demo.videos import write_demo_videos
from onereel.errors import ConfigError, OnereelError
from onereel.evaluation.classification import ClassificationResult
from onereel.recipes import load_recipe
from onereel.report.run_report import write_report

MARKER = "made-by-onereel-demo"


@dataclass(frozen=True)
class Demo:
    """From videos to a report, in a few minutes on two cores."""

    out: Path = Path("runs/demo")
    """Run folder; the videos and the store go beside it, into OUT-data. Both are replaced."""
    minutes: float = 10.0
    """Minutes of video to draw."""
    epochs: int = 0
    """Epochs to train; 0: the recipe's."""


def run(demo: Demo) -> Path:
    """The whole job; the path of the report."""
    data = demo.out.with_name(demo.out.name + "-data")
    if data.exists():
        if not (data / MARKER).exists():
            raise ConfigError(f"{data} was not made by the demo; move it, or give another --out")
        shutil.rmtree(data)
    data.mkdir(parents=True)
    (data / MARKER).touch()
    with _step(f"drawing {demo.minutes:g} minutes of narrated video"):
        write_demo_videos(data / "source", minutes=demo.minutes)
    with _step("preparing the chunk store"):
        print(api.prepare(data / "source", data / "store"))
    config = load_recipe("demo")
    if demo.epochs:
        config = replace(config, train=replace(config.train, epochs=demo.epochs))
    with _step("training with run-length tokens"):
        api.train(
            config,
            data=str(data / "source" / "train.csv"),
            val=str(data / "source" / "val.csv"),
            store=str(data / "store"),
            out=demo.out,
            overwrite=True,
        )
    with _step("testing: run-length, random at the same budget, dense"):
        test_selections(demo.out)
    return write_report(demo.out)


def test_selections(out: Path) -> dict[str, ClassificationResult]:
    """Evaluate the run with its own tokens, with as many random ones, and with all."""
    config = api.run_config(out)
    (out / "eval" / f"{api.RESULT}.json").unlink(missing_ok=True)
    results = {"run-length": _classified(out, "run-length", config)}
    budget = results["run-length"].kept_ratio
    for tokens in (TokensConfig(kind="random", keep_ratio=budget), TokensConfig(kind="all")):
        name = "dense" if tokens.kind == "all" else tokens.kind
        results[name] = _classified(out, name, replace(config, tokens=tokens))
    for name, result in results.items():
        print(f"{name}: {result}")
    return results


def _classified(out: Path, name: str, config: RunConfig) -> ClassificationResult:
    result = api.evaluate(out, name=name, config=config)
    assert isinstance(result, ClassificationResult)
    return result


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"\n== {what}", flush=True)
    start = time.perf_counter()
    yield
    print(f"== {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    try:
        report = run(tyro.cli(Demo, prog="python -m onereel.demo"))
    except OnereelError as error:
        sys.exit(f"onereel: error: {error}")
    print(f"\nThe report: {report}")


if __name__ == "__main__":
    main()
