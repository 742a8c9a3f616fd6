"""What each profile of `onereel prepare` costs: bytes, quality, encoding, and CPU time to read a clip from the store.

The figures in `onereel prepare --help` are these. Profiles take turns clip by clip, in one process, on one thread.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from common import arguments, real_videos, report
from onereel.data.cropping import random_resized_box
from onereel.seeding import numpy_generator
from onereel.types import ClipSpec
from onereel.video.encode import PROFILES
from onereel.video.prepare import prepare
from onereel.video.store import ChunkStore

SIZE = (224, 224)
NUM_DRAWS = {"small": 12, "full": 60}


def draw(store: ChunkStore, video: str, protocol: str, number: int) -> ClipSpec:
    """4 frames of a random second (t4_1s), or 16 frames 4 apart (t16_s4), and a random resized crop."""
    info, generator = store.info(video), numpy_generator(0, number, video, protocol)
    span = max(4, round(info.fps)) if protocol == "t4_1s" else 61
    start = int(generator.integers(info.num_frames - span + 1))
    if protocol == "t4_1s":
        frames = sorted(start + generator.choice(span, 4, replace=False))
    else:
        frames = range(start, start + span, 4)
    crop = random_resized_box(info.height, info.width, generator)
    return ClipSpec(video, tuple(map(int, frames)), crop, SIZE)


def read_costs(stores: dict[str, ChunkStore], protocol: str, num_draws: int) -> dict[str, float]:
    """Median CPU milliseconds per clip of each profile; the median over draws and videos."""
    times: dict[str, list[float]] = {name: [] for name in stores}
    videos = next(iter(stores.values())).videos()
    for number in range(num_draws):
        for video in videos:
            for name, store in stores.items():
                spec = draw(store, video, protocol, number)
                store.read(draw(store, video, protocol, number + num_draws))  # warm, not timed
                start = time.process_time()
                store.read(spec)
                times[name].append(1e3 * (time.process_time() - start))
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    options = arguments(__doc__, devices=("cpu",))
    torch.set_num_threads(1)
    videos = real_videos("long")
    with tempfile.TemporaryDirectory() as folder:
        stores: dict[str, ChunkStore] = {}
        rows: list[dict[str, Any]] = []
        for name in PROFILES:
            made = prepare(str(videos), str(Path(folder) / name), profile=name, progress=False)
            stores[name] = ChunkStore(made.store)
            rows.append(
                {
                    "profile": name,
                    "kb/s": 8e-3 * made.store_bytes / made.video_seconds,
                    "x source": made.size_ratio,
                    "luma PSNR dB": made.psnr,
                    "x real time": made.speed,
                }
            )
        for protocol in ("t4_1s", "t16_s4"):
            costs = read_costs(stores, protocol, NUM_DRAWS[options.size])
            for row in rows:
                row[f"{protocol} ms"] = costs[row["profile"]]
    report("Profiles, 288 px, CRF 23", rows, [], options.json)


if __name__ == "__main__":
    main()
