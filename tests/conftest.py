"""What every test shares: guarded random state, real data or a reasoned skip, and videos whose frames carry numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
NUMBER_BITS = 12


@pytest.fixture(autouse=True)
def _guard_state() -> Iterator[None]:
    """Seed the global generators, and give the test one thread: results must not depend on either."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of raw videos go into the tests' own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEREEL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@contextmanager
def _dying(objective: type, call: int, error: type[BaseException]) -> Iterator[None]:
    step, calls = objective.forward, []

    def dies(self: Any, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == call:
            raise error
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "forward", dies)
        yield


@pytest.fixture(scope="session")
def dying() -> Callable[[type, int, type[BaseException]], AbstractContextManager[None]]:
    """`with dying(SomeObjective, 6, KeyboardInterrupt):` its forward raises that at the sixth call."""
    return _dying


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real videos; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ONEREEL_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real videos: set ONEREEL_TEST_DATA to a folder that has them")
    return folder


def numbered_frame(number: int, height: int, width: int) -> np.ndarray:
    """A textured uint8 `(height, width, 3)` frame with `number` written in its top rows as wide black or white bars."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack(
        [(x * 2 + number) % 256, (y * 3) % 256, ((x + y + 5 * number) // 2) % 256], axis=-1
    ).astype(np.uint8)
    frame = frame // 2 + 64
    bar = width // NUMBER_BITS
    for bit in range(NUMBER_BITS):
        frame[: height // 4, bit * bar : (bit + 1) * bar] = 235 if number >> bit & 1 else 16
    return frame


def read_number(frame: np.ndarray | torch.Tensor) -> int:
    """The number in a `(3, H, W)` or `(H, W, 3)` frame that was not cropped (it may have been scaled)."""
    array = np.asarray(frame)
    if array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    height, width = array.shape[:2]
    bar = width / NUMBER_BITS
    rows = array[height // 16 : height // 6].astype(np.float64).mean(axis=(0, 2))
    bits = [
        rows[int((b + 0.3) * bar) : int((b + 0.7) * bar) + 1].mean() > 126
        for b in range(NUMBER_BITS)
    ]
    return sum(int(bit) << b for b, bit in enumerate(bits))


def write_video(
    path: Path,
    num_frames: int = 60,
    height: int = 96,
    width: int = 144,
    fps: int = 30,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    frame: Callable[[int, int, int], np.ndarray] = numbered_frame,
    audio: bool = False,
) -> Path:
    """Write a video in which frame i shows the number i; `pts` (in 1/1000 s) makes the rate variable."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if pts is not None:
            from fractions import Fraction

            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=16000) if audio else None
        for i in range(num_frames):
            picture = av.VideoFrame.from_ndarray(frame(i, height, width), format="rgb24")
            if pts is not None:
                picture.pts = pts[i]
                picture.time_base = Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, 16000 * num_frames // fps), np.float32), format="fltp", layout="mono"
            )
            silence.rate = 16000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """`make_video(path, num_frames=…, …)`: see `write_video`."""
    return write_video


@pytest.fixture(scope="session")
def number_of() -> Callable[[np.ndarray | torch.Tensor], int]:
    """`number_of(frame)`: the number that `make_video` wrote into the frame."""
    return read_number
