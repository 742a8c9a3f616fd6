"""A clip in which every selector has something to say, and a browser to look at its page with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

# Quiet, offline, and at home in a container; the sandbox needs rights that containers lack.
CHROMIUM_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def moving_frame(number: int, height: int, width: int) -> np.ndarray:
    """Texture at rest, a box that moves, a corner that drifts slowly, and a corner that flickers."""
    y, x = np.mgrid[0:height, 0:width]
    texture = 96 + 48 * np.sin(x / 5) * np.cos(y / 7)
    frame = np.stack([texture, texture, texture + 20], axis=-1)
    left = 3 * number % width
    frame[height // 3 : height // 2, left : left + width // 5] = (220, 60, 40)
    frame[: height // 4, : width // 4] += 3 * number
    frame[-height // 4 :, -width // 4 :] += 30 * (number % 2)
    return frame.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def moving_video(make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 frames of 96 x 128 pixels, as `moving_frame` draws them."""
    path = tmp_path_factory.mktemp("moving") / "moving.mp4"
    return make_video(path, num_frames=40, height=96, width=128, frame=moving_frame)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONEREEL_CACHE", str(tmp_path / "cache"))


def find_chromium(playwright: Playwright) -> str | None:
    """The browser of ONEREEL_CHROMIUM, one on the PATH, or one that playwright installed."""
    named = os.environ.get("ONEREEL_CHROMIUM")
    if named:
        return named
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    own = playwright.chromium.executable_path
    return found or (own if os.path.exists(own) else None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = find_chromium(playwright)
        if chromium is None:
            pytest.skip("no Chromium: install one, or set ONEREEL_CHROMIUM to its path")
        started = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_OPTIONS)
        yield started
        started.close()
