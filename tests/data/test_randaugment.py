import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from onereel.data.randaugment import (
    MAX_SHEAR,
    OPERATIONS,
    affine,
    equalize,
    rand_augment,
    rotate,
    shear_x,
    translate_x,
    translate_y,
)
from onereel.seeding import numpy_generator

FILL = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)


def picture(height=24, width=32) -> torch.Tensor:
    """A uint8-valued clip of one frame, smooth with some noise, that does not use the whole range."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    noise = torch.randint(0, 30, (3, height, width), generator=torch.Generator().manual_seed(1))
    frame = torch.stack([20 + 5 * y, 30 + 4 * x, 60 + 2 * (x + y)]) + noise
    return frame.clamp(0, 255)[None].float() / 255


def as_image(clip: torch.Tensor) -> Image.Image:
    return Image.fromarray((clip[0] * 255).round().byte().permute(1, 2, 0).numpy())


def grey_levels(clip: torch.Tensor, image: Image.Image) -> float:
    """Largest difference between a clip of one frame and an image, in grey levels."""
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return float((clip[0] * 255 - expected).abs().max())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_operation_keeps_shape_range_and_still_frames_still(name, sign):
    clip = picture().repeat(4, 1, 1, 1)
    before = clip.clone()
    out = OPERATIONS[name](clip, 0.7, sign, FILL)
    assert out.shape == clip.shape
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    assert torch.equal(clip, before)
    for frame in out[1:]:
        assert torch.equal(frame, out[0])


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"auto_contrast", "equalize"}))
def test_operations_of_strength_zero_change_nothing(name):
    clip = picture()
    assert torch.allclose(OPERATIONS[name](clip, 0.0, 1, FILL), clip, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [
        ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(1.63), 1),
        ("color", lambda image: ImageEnhance.Color(image).enhance(1.63), 2),
        ("contrast", lambda image: ImageEnhance.Contrast(image).enhance(1.63), 2),
        ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(1.63), 2),
        ("posterize", lambda image: ImageOps.posterize(image, 5), 0.01),
        ("solarize", lambda image: ImageOps.solarize(image, 77), 0.01),
        ("auto_contrast", ImageOps.autocontrast, 1),
        ("equalize", ImageOps.equalize, 0.01),
    ],
)
def test_photometric_operations_agree_with_pil(name, expected, tolerance):
    clip = picture()
    assert grey_levels(OPERATIONS[name](clip, 0.7, 1, FILL), expected(as_image(clip))) <= tolerance


def test_statistics_are_the_clips_not_the_frames():
    clip = torch.cat([picture() * 0.3, picture()])
    for name in ("contrast", "auto_contrast", "equalize"):
        out = OPERATIONS[name](clip, 0.7, 1, FILL)
        alone = OPERATIONS[name](clip[:1], 0.7, 1, FILL)
        assert not torch.allclose(out[:1], alone, atol=0.05)


def test_equalize_of_a_flat_clip_changes_nothing():
    clip = torch.full((2, 3, 8, 8), 7 / 255)
    assert torch.allclose(equalize(clip, 1.0, 1, FILL), clip)


def test_translation_moves_by_whole_pixels_and_fills():
    clip = picture(height=331 // 5, width=331)
    moved = translate_x(clip, 0.4, 1, FILL)
    assert torch.allclose(moved[..., :-60], clip[..., 60:], atol=1e-3)
    assert torch.allclose(moved[..., -60:], FILL.expand_as(moved[..., -60:]), atol=1e-5)
    there_and_back = translate_y(translate_y(clip, 0.1, 1, FILL), 0.1, -1, FILL)
    assert torch.allclose(there_and_back[:, :, 10:-10], clip[:, :, 10:-10], atol=0.02)


def test_geometry_of_rotation_and_shear():
    clip = torch.zeros(1, 3, 41, 61)
    clip[..., 20, 50] = 1.0
    black = torch.zeros(3, 1, 1)
    turned = affine(clip, ((0, -1, 0), (1, 0, 0)), black)
    assert (
        torch.equal(turned[0, 0].nonzero(), torch.tensor([[0, 30]])) or turned[0, 0, 0, 30] > 0.99
    )
    angle = rotate(clip, 1.0, 1, black)[0, 0]
    y, x = divmod(int(angle.argmax()), 61)
    assert math.degrees(math.atan2(abs(y - 20), x - 30)) == pytest.approx(30, abs=3)
    line = torch.zeros(1, 3, 41, 61)
    line[..., 30] = 1.0
    columns = shear_x(line, 1.0, 1, black)[0, 0].argmax(-1)
    assert columns[0] - columns[40] == pytest.approx(40 * MAX_SHEAR, abs=1)


def test_rand_augment_is_a_function_of_its_generator():
    clip = picture().repeat(3, 1, 1, 1)
    outs = [rand_augment(clip, numpy_generator(i), 2, 9, FILL) for i in range(12)]
    for i, out in enumerate(outs):
        assert torch.equal(out, rand_augment(clip, numpy_generator(i), 2, 9, FILL))
        assert torch.equal(out[0], out[2])
    assert sum(not torch.allclose(out, clip) for out in outs) >= 10
