"""Flexible sampling: every micro-batch has a shape of its own, a function of (seed, epoch, number) alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from onereel.data.loader import ClipLoader
from onereel.data.shapes import FlexibleShapes
from onereel.tokens.picking import PatchPicker
from onereel.tokens.run_length import RunLength
from onereel.types import Batch, ClipShape, Packed

SHAPES = (ClipShape(4, 16), ClipShape(8, 16), ClipShape(6, 32), ClipShape(4, 48))
FLEXIBLE = FlexibleShapes(SHAPES, seed=7)


def loader_of(dataset, **settings):
    defaults = {"batch_size": 2, "seed": 7, "shuffle": True, "drop_last": True, "shapes": FLEXIBLE}
    return ClipLoader(dataset, **(defaults | settings))


def shape_of(batch: Batch) -> ClipShape:
    assert isinstance(batch.clips, torch.Tensor)
    assert batch.clips.shape[2] == 3
    assert batch.clips.shape[3] == batch.clips.shape[4]
    return ClipShape(batch.clips.shape[1], batch.clips.shape[3])


def test_draws_are_uniform_over_the_shapes() -> None:
    counts = Counter(FLEXIBLE.draw(epoch, number) for epoch in range(4) for number in range(1000))
    assert set(counts) == set(SHAPES)
    assert max(abs(count - 1000) for count in counts.values()) < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_draws_depend_on_seed_epoch_and_number_only() -> None:
    assert [FLEXIBLE.draw(1, n) for n in range(50)] == [FLEXIBLE.draw(1, n) for n in range(50)]
    others = (replace(FLEXIBLE, seed=8).draw(1, n) for n in range(50))
    assert [FLEXIBLE.draw(1, n) for n in range(50)] != list(others)
    assert [FLEXIBLE.draw(2, n) for n in range(50)] != [FLEXIBLE.draw(1, n) for n in range(50)]


def test_clips_come_out_in_the_drawn_shape_and_start_anywhere(dataset_of) -> None:
    loader = loader_of(dataset_of(12))
    batches = list(loader.batches(epoch=3))
    assert [shape_of(batch) for batch in batches] == [FLEXIBLE.draw(3, j) for j in range(6)]
    assert [batch.number for batch in batches] == list(range(6))
    resumed = list(loader_of(dataset_of(12)).batches(epoch=3, start=4))
    assert [batch.number for batch in resumed] == [4, 5]
    for whole, late in zip(batches[4:], resumed, strict=True):
        assert whole.keys == late.keys
        assert torch.equal(whole.clips, late.clips)


def test_ranks_and_workers_see_the_same_shapes(dataset_of) -> None:
    def shapes(**settings):
        return [shape_of(b) for b in loader_of(dataset_of(24), **settings).batches(epoch=0)]

    alone = shapes(batch_size=4)
    assert shapes(batch_size=2, rank=0, world_size=2) == alone
    assert shapes(batch_size=2, rank=1, world_size=2) == alone


def test_a_drawn_clip_is_the_clip_of_a_dataset_of_that_shape(dataset_of) -> None:
    """Crops and moments are those that a fixed shape would have had."""
    for batch in loader_of(dataset_of(8)).batches(epoch=1):
        shape = shape_of(batch)
        fixed = dataset_of(8, num_frames=shape.num_frames, size=shape.size)
        for clip, key in zip(batch.clips, batch.keys, strict=True):
            assert torch.equal(clip, fixed[key].clip)


def test_repeats_share_a_decode_and_a_shape(dataset_of, fake_library) -> None:
    library = fake_library()
    loader = loader_of(dataset_of(6, library), batch_size=4, repeats=2)
    batches = list(loader.batches(epoch=0))
    assert [shape_of(batch) for batch in batches] == [FLEXIBLE.draw(0, j) for j in range(3)]
    assert sum(library.reads.values()) == 6


def test_failed_samples_leave_the_shape(dataset_of) -> None:
    dataset = dataset_of(["bad0", "bad1", "bad2", "bad3"])
    loader = loader_of(dataset, max_bad_ratio=1.0)
    for number, batch in enumerate(loader.batches(epoch=0)):
        assert batch.num_clips == 0
        assert shape_of(batch) == FLEXIBLE.draw(0, number)


def test_selection_in_the_loader_sees_the_drawn_grid(dataset_of) -> None:
    picker = PatchPicker(RunLength(0.1), None, True, tubelet_size=2, patch_size=16, seed=7)
    for number, batch in enumerate(loader_of(dataset_of(8), pick=picker).batches(epoch=0)):
        frames, size = FLEXIBLE.draw(0, number)
        assert isinstance(batch.clips, Packed)
        assert batch.clips.grid == (frames // 2, size // 16, size // 16)


def test_a_loader_without_flexible_sampling_is_as_before(dataset_of) -> None:
    fixed = loader_of(dataset_of(8), shapes=None)
    one = loader_of(dataset_of(8), shapes=FlexibleShapes((ClipShape(4, 16),), 7))
    for a, b in zip(fixed.batches(0), one.batches(0), strict=True):
        assert (a.keys, a.number) == (b.keys, b.number)
        assert torch.equal(a.clips, b.clips)
