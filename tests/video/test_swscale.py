"""swscale called directly against a filter graph: the same bytes, and not one byte elsewhere."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from onereel.types import CropBox
from onereel.video import swscale as module
from onereel.video.decode import finish
from onereel.video.swscale import Box, GraphScaler, SwscaleContext, swscale


@pytest.fixture
def _fresh_probe() -> Iterator[None]:
    swscale.cache_clear()
    yield
    swscale.cache_clear()


def noise_frame(height: int, width: int) -> av.VideoFrame:
    noise = np.random.default_rng(0).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    return av.VideoFrame.from_ndarray(noise, format="yuv420p")


@pytest.mark.skipif(swscale() is None, reason="this PyAV does not bundle swscale")
@pytest.mark.parametrize("size", [(20, 20), (33, 47), (224, 224), (50, 113)])
@pytest.mark.parametrize(("space", "color_range"), [(1, 1), (6, 1), (2, 0), (1, 2), (9, 1)])
def test_direct_equals_graph(size: tuple[int, int], space: int, color_range: int) -> None:
    frame = noise_frame(120, 200)
    frame.colorspace, frame.color_range = space, color_range
    box = Box(14, 6, 130, 100)
    length, guard = 3 * size[0] * size[1], 4096
    memory = torch.full((length + 2 * guard,), 77, dtype=torch.uint8)
    context = SwscaleContext(swscale(), box, size, space, color_range == 2)
    context.scale(frame, box, memory.data_ptr() + guard)
    direct = memory[guard : guard + length].view(3, *size)
    difference = direct.int() - GraphScaler(frame, box, size).scale(frame).int()
    assert difference.abs().max() <= 2
    assert (memory[:guard] == 77).all(), "wrote before the clip"
    assert (memory[guard + length :] == 77).all(), "wrote behind the clip"


@pytest.mark.skipif(swscale() is None, reason="this PyAV does not bundle swscale")
@pytest.mark.parametrize("width", range(100, 134, 2))
def test_every_column_of_a_picture_that_grows(width: int) -> None:
    """FFmpeg's converter to planar RGB leaves out columns of some widths."""
    frame, box, size = noise_frame(80, 140), Box(6, 4, width, 60), (112, 160)
    full = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
    expected = finish(full, 0, CropBox(4, 6, 60, width), size).int()
    direct = torch.empty(3, *size, dtype=torch.uint8)
    SwscaleContext(swscale(), box, size, 2, False).scale(frame, box, direct.data_ptr())
    assert (direct.int() - expected).abs().max() <= 2
    assert (GraphScaler(frame, box, size).scale(frame).int() - expected).abs().max() <= 2


@pytest.mark.usefixtures("_fresh_probe")
class TestProbe:
    def test_no_library_means_graphs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(module.av, "__file__", str(tmp_path / "av" / "__init__.py"))
        assert swscale() is None

    def test_a_file_that_is_no_library_means_graphs(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "av.libs").mkdir()
        (tmp_path / "av.libs" / "libswscale.so").write_text("no library")
        monkeypatch.setattr(module.av, "__file__", str(tmp_path / "av" / "__init__.py"))
        assert swscale() is None

    def test_another_answer_than_the_graph_means_graphs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nothing(self: object, frame: object, box: Box, out: int) -> None:
            ctypes.memset(out, 0, 3)

        monkeypatch.setattr(SwscaleContext, "scale", nothing)
        assert swscale() is None
