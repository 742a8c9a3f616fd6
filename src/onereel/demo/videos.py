"""Long narrated synthetic videos with train and validation lists: the demo's raw material."""

from __future__ import annotations

import csv
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av

from onereel.demo.drawing import draw_frames
from onereel.demo.script import Script, write_scripts

WIDTH, HEIGHT = 384, 288
VAL_SHARE = 0.25
COLUMNS = ("path", "label", "caption", "start", "end", "camera")


def write_demo_videos(
    out: Path, *, minutes: float = 10.0, seed: int = 0, num_workers: int | None = None
) -> list[Path]:
    """Write `out/videos/*.mp4`, `out/train.csv` and `out/val.csv`, and return their paths.

    The videos last `minutes` together, a minute or more each, and hold an event of 2 to 2.4 seconds about every
    2.5 seconds. A quarter of the videos is for validation. The same arguments give the same videos.

    Args:
        num_workers: encoding processes; None: one per core, 0: in this process.
    """
    scripts = write_scripts(minutes, seed)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    files = [out / "videos" / f"{script.name}.mp4" for script in scripts]
    workers = os.cpu_count() or 1 if num_workers is None else num_workers
    if workers > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(files)), mp_context=spawn) as pool:
            list(pool.map(encode_video, scripts, files))
    else:
        for script, file in zip(scripts, files):
            encode_video(script, file)
    num_val = max(1, round(VAL_SHARE * len(scripts)))
    lists = {"train.csv": scripts[:-num_val], "val.csv": scripts[-num_val:]}
    for name, members in lists.items():
        _write_list(out / name, members)
    return files + [out / name for name in lists]


def encode_video(script: Script, file: Path) -> None:
    """Draw `script` and write it as a camera or a phone would leave it: H.264 at x264's default settings."""
    with av.open(str(file), "w") as container:
        # One thread: the bytes then don't depend on the machine's number of cores.
        stream = container.add_stream("libx264", rate=script.fps, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in draw_frames(script, WIDTH, HEIGHT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _write_list(file: Path, scripts: Iterable[Script]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for script in scripts:
            for event in script.events:
                start, end = event.first / script.fps, event.last / script.fps
                camera = script.shot_of(event).camera
                video = f"videos/{script.name}.mp4"
                row = (video, event.label, event.caption, f"{start:.3f}", f"{end:.3f}", camera)
                writer.writerow(row)
