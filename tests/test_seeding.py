"""Randomness is a function of what it is for."""

from __future__ import annotations

import torch

from onereel.seeding import clip_generators
from onereel.types import SampleKey


def draw(generator):
    return torch.rand(4, generator=generator).tolist()


def test_a_clips_generator_depends_on_the_clip_alone():
    keys = [SampleKey(0, 1), SampleKey(0, 2), SampleKey(1, 1), SampleKey(0, 1, view=1)]
    together = [draw(g) for g in clip_generators(5, keys)]
    alone = [draw(clip_generators(5, [key])[0]) for key in keys]
    assert together == alone
    assert len({tuple(values) for values in together}) == len(keys)
    assert together != [draw(g) for g in clip_generators(6, keys)]
    assert together != [draw(g) for g in clip_generators(5, keys, "other")]
