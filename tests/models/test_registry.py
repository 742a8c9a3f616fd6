"""Model names."""

from __future__ import annotations

import pytest
import torch

from onereel.errors import ConfigError
from onereel.models.registry import SIZES, create_encoder, list_models


def test_every_listed_name_can_be_made() -> None:
    for name in list_models():
        with torch.device("meta"):
            model = create_encoder(name, num_frames=4)
        family, known, *_ = name.split("_")
        size = SIZES[known]
        assert (model.embed_dim, model.depth) == (size.embed_dim, size.depth)
        resolution = model.grid.gh * model.patch_size
        assert name == f"{family}_{known}_patch{model.patch_size}_{resolution}"


@pytest.mark.parametrize(
    ("size", "head_dim"),
    [
        ("micro", 32),
        ("mini", 64),
        ("tiny", 64),
        ("small", 64),
        ("base", 64),
        ("large", 64),
        ("huge", 80),
    ],
)
def test_head_dimensions(size: str, head_dim: int) -> None:
    assert SIZES[size].embed_dim == head_dim * SIZES[size].num_heads


def test_the_name_gives_the_grid_unless_a_size_is_given() -> None:
    assert create_encoder("vit_micro_patch16_96", num_frames=8).grid == (4, 6, 6)
    assert create_encoder("vit_micro_patch16_96", num_frames=8, size=64).grid == (4, 4, 4)
    assert create_encoder("vit_micro_patch8_64", num_frames=8, tubelet_size=1).grid == (8, 8, 8)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_bsae_patch16_224", "vit_base_patch16_224"),
        ("vit_larg_patch16_160", "vit_large_patch16_160"),
        ("vit-tiny-patch16-112", "vit_tiny_patch16_112"),
        ("fluxvit_smal_patch14_224", "fluxvit_small_patch14_224"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown model '{name}'. Did you mean '{nearest}'"):
        create_encoder(name, num_frames=16)


def test_clips_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="height 100 is not a multiple of patch_size 16"):
        create_encoder("vit_micro_patch16_224", num_frames=16, size=100)
