"""How fast a run is and how well it does, between two log lines."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from onereel.types import Batch

GIB = 2**30


class Meter:
    """Sums over the steps since the last log line, and the rates that follow from them.

    What the run learns (loss, top-1, …) is a mean over all clips of the window, on all devices; it is part of a
    checkpoint, so that a resumed run logs what the unbroken one would have. Rates are those of this device unless
    their name ends in `_total`, and time inside `paused()` does not count.
    """

    def __init__(self, device: torch.device, peak_flops: float) -> None:
        self.device = device
        self.peak_flops = peak_flops
        self.sums: dict[str, float] = {}
        self.stop_requested = False
        self.start()

    def start(self) -> None:
        """Count and clock the next window from now."""
        self._start = time.perf_counter()
        self._wait_seconds = 0.0
        self._steps = 0
        self._clips_total = 0.0
        self._counts = dict.fromkeys(("clips", "num_tokens", "num_tokens_dense", "flops"), 0.0)

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time it takes counts as waiting for data."""
        start = time.perf_counter()
        batch = next(batches)
        self._wait_seconds += time.perf_counter() - start
        return batch

    def count(self, num_clips: int, stats: Mapping[str, float]) -> None:
        """Add one micro-step's work on this device."""
        self._counts["clips"] += num_clips
        for name in ("num_tokens", "num_tokens_dense", "flops"):
            self._counts[name] += stats[name]

    def add(self, sums: Mapping[str, float]) -> None:
        """Add one step: sums over the clips of all devices, with `num_clips`, `num_failed`, `grad_norm` and `stop`
        (how many processes were asked to stop)."""
        self._steps += 1
        self._clips_total += sums["num_clips"]
        self.stop_requested = sums["stop"] > 0
        counted = {name: value for name, value in sums.items() if name != "stop"}
        for name, value in {**counted, "num_steps": 1.0}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in the block (evaluating, saving) is not the loop's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def means(self) -> dict[str, float]:
        """Means per clip since the last line, `num_failed` samples that could not be read, and the mean over steps
        of the gradient's norm; starts anew."""
        sums, self.sums = self.sums, {}
        num_clips, num_steps = max(1.0, sums.pop("num_clips")), sums.pop("num_steps")
        whole = {
            "num_failed": sums.pop("num_failed"),
            "grad_norm": sums.pop("grad_norm") / num_steps,
        }
        return {name: value / num_clips for name, value in sums.items()} | whole

    def rates(self, steps_left: int) -> dict[str, float]:
        """Speed, waiting and tokens since the last line, most memory so far, and seconds left; starts anew."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        counts = self._counts
        rates = {
            "clips_per_second": counts["clips"] / seconds,
            "clips_per_second_total": self._clips_total / seconds,
            "tokens_per_second": counts["num_tokens"] / seconds,
            "mfu": counts["flops"] / seconds / self.peak_flops,
            "data_wait": self._wait_seconds / seconds,
            "kept_ratio": counts["num_tokens"] / max(1.0, counts["num_tokens_dense"]),
            "peak_memory_gib": peak_memory_bytes(self.device) / GIB,
            "eta_seconds": steps_left * seconds / max(1, self._steps),
        }
        self.start()
        return rates


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that tensors held on a CUDA device so far; on CPU, most that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
