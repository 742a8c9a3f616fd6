"""What the device can do at best, measured: the denominator of model-FLOP utilisation."""

from __future__ import annotations

import functools
import time

import torch


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large square matrix product, best of several (cached).

    Takes a quarter of a second on CPU and on CUDA. A product of n x n matrices counts 2 * n**3 operations.
    """
    return _measure(device, dtype, torch.get_num_threads())


@functools.cache
def _measure(device: torch.device, dtype: torch.dtype, num_threads: int) -> float:
    cuda = device.type == "cuda"
    n = 8192 if cuda else 768
    # Not ones or zeros: a GPU's power, and so its clock, depends on how many bits change.
    draws = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(n, n, device=device, generator=draws).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + 0.25
    torch.mm(left, right)
    while best == float("inf") or time.perf_counter() < until:
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right)
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * n**3 / best
