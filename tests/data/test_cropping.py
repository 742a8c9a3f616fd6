import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onereel.data.cropping import (
    center_box,
    multi_scale_box,
    random_resized_box,
    three_crop_box,
    union_box,
)
from onereel.errors import DataError
from onereel.seeding import numpy_generator

SIDES = st.integers(2, 400)


def assert_inside(box, height, width):
    # Evenness is CropBox's own rule.
    assert box.top + box.height <= height
    assert box.left + box.width <= width
    assert not box.hflip


@given(SIDES, SIDES, st.integers(0, 10_000), st.sampled_from([(0.08, 1.0), (0.5, 1.0), (1.0, 1.0)]))
def test_random_boxes_lie_inside_the_frame(height, width, seed, scale):
    assert_inside(random_resized_box(height, width, numpy_generator(seed), scale), height, width)
    assert_inside(multi_scale_box(height, width, numpy_generator(seed)), height, width)


@given(SIDES, SIDES)
def test_fixed_boxes_are_the_largest_squares(height, width):
    side = min(height, width) // 2 * 2
    boxes = [three_crop_box(height, width, which) for which in range(3)]
    for box in boxes:
        assert_inside(box, height, width)
        assert (box.height, box.width) == (side, side)
    assert boxes[1] == center_box(height, width)
    assert (boxes[0].top, boxes[0].left) == (0, 0)
    assert height - (boxes[2].top + side) <= 1 or height < width
    assert width - (boxes[2].left + side) <= 1 or width < height
    assert abs(2 * boxes[1].top + side - height) <= 4
    assert abs(2 * boxes[1].left + side - width) <= 4


def published_random_resized_crop(height, width, scale, ratio, generator):
    """torchvision's RandomResizedCrop.get_params written down again: (top, left, height, width)."""
    for _ in range(10):
        target = height * width * generator.uniform(scale[0], scale[1])
        aspect = np.exp(generator.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(np.sqrt(target * aspect)), round(np.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return generator.integers(0, height - h + 1), generator.integers(0, width - w + 1), h, w
    if width / height < ratio[0]:
        w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]:
        w, h = round(height * ratio[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("frame", [(288, 512), (241, 320), (400, 120)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
def test_random_resized_crop_has_torchvisions_distribution(frame, scale):
    ratio, generator = (3 / 4, 4 / 3), np.random.default_rng(1)
    boxes = [random_resized_box(*frame, numpy_generator(i), scale, ratio) for i in range(4000)]
    ours = np.array([(b.top, b.left, b.height, b.width) for b in boxes], float)
    theirs = np.array(
        [published_random_resized_crop(*frame, scale, ratio, generator) for _ in range(4000)], float
    )
    for of in (
        lambda b: b[:, 2] * b[:, 3] / (frame[0] * frame[1]),
        lambda b: np.log(b[:, 3] / b[:, 2]),
        lambda b: (b[:, 0] + b[:, 2] / 2) / frame[0],
        lambda b: (b[:, 1] + b[:, 3] / 2) / frame[1],
    ):
        a, b = of(ours), of(theirs)
        assert abs(a.mean() - b.mean()) < 4 * (a.std() + b.std()) / 4000**0.5 + 0.004
        assert np.allclose(
            np.quantile(a, [0.1, 0.5, 0.9]), np.quantile(b, [0.1, 0.5, 0.9]), atol=0.04
        )


def test_fallback_is_the_largest_central_box_of_allowed_shape():
    box = random_resized_box(1000, 10, numpy_generator(0), (0.9, 1.0), (0.75, 4 / 3))
    assert (box.height, box.width, box.left) == (14, 10, 0)
    assert abs(box.top - 493) <= 2


def test_multi_scale_sides_and_places():
    boxes = [multi_scale_box(200, 300, numpy_generator(i)) for i in range(1500)]
    sides = {box.height for box in boxes} | {box.width for box in boxes}
    assert sides == {200, 176, 150, 132}
    order = sorted(sides)
    assert all(abs(order.index(b.height) - order.index(b.width)) <= 1 for b in boxes)
    small = {(b.top, b.left) for b in boxes if (b.height, b.width) == (order[0], order[0])}
    assert len(small) == 13


def test_union_holds_all_boxes():
    boxes = [random_resized_box(100, 100, numpy_generator(i), (0.1, 0.3)) for i in range(3)]
    union = union_box(boxes)
    for box in boxes:
        assert union.top <= box.top
        assert union.left <= box.left
        assert box.top + box.height <= union.top + union.height
        assert box.left + box.width <= union.left + union.width


def test_frames_below_two_pixels_are_refused():
    for draw in (random_resized_box, multi_scale_box):
        with pytest.raises(DataError, match="100x1 pixels is too small"):
            draw(1, 100, numpy_generator(0))
    with pytest.raises(DataError, match="too small"):
        center_box(1, 100)
