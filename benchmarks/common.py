"""What every benchmark shares: its arguments, its table, its claims, and the JSON file that holds them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("onereel", "torch", "av", "numpy", "pyarrow", "decord", "torchcodec")


@dataclass(frozen=True)
class Claim:
    """One promise: `value` must be at least `goal`, or at most, where `at_most`."""

    name: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def arguments(
    description: str | None, devices: Sequence[str] = ("cpu", "cuda")
) -> argparse.Namespace:
    """`--size small|full`, `--device`, `--json FILE`."""
    return parser(description, devices).parse_args()


def parser(
    description: str | None, devices: Sequence[str] = ("cpu", "cuda")
) -> argparse.ArgumentParser:
    """What reads the options of `arguments`, for benchmarks with more."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument(
        "--size", choices=("small", "full"), default="small", help="small: 8 minutes at most"
    )
    parser.add_argument("--device", choices=devices, default=devices[0])
    parser.add_argument(
        "--json", type=Path, default=None, help="write machine, versions, rows and claims here"
    )
    return parser


def clock_of(device: str) -> Callable[[], float]:
    """The clock to time `device` by, in seconds: wall clock on CUDA; on the CPU its time on one thread.

    That is what the work takes whatever else the machine does; this sets PyTorch to one thread.
    """
    if device == "cuda":
        return time.perf_counter
    torch.set_num_threads(1)
    return time.process_time


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """Bytes of tensors that `work` needs at once, beyond those that were there before, as PyTorch counts them."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        record.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = (event["args"]["Bytes"] for event in events if event.get("name") == "[memory]")
    return max(accumulate(changes), default=0)


def real_videos(*parts: str) -> Path:
    """A folder of the real test videos, or exit with a clear word where it is absent."""
    root = Path(os.environ.get("ONEREEL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    folder = root.joinpath(*parts)
    if not folder.is_dir():
        sys.exit(
            f"no real videos at {folder}: set ONEREEL_TEST_DATA to a folder that holds {'/'.join(parts)}"
        )
    return folder


def report(
    title: str,
    rows: Sequence[dict[str, Any]],
    claims: Sequence[Claim],
    json_path: Path | None,
) -> None:
    """Print rows and claims as tables, and write them to `json_path` where it is given."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(
        _table(
            title, rows, lambda value: f"{value:.2f}" if isinstance(value, float) else str(value)
        )
    )
    checked = [
        {
            "claim": claim.name,
            "value": f"{claim.value:.2f}",
            "goal": f"{'≤' if claim.at_most else '≥'} {claim.goal:g}",
            "": "holds" if claim.holds else "FAILS",
        }
        for claim in claims
    ]
    console.print(_table("Claims", checked, str))
    if json_path is not None:
        write_json(json_path, rows, claims)


def write_json(path: Path, rows: Sequence[dict[str, Any]], claims: Sequence[Claim] = ()) -> None:
    """Rows and claims with the machine and the versions that made them."""
    content = {
        "machine": machine(),
        "versions": versions(),
        "rows": list(rows),
        "claims": [claim.as_json() for claim in claims],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def rows_before(path: Path | None, size: str) -> list[dict[str, Any]]:
    """Rows of single seeds that an earlier run of a benchmark wrote to `path` at the same size (column "size")."""
    if path is None or not path.exists():
        return []
    rows = json.loads(path.read_text())["rows"]
    return [row for row in rows if row["size"] == size and row["seed"] != "mean"]


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, GPU, and system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python and the packages that are installed of those a benchmark may use."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _table(title: str, rows: Sequence[dict[str, Any]], text: Callable[[Any], str]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for column in columns:
        is_number = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(text(row[column]) if column in row else "" for column in columns))
    return table
