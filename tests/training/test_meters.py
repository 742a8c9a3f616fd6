"""What a log line says."""

from __future__ import annotations

import time

import pytest
import torch

from onereel.training import measure_peak_flops
from onereel.training.meters import GIB, Meter, peak_memory_bytes

CPU = torch.device("cpu")


def step(num_clips, loss, norm=1.0, num_failed=0, stop=0):
    return {
        "num_clips": num_clips,
        "num_failed": num_failed,
        "loss": loss * num_clips,
        "grad_norm": norm,
        "stop": stop,
    }


def test_means_weigh_clips_and_start_anew():
    meter = Meter(CPU, 1.0)
    meter.add(step(4, 1.0, norm=2.0))
    meter.add(step(2, 4.0, norm=4.0, num_failed=2))
    assert meter.means() == {"loss": 2.0, "num_failed": 2, "grad_norm": 3.0}
    meter.add(step(1, 7.0))
    assert meter.means() == {"loss": 7.0, "num_failed": 0, "grad_norm": 1.0}


def test_a_window_without_clips_has_a_mean_all_the_same():
    meter = Meter(CPU, 1.0)
    meter.add(step(0, 0.0, num_failed=4))
    assert meter.means() == {"loss": 0.0, "num_failed": 4, "grad_norm": 1.0}


def test_rates_count_this_device_and_leave_pauses_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def batches():
        clock[0] += 0.5
        yield "batch"

    meter = Meter(CPU, peak_flops=1000.0)
    assert meter.next_batch(batches()) == "batch"
    clock[0] += 1.5
    meter.count(4, {"num_tokens": 20, "num_tokens_dense": 80, "flops": 600.0})
    meter.add(step(8, 1.0))
    with meter.paused():
        clock[0] += 100.0
    rates = meter.rates(steps_left=3)
    memory = rates.pop("peak_memory_gib")
    assert memory == pytest.approx(peak_memory_bytes(CPU) / GIB, rel=0.1)
    assert rates == {
        "clips_per_second": 2.0,
        "clips_per_second_total": 4.0,
        "tokens_per_second": 10.0,
        "mfu": 0.3,
        "data_wait": 0.25,
        "kept_ratio": 0.25,
        "eta_seconds": 6.0,
    }
    clock[0] += 1.0
    assert meter.rates(steps_left=3)["clips_per_second"] == 0.0


def test_a_request_to_stop_is_noticed():
    meter = Meter(CPU, 1.0)
    meter.add(step(1, 1.0))
    assert not meter.stop_requested
    meter.add(step(1, 1.0, stop=1))
    assert meter.stop_requested


def test_memory_is_that_of_this_process():
    assert 0.01 * GIB < peak_memory_bytes(CPU) < 1000 * GIB


def test_the_peak_is_measured_once_and_is_plausible():
    start = time.perf_counter()
    peak = measure_peak_flops(CPU, torch.float32)
    assert 1e8 < peak < 1e14
    assert time.perf_counter() - start < 10
    assert measure_peak_flops(CPU, torch.float32) == peak


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_higher_in_half_precision():
    device = torch.device("cuda", 0)
    half = measure_peak_flops(device, torch.bfloat16)
    assert half > 2 * measure_peak_flops(device, torch.float32) > 1e12
