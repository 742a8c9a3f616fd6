"""What the loader's workers pick is what the model would keep, value for value."""

from __future__ import annotations

import pickle

import pytest
import torch

from onereel.config import AugmentConfig
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.seeding import clip_generators
from onereel.tokens.frames import FrameSelection
from onereel.tokens.picking import PatchPicker
from onereel.tokens.run_length import RunLength
from onereel.tokens.scored import random_tokens
from onereel.tokens.selector import KeepAll, Tube
from onereel.types import SampleKey

SELECTORS = [KeepAll(), random_tokens(0.4), Tube(0.4), RunLength(0.5), RunLength(0.5, "anchor")]
KEYS = [SampleKey(3, i, view) for i in range(2) for view in range(2)]
MEAN, STD = AugmentConfig.mean, AugmentConfig.std


def make_clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (4, 12, 3, 48, 48), dtype=torch.uint8, generator=generator)
    still = torch.rand(4, 1, 1, 3, 3, generator=generator) < 0.5
    still = still.repeat_interleave(16, -1).repeat_interleave(16, -2)
    return torch.where(still, clips[:, :1], clips)


def picker(selector, frames=None, training=True):
    return PatchPicker(selector, frames, training, tubelet_size=2, patch_size=16, seed=9)


def normalised(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(shape) for v in (MEAN, STD))
    return values.float().div(255).sub(mean).div(std)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frames", [None, FrameSelection(4)], ids=["", "frames"])
@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_the_logits_are_those_of_selection_in_the_model(selector, frames, training):
    torch.manual_seed(0)
    encoder = create_encoder("vit_micro_patch16_48", num_frames=12, length_embedding=True)
    torch.nn.init.normal_(encoder.length_embed)
    model = VideoModel(encoder, ClassificationHead(96, 5), selector, frames=frames).train(training)
    clips = make_clips()
    expected = model(normalised(clips, (3, 1, 1)), generators=clip_generators(9, KEYS))
    packed = pickle.loads(pickle.dumps(picker(selector, frames, training)))(clips, KEYS)
    assert packed.values.dtype == torch.uint8
    values = normalised(packed.values.unflatten(1, (3, -1)), (3, 1)).flatten(1)
    patches = type(packed)(
        values,
        packed.lengths,
        packed.cu_seqlens,
        packed.coordinates,
        packed.grid,
        packed.run_lengths,
    )
    found = model(patches, generators=clip_generators(9, KEYS))
    assert torch.equal(found.logits, expected.logits)
    assert found.lengths == expected.lengths
    assert found.num_dense_tokens == expected.num_dense_tokens
    assert torch.equal(found.features.coordinates, expected.features.coordinates)


def test_only_kept_patches_are_sent():
    clips = make_clips()
    packed = picker(RunLength(0.5))(clips, KEYS)
    assert sum(packed.lengths) < 4 * 6 * 9
    assert packed.values.shape == (sum(packed.lengths), 3 * 2 * 16 * 16)
    t, h, w = packed.coordinates[5].tolist()
    pixels = clips[0, 2 * t : 2 * t + 2, :, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16]
    assert torch.equal(packed.values[5], pixels.transpose(0, 1).flatten())
