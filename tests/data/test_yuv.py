"""Clips as decoded: batches of them, and the pictures that the device makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onereel.config import AugmentConfig
from onereel.data.augment import BatchAugment
from onereel.data.yuv import BT601_WEIGHTS, WEIGHTS, black, stacked, to_rgb
from onereel.types import Batch, SampleKey, YuvClips, YuvLayout

LAYOUTS = (
    YuvLayout(20, 32, 1, full_range=False, rotation=0, hflip=False),
    YuvLayout(20, 32, 1, full_range=False, rotation=0, hflip=False),
    YuvLayout(16, 24, 5, full_range=True, rotation=90, hflip=True),
    YuvLayout(30, 18, 9, full_range=False, rotation=180, hflip=False),
    YuvLayout(20, 32, 1, full_range=False, rotation=270, hflip=True),
)


def random_clip(layout: YuvLayout, seed: int, num_frames: int = 3) -> YuvClips:
    generator = torch.Generator().manual_seed(seed)
    num_bytes = num_frames * layout.frame_bytes
    values = torch.randint(0, 256, (num_bytes,), generator=generator, dtype=torch.uint8)
    return YuvClips(values, (layout,), num_frames, (14, 16))


@pytest.fixture
def batch() -> YuvClips:
    clips = stacked([random_clip(layout, i) for i, layout in enumerate(LAYOUTS)])
    assert isinstance(clips, YuvClips)
    return clips


def test_each_clip_of_a_batch_is_what_it_is_alone(
    batch: YuvClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = to_rgb(batch)
    assert together.shape == (5, 3, 3, 14, 16)
    assert together.dtype == torch.uint8
    for i, layout in enumerate(LAYOUTS):
        assert torch.equal(together[i], to_rgb(random_clip(layout, i))[0])
    monkeypatch.setattr("onereel.data.yuv._PIXELS_AT_ONCE", 1)
    assert torch.equal(together, to_rgb(batch))


@pytest.mark.parametrize("space", [*WEIGHTS, 5])
@pytest.mark.parametrize("full", [False, True])
def test_colors_are_those_of_the_standards(space: int, full: bool) -> None:
    """Primary colours, by the definition: Y is a weighted sum, and the differences are from blue and red to it."""
    red, blue = WEIGHTS.get(space, BT601_WEIGHTS)
    colors = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    weights = torch.tensor([red, 1 - red - blue, blue])
    y = (colors * weights).sum(1)
    u, v = (colors[:, 2] - y) / (2 * (1 - blue)), (colors[:, 0] - y) / (2 * (1 - red))
    darkest, luma, chroma = (0.0, 1.0, 1.0) if full else (16, 219 / 255, 224 / 255)
    coded = torch.stack([y * luma + darkest, u * chroma + 128, v * chroma + 128], 1)
    coded = coded.round().clamp(0, 255).byte()
    frames = coded.repeat_interleave(torch.tensor([4, 1, 1]), dim=1)
    layout = YuvLayout(2, 2, space, full, 0, False)
    (clip,) = to_rgb(YuvClips(frames.flatten(), (layout,), 5, (2, 2)))
    assert (clip.int() - colors[:, :, None, None]).abs().max() <= 2


def test_black_is_black() -> None:
    assert torch.equal(to_rgb(black(3, (8, 6))), torch.zeros(1, 3, 3, 8, 6, dtype=torch.uint8))


def test_a_batch_of_the_wrong_length_is_refused(batch: YuvClips) -> None:
    with pytest.raises(ValueError, match="values must be uint8"):
        YuvClips(batch.values[:-1], batch.layouts, batch.num_frames, batch.size)


def test_whole_clips_are_stacked() -> None:
    clips: list[Any] = [torch.full((2, 3, 4, 4), i, dtype=torch.uint8) for i in range(3)]
    assert torch.equal(_tensor(stacked(clips)), torch.stack(clips))


def test_augmentation_makes_pictures_first(batch: YuvClips) -> None:
    config = AugmentConfig(hflip_prob=0.5, color_jitter=0.4, erase_prob=0.5)
    augment = BatchAugment(config, None, seed=3, training=True)
    keys = [SampleKey(2, i) for i in range(5)]
    coded, made = (
        augment(Batch(clips, keys, num_clips=5), "cpu").clips for clips in (batch, to_rgb(batch))
    )
    assert torch.equal(_tensor(coded), _tensor(made))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_pictures(batch: YuvClips) -> None:
    made = to_rgb(batch.pin_memory().to("cuda", non_blocking=True)).cpu()
    assert (made.int() - to_rgb(batch).int()).abs().max() <= 1


def _tensor(clips: Any) -> Tensor:
    assert isinstance(clips, Tensor)
    return clips
