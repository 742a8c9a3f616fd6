from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onereel.config import AugmentConfig
from onereel.data.augment import (
    BatchAugment,
    Box,
    Mix,
    cutmix_box,
    erase_box,
    mirror,
    mix_clips,
    partner_distance,
)
from onereel.errors import ConfigError, DataError
from onereel.seeding import numpy_generator
from onereel.tokens.packing import pack_clips
from onereel.types import Batch, SampleKey, TokenSelection

NUM_CLASSES = 5
MEAN = torch.tensor(AugmentConfig.mean).view(3, 1, 1)
STD = torch.tensor(AugmentConfig.std).view(3, 1, 1)
EVERYTHING = {
    **{"hflip_prob": 0.5, "randaugment_num_ops": 2, "color_jitter": 0.4, "erase_prob": 0.5},
    **{"mixup_alpha": 0.8, "cutmix_alpha": 1.0},
}


def make_batch(size=6, frames=4, side=32, epoch=0, first=0) -> Batch:
    """Random clips, each of which is the same in all batches that hold its index."""
    clips = [
        torch.randint(
            0,
            256,
            (frames, 3, side, side),
            dtype=torch.uint8,
            generator=torch.Generator().manual_seed(i),
        )
        for i in range(first, first + size)
    ]
    keys = [SampleKey(epoch, i) for i in range(first, first + size)]
    labels = torch.tensor([key.index % NUM_CLASSES for key in keys])
    return Batch(torch.stack(clips), keys, labels, num_clips=size)


def still_batch(size=6) -> Batch:
    batch = make_batch(size, frames=1)
    batch.clips = batch.clips.repeat(1, 4, 1, 1, 1)
    return batch


def augment(batch: Batch, training=True, seed=0, **settings) -> Batch:
    config = AugmentConfig(**{"hflip_prob": 0.0} | settings)
    return BatchAugment(config, NUM_CLASSES, seed, training)(batch, "cpu")


def normalised(clips: torch.Tensor) -> torch.Tensor:
    return (clips.float() / 255 - MEAN) / STD


@pytest.mark.parametrize(("training", "settings"), [(True, {}), (False, EVERYTHING)])
def test_off_is_exactly_normalisation(training, settings):
    batch = make_batch()
    out = augment(batch, training, **settings)
    assert torch.equal(out.clips, normalised(batch.clips))
    assert out.clips.dtype == torch.float32
    assert out.soft_labels is None
    assert out.scoring_clips is None
    assert torch.equal(out.labels, batch.labels)
    assert (out.keys, out.num_clips) == (batch.keys, batch.num_clips)


def test_flips_mirror_the_clips_that_were_drawn():
    batch = make_batch(40)
    out = augment(batch, hflip_prob=0.5).clips
    plain = normalised(batch.clips)
    flipped = [not torch.equal(a, b) for a, b in zip(out, plain)]
    assert 8 < sum(flipped) < 32
    for clip, expected, flip in zip(out, plain, flipped):
        assert torch.equal(clip, expected.flip(-1) if flip else expected)
    assert torch.equal(augment(batch, hflip_prob=1.0).clips, plain.flip(-1))


def test_the_batch_given_is_left_as_it_was():
    batch = make_batch()
    before = batch.clips.clone()
    augment(batch, **EVERYTHING)
    assert torch.equal(batch.clips, before)
    assert batch.soft_labels is None


@pytest.mark.parametrize(
    "settings",
    [{name: value} for name, value in EVERYTHING.items()] + [EVERYTHING],
    ids=lambda settings: "+".join(settings),
)
def test_a_still_clip_stays_still(settings):
    out = augment(still_batch(), **settings)
    for frames in (out.clips, out.scoring_clips):
        if frames is not None:
            assert torch.equal(frames, frames[:, :1].expand_as(frames))


def test_a_clip_does_not_depend_on_its_company():
    settings = {**EVERYTHING, "mixup_alpha": 0.0, "cutmix_alpha": 0.0}
    whole = augment(make_batch(6), **settings)
    parts = [augment(make_batch(2, first=i), **settings) for i in (0, 2, 4)]
    assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))


def test_draws_depend_on_seed_epoch_and_view():
    batch = make_batch(12)
    base = augment(batch, color_jitter=0.4).clips
    assert torch.equal(base, augment(batch, color_jitter=0.4).clips)
    assert not torch.equal(base, augment(batch, seed=1, color_jitter=0.4).clips)
    assert not torch.equal(base, augment(make_batch(12, epoch=1), color_jitter=0.4).clips)
    batch.keys = [key._replace(view=1) for key in batch.keys]
    assert not torch.equal(base, augment(batch, color_jitter=0.4).clips)


def test_one_augmentation_does_not_move_the_draws_of_another():
    batch = make_batch(20)
    alone = augment(batch, hflip_prob=0.5).clips
    erased = augment(batch, hflip_prob=0.5, erase_prob=0.5)
    assert torch.equal(erased.scoring_clips, alone)


def test_color_jitter_stays_within_its_range():
    batch = make_batch(8)
    batch.clips = torch.full_like(batch.clips, 100)
    out = augment(batch, color_jitter=0.3).clips * STD + MEAN
    brightness = out.mean((1, 2, 3, 4)) / (100 / 255)
    assert (brightness > 0.69).all()
    assert (brightness < 1.31).all()
    assert brightness.std() > 0.05


def test_erasing_clears_one_box_in_all_frames_and_keeps_a_clean_copy():
    batch = make_batch(40)
    out = augment(batch, erase_prob=0.5)
    plain = normalised(batch.clips)
    assert torch.equal(out.scoring_clips, plain)
    changed = (out.clips != plain).any(2)
    assert 8 < sum(bool(clip.any()) for clip in changed) < 32
    for clip, mask in zip(out.clips, changed):
        if mask.any():
            rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
            box = Box(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
            assert 0.015 < box.area / 32**2 < 0.36
            assert not box.of(clip).any()
            assert (mask == mask[0]).all()
            assert mask[0].sum() == box.area


def test_erase_boxes_are_spread_as_published():
    boxes = [erase_box(112, 112, numpy_generator(i)) for i in range(2000)]
    shares = np.array([box.area / 112**2 for box in boxes if box])
    assert len(shares) > 1990
    assert 0.019 < shares.min() < 0.03
    assert 0.3 < shares.max() < 0.35
    # Uniform on (0.02, 1/3) but for large boxes of extreme shape, which are drawn again.
    assert 0.14 < shares.mean() < 0.18


# ----------------------------------------------------------------------------------------------------------- mixing


@pytest.mark.parametrize("size", [2, 5])
def test_mixup_blends_clips_and_labels_by_the_same_weight(size):
    batch = make_batch(size)
    out = augment(batch, mixup_alpha=0.8)
    plain = normalised(batch.clips)
    for i in range(size):
        own, other = int(batch.labels[i]), int(batch.labels[i - 1])
        weight = out.soft_labels[i, own]
        assert out.soft_labels[i, other] == pytest.approx(1 - float(weight), abs=1e-6)
        expected = weight * plain[i] + (1 - weight) * plain[i - 1]
        assert torch.allclose(out.clips[i], expected, atol=1e-5)
    assert torch.allclose(out.soft_labels.sum(1), torch.ones(size))
    assert len(set(out.soft_labels.max(1).values.tolist())) == size


@pytest.mark.parametrize("size", [2, 5])
def test_cutmix_changes_exactly_the_area_that_the_labels_state(size):
    batch = make_batch(size)
    plain = normalised(batch.clips)
    areas = []
    for epoch in range(10):
        batch.keys = [key._replace(epoch=epoch) for key in batch.keys]
        out = augment(batch, cutmix_alpha=1.0)
        for i in range(size):
            pasted = (out.clips[i] == plain[i - 1]).all(1)
            kept = (out.clips[i] == plain[i]).all(1)
            assert (pasted | kept).all()
            assert (pasted == pasted[0]).all()
            share = (~kept[0]).float().mean()
            assert out.soft_labels[i, batch.labels[i - 1]] == pytest.approx(float(share), abs=1e-6)
            areas.append(float(share))
    assert 0 < np.mean(areas) < 0.6
    assert max(areas) > 0.3


@given(st.integers(4, 300), st.integers(4, 300), st.floats(0, 1), st.integers(0, 1000))
def test_cutmix_boxes_lie_inside_the_frame(height, width, share, seed):
    box = cutmix_box(height, width, share, numpy_generator(seed))
    assert 0 <= box.top <= box.bottom <= height
    assert 0 <= box.left <= box.right <= width
    assert box.area <= (height * share**0.5 + 1) * (width * share**0.5 + 1)


def test_both_kinds_of_mixing_share_the_clips():
    kinds = {"cutmix": 0, "mixup": 0}
    batch = make_batch(60)
    plain = normalised(batch.clips)
    out = augment(batch, mixup_alpha=0.8, cutmix_alpha=1.0).clips
    for i in range(60):
        copied = ((out[i] == plain[i]) | (out[i] == plain[i - 1])).all()
        kinds["cutmix" if copied else "mixup"] += 1
    assert min(kinds.values()) > 15


def test_mix_prob_leaves_clips_alone():
    batch = make_batch(60)
    out = augment(batch, mixup_alpha=0.8, mix_prob=0.5)
    alone = (out.soft_labels.max(1).values == 1).tolist()
    assert 15 < sum(alone) < 45
    plain = normalised(batch.clips)
    assert all(torch.equal(out.clips[i], plain[i]) for i in range(60) if alone[i])


def test_a_single_clip_has_no_partner():
    batch = make_batch(1)
    out = augment(batch, mixup_alpha=0.8, cutmix_alpha=1.0)
    assert torch.equal(out.clips, normalised(batch.clips))
    assert out.soft_labels.tolist() == [[1, 0, 0, 0, 0]]


@given(num_samples=st.integers(2, 9), views=st.integers(1, 4))
def test_no_clip_is_mixed_with_a_view_of_itself(num_samples, views):
    keys = [SampleKey(0, 10 * i, view) for i in range(num_samples) for view in range(views)]
    distance = partner_distance(keys)
    assert distance == views
    partners = [i - distance for i in range(len(keys))]
    assert all(keys[i].index != keys[j].index for i, j in enumerate(partners))
    assert len({j % len(keys) for j in partners}) == len(keys), "every clip is a partner once"


def test_few_clips_meet_themselves_where_some_must():
    assert partner_distance([SampleKey(0, 0)]) == 1
    assert partner_distance([SampleKey(0, 0), SampleKey(0, 0, 1)]) == 1
    odd = [SampleKey(0, 0), SampleKey(0, 1), SampleKey(0, 1, 1)]
    assert partner_distance(odd) == 1


@pytest.mark.parametrize("num_samples", [2, 3])
def test_views_are_mixed_with_other_samples(num_samples):
    """Two views of each sample, an odd or even number of samples: clips and labels agree on the partner."""
    batch = make_batch(2 * num_samples)
    batch.keys = [SampleKey(0, i // 2, i % 2) for i in range(2 * num_samples)]
    batch.labels = torch.tensor([key.index for key in batch.keys])
    batch.clips = batch.labels.view(-1, 1, 1, 1, 1).expand(batch.clips.shape).to(torch.uint8) * 80
    out = augment(batch, mixup_alpha=0.8)
    plain = normalised(batch.clips)
    for i in range(2 * num_samples):
        partner = (batch.keys[i].index - 1) % num_samples
        weight = float(out.soft_labels[i, partner])
        assert float(out.soft_labels[i, batch.keys[i].index]) == pytest.approx(1 - weight)
        assert torch.allclose(out.clips[i], plain[i].lerp(plain[i - 2], weight), atol=1e-5)


def test_scoring_clips_are_mixed_like_the_clips():
    batch = make_batch(9)
    out = augment(batch, erase_prob=1.0, mixup_alpha=0.8, cutmix_alpha=1.0)
    clean = augment(batch, mixup_alpha=0.8, cutmix_alpha=1.0)
    assert torch.equal(out.scoring_clips, clean.clips)
    assert torch.equal(out.soft_labels, clean.soft_labels)
    assert not torch.equal(out.clips, clean.clips)


def test_mixes_are_applied_to_the_unmixed_partner():
    clips = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, 3, 4, 4)
    mixed = mix_clips(clips, [Mix(0.5), Mix(4 / 16, Box(1, 3, 1, 3)), Mix()], 1)
    assert (mixed[0] == 1).all()
    assert mixed[1, 0, 0].tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    assert (mixed[2] == 2).all()


def test_an_empty_batch_passes_through():
    batch = make_batch(1)
    batch.clips.zero_()
    batch.num_clips = 0
    out = augment(batch, **EVERYTHING)
    assert out.clips.shape == batch.clips.shape
    assert out.num_clips == 0
    assert out.soft_labels.shape == (1, NUM_CLASSES)
    assert out.clips.isfinite().all()


def test_mixing_needs_classes_and_labels():
    with pytest.raises(ConfigError, match="mix labels"):
        BatchAugment(AugmentConfig(mixup_alpha=0.8), None, 0, training=True)
    BatchAugment(AugmentConfig(mixup_alpha=0.8), None, 0, training=False)
    batch = make_batch(2)
    batch.labels = None
    with pytest.raises(DataError, match="need a label for every clip"):
        augment(batch, mixup_alpha=0.8)


@pytest.mark.parametrize("settings", [{"randaugment_magnitude": 11}, {"color_jitter": 1.5}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is"):
        BatchAugment(AugmentConfig(**settings), None, 0, training=True)


@pytest.mark.gpu
def test_the_device_does_not_change_the_result():
    batch = make_batch()
    augmenter = BatchAugment(AugmentConfig(**EVERYTHING), NUM_CLASSES, 0, training=True)
    here, there = augmenter(batch, "cpu"), augmenter(batch, "cuda")
    assert there.clips.is_cuda
    assert torch.allclose(here.clips, there.clips.cpu(), atol=2e-2)
    assert (here.clips - there.clips.cpu()).abs().mean() < 1e-3
    assert torch.equal(here.soft_labels, there.soft_labels.cpu())


# ----------------------------------------------------------------------------------------------------- kept patches


@pytest.mark.parametrize("training", [True, False])
def test_patches_get_the_values_of_the_clips_they_are_of(training):
    """Mirrored before they were cut out, then normalised and erased: the same bits as the whole clips' patches."""
    config = AugmentConfig(hflip_prob=0.5, erase_prob=0.6)
    batch = make_batch(12)
    keep = torch.rand(12, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[:, 0] = True
    whole = BatchAugment(config, NUM_CLASSES, 3, training)(batch, "cpu")
    expected = pack_clips(whole.clips, TokenSelection(keep), tubelet_size=1, patch_size=16)
    clips = batch.clips.clone()
    if training:
        mirror(clips, batch.keys, config.hflip_prob, seed=3)
    cut = pack_clips(clips, TokenSelection(keep), tubelet_size=1, patch_size=16)
    before = cut.values.clone()
    out = BatchAugment(config, NUM_CLASSES, 3, training, patch_size=16)(
        replace(batch, clips=cut), "cpu"
    )
    assert torch.equal(out.clips.values, expected.values)
    assert (expected.values == 0).any() == training  # no colour is exactly the mean
    assert torch.equal(cut.values, before)
    assert torch.equal(out.clips.coordinates, expected.coordinates)
    assert torch.equal(out.labels, batch.labels)


@pytest.mark.parametrize(
    "name", ["randaugment_num_ops", "color_jitter", "mixup_alpha", "cutmix_alpha"]
)
def test_what_patches_do_not_allow_is_refused_in_training(name):
    config = AugmentConfig(**{name: 1})
    with pytest.raises(ConfigError, match=rf"augment\.{name} is 1, .*Set augment\.{name} to 0, or"):
        BatchAugment(config, NUM_CLASSES, 0, training=True, patch_size=16)
    BatchAugment(config, NUM_CLASSES, 0, training=False, patch_size=16)
    BatchAugment(config, NUM_CLASSES, 0, training=True)
