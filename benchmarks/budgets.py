"""Whether `onereel predict --latency-ms N` keeps what `onereel tune-budget` promised, within 15 %.

A small run on the demo's videos is tuned on its list; then each row on the front is asked for by its latency, and
copies of the list's videos, which are new files, are answered. Both are by the clock of `tune-budget` (on the CPU the
processor time, with all cores but one); the wall clock and the load average stand beside them.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Claim, arguments, report
from onereel import api
from onereel.demo.videos import write_demo_videos
from onereel.recipes import load_recipe
from onereel.tuning import Choice
from onereel.types import Prediction

MINUTES = {"small": 4.0, "full": 10.0}
EPOCHS = {"small": 3, "full": 40}
COPIES = 12
TOLERANCE = 0.15
Row = dict[str, Any]


def make_run(folder: Path, size: str) -> Path:
    """Videos, their lists, and a classifier of them."""
    write_demo_videos(folder / "source", minutes=MINUTES[size])
    config = load_recipe("demo")
    config = replace(config, train=replace(config.train, epochs=EPOCHS[size], log_every=1000))
    lists = [str(folder / "source" / name) for name in ("train.csv", "val.csv")]
    return api.train(config, data=lists[0], val=lists[1], out=folder / "run").run


def new_files(folder: Path, count: int) -> list[str]:
    """Copies of the list's videos in turn, which nobody has indexed yet."""
    annotations = api.build.build_annotations(load_recipe("demo"), str(folder / "source/val.csv"))
    names = sorted({annotations.record(i).path for i in range(len(annotations))})
    target = Path(tempfile.mkdtemp(dir=folder))
    return [
        shutil.copy(folder / "source" / names[i % len(names)], target / f"{i}.mp4")
        for i in range(count)
    ]


def answer_row(folder: Path, run: Path, limit: float, device: str) -> Row:
    """What predict promises and takes within `limit` milliseconds."""
    choices: list[Choice] = []
    files = new_files(folder, COPIES)
    answers = api.predict(run, files, latency_ms=limit, device=device, on_choice=choices.append)
    timed = [one for one in answers if isinstance(one, Prediction)]
    took = statistics.median((one.index_ms or 0.0) + (one.answer_ms or 0.0) for one in timed)
    (choice,) = choices
    promised = choice.table.latency_ms(choice.row)
    return {
        "--latency-ms": limit,
        "picked": str(choice.row.setting),
        "top-1": choice.row.accuracy,
        "promised ms": promised,
        "measured ms": took,
        "off by": took / promised - 1,
        "wall ms": statistics.median(one.wall_ms or 0.0 for one in timed),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ONEREEL_CACHE"] = str(Path(scratch) / "cache")
        folder = Path(scratch)
        run = make_run(folder, options.size)
        table = api.tune_budget(
            run, val=str(folder / "source" / "val.csv"), device=options.device, say=print
        )
        limits = [1.001 * table.latency_ms(row) for row in table.front()]
        rows = [answer_row(folder, run, limit, options.device) for limit in limits]
    worst = max(abs(row["off by"]) for row in rows)
    claim = Claim("largest miss of a promised latency", worst, TOLERANCE, at_most=True)
    report("Latency promised and measured", rows, [claim], options.json)


if __name__ == "__main__":
    main()
