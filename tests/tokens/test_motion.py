"""Camera motion: what it is estimated to be, and what run-length tokens make of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.tokens.budgets import ClipCount
from onereel.tokens.motion import estimate_shift, shift_frames
from onereel.tokens.run_length import RunLength
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import PixelScore
from onereel.tokens.tubelets import clip_grid

STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def picture(size: int, seed: int = 0) -> torch.Tensor:
    """Texture at several scales, like a photograph's: normalised `(3, size, size)`."""
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(
            torch.randn(1, 3, size // scale, size // scale, generator=generator) * scale**0.7 / 4,
            size=(size, size),
            mode="bicubic",
        )[0]
        for scale in (2, 4, 8, 16, 32)
    ]
    total = torch.stack(layers).sum(0)
    return total / total.std()


def pan(down: float, right: float, frames: int = 16, size: int = 112) -> torch.Tensor:
    """A window that moves over a picture by so many pixels per frame, the picture thus the other way."""
    wide = picture(size + 128)[None]
    rows = torch.arange(size) + 64.5
    clip = []
    for t in range(frames):
        y, x = rows - down * (t - frames / 2), rows - right * (t - frames / 2)
        where = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        clip.append(
            F.grid_sample(wide, where / (size + 128) * 2 - 1, mode="bicubic", align_corners=False)[
                0
            ]
        )
    return torch.stack(clip)[None]


def kept_share(clips: torch.Tensor, **settings: object) -> float:
    selector = RunLength(**settings)  # type: ignore[arg-type]
    grid = clip_grid(clips, 2, 16)
    return float(selector.select(clips, None, grid, None).keep_mask.float().mean())


@pytest.mark.parametrize(
    "shift", [(0.0, 0.0), (0.25, 0.0), (-0.75, 0.4), (3.0, -2.0), (0.0, 7.5), (-12.0, 6.0)]
)
def test_a_translation_is_found_to_a_part_of_a_pixel(shift: tuple[float, float]) -> None:
    clips = pan(*shift, frames=2, size=224)
    found = estimate_shift(clips[:, :1], clips[:, 1:])
    assert found.shape == (1, 1, 2)
    torch.testing.assert_close(found[0, 0], torch.tensor(shift), atol=0.2, rtol=0)


def test_what_moves_by_itself_does_not_move_the_camera() -> None:
    clips = pan(0.0, 3.0, frames=2, size=224)
    clips[:, 1, :, 60:130, 60:130] = picture(70, seed=1)
    found = estimate_shift(clips[:, :1], clips[:, 1:])
    torch.testing.assert_close(found[0, 0], torch.tensor([0.0, 3.0]), atol=0.3, rtol=0)


def test_pictures_without_content_do_not_move() -> None:
    flat = torch.zeros(2, 3, 3, 64, 64)
    assert torch.equal(estimate_shift(flat, flat), torch.zeros(2, 3, 2))
    tiny = torch.randn(2, 3, 3, 8, 8)
    assert torch.equal(estimate_shift(tiny, tiny), torch.zeros(2, 3, 2))
    assert (
        estimate_shift(torch.randn(1, 1, 3, 32, 48), torch.zeros(1, 1, 3, 32, 48)).isfinite().all()
    )


def test_whole_pixels_shift_exactly_and_the_edge_repeats() -> None:
    frames = torch.randn(2, 3, 16, 20)
    moved = shift_frames(frames, torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
    torch.testing.assert_close(moved[0, :, 2:], frames[0, :, :-2])
    torch.testing.assert_close(moved[0, :, :2], frames[0, :, :1].expand(-1, 2, -1))
    torch.testing.assert_close(moved[1, :, :, :-3], frames[1, :, :, 3:])
    torch.testing.assert_close(shift_frames(frames, torch.zeros(2, 2)), frames)


@pytest.mark.parametrize("speed", [0.25, 0.5, 1.0])
def test_a_pan_of_a_pixel_a_frame_does_not_quadruple_the_tokens(speed: float) -> None:
    clips = pan(0.0, speed)
    plain, following = kept_share(clips), kept_share(clips, follow_camera=True)
    assert plain > (4 if speed == 1 else 1.5) * 0.125
    assert following < 2.5 * 0.125
    assert kept_share(clips, follow_camera=True, noise_cell=2) < 2.5 * 0.125


def test_a_camera_at_rest_changes_nothing() -> None:
    still = pan(0.0, 0.0)
    assert kept_share(still, follow_camera=True) == 0.125
    moving = still.clone()
    for t in range(16):
        moving[:, t, :, 32:48, 4 * t : 4 * t + 16] = 2.0
    selectors = (RunLength(), RunLength(follow_camera=True))
    grid = clip_grid(moving, 2, 16)
    masks = [s.select(moving, None, grid, None).keep_mask for s in selectors]
    assert torch.equal(*masks)


def test_a_token_is_kept_again_once_its_place_is_half_a_patch_away() -> None:
    """2 pixels a frame are 4 a tubelet: past 8 at the third, and again three later; the edge besides."""
    clips = pan(2.0, 0.0, size=224)
    grid = clip_grid(clips, 2, 16)
    keep = RunLength(follow_camera=True).select(clips, None, grid, None).keep_mask
    inner = keep.view(8, 14, 14)[:, 3:-3, 3:-3].float().mean((1, 2))
    assert ((inner > 0.8) | (inner < 0.2)).all()
    refreshed = (inner > 0.8).nonzero().flatten().diff()
    assert len(refreshed) >= 2
    assert refreshed.min() >= 2
    assert refreshed.max() <= 3


def test_what_enters_the_picture_is_new() -> None:
    clips = pan(0.0, -6.0, frames=4, size=224)  # to the left: the right edge is new
    grid = clip_grid(clips, 2, 16)
    keep = RunLength(follow_camera=True).select(clips, None, grid, None).keep_mask.view(2, 14, 14)
    assert keep[1, :, -1].float().mean() > 0.9
    scores = PixelScore(follow_camera=True)(clips, None, grid, None).view(2, 14, 14)[1]
    assert scores[:, -1].mean() > 3 * scores[:, 2:-2].mean()


@pytest.mark.parametrize("sigma", [3, 6, 8])
def test_sensor_noise_on_a_still_clip(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 16, 3, 112, 112, generator=generator) * sigma / 255 / STD
    clips = pan(0.0, 0.0) + noise
    assert kept_share(clips, noise_cell=2) == 0.125
    assert kept_share(clips) == (0.125 if sigma < 5 else pytest.approx(1.0, abs=0.1))


def test_cells_are_averaged_before_the_difference_is_taken() -> None:
    clips = torch.randn(2, 8, 3, 32, 48)
    grid = clip_grid(clips, 2, 16)
    small = F.avg_pool2d(clips.flatten(0, 1), 4).unflatten(0, (2, 8))
    of_small = PixelScore(2, 4)(small, None, grid, None)
    torch.testing.assert_close(PixelScore(noise_cell=4)(clips, None, grid, None), of_small)
    for reference in ("adjacent", "anchor"):
        guarded = RunLength(0.3, reference, noise_cell=4)  # type: ignore[arg-type]
        plain = RunLength(0.3, reference, patch_size=4)  # type: ignore[arg-type]
        kept = plain.select(small, None, grid, None).keep_mask
        assert torch.equal(guarded.select(clips, None, grid, None).keep_mask, kept)


def test_guards_read_bytes_too() -> None:
    floats = pan(0.0, 1.0)
    levels = (floats * STD * 255 + 128).round().clamp(0, 255).to(torch.uint8)
    normalised = (levels.float() - 128) / 255 / STD
    grid = clip_grid(levels, 2, 16)
    guarded = ScoredSelector(PixelScore(noise_cell=2, follow_camera=True), ClipCount(0.3))
    for selector in (guarded, RunLength(noise_cell=2, follow_camera=True)):
        masks = [selector.select(c, None, grid, None).keep_mask for c in (levels, normalised)]
        assert (masks[0] ^ masks[1]).float().mean() < 0.01


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_any_number_of_frames(frames: int) -> None:
    clips = torch.randn(2, frames, 3, 32, 32)
    grid = clip_grid(clips, 1, 16)
    for selector in (
        RunLength(follow_camera=True, tubelet_size=1),
        ScoredSelector(
            PixelScore(1, follow_camera=True, noise_cell=2, cap_cuts=True), ClipCount(0.5)
        ),
    ):
        assert selector.select(clips, None, grid, None).keep_mask.any(1).all()


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"noise_cell is 3; allowed with patches of 16: 1, 2, 4"):
        RunLength(noise_cell=3)
    with pytest.raises(ConfigError, match="noise_cell"):
        PixelScore(noise_cell=0)
    with pytest.raises(ConfigError, match="set the reference to adjacent"):
        RunLength(reference="anchor", follow_camera=True)
