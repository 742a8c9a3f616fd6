"""What a frozen teacher sees of a clip, what it says of it, and how that is put on another grid."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel import create_model
from onereel.config import AugmentConfig
from onereel.models.teachers import OwnTeacher, View, resize_features
from onereel.tokens.packing import pack
from onereel.tokens.tubelets import patchify
from onereel.types import TokenSelection, TubeletGrid

IMAGENET = (AugmentConfig.mean, AugmentConfig.std)
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def teacher(**options: Any) -> OwnTeacher:
    options = {"pool": "cls", "num_frames": 4, "size": 32} | options
    model = create_model("vit_micro_patch8_32", 5, **options)
    return OwnTeacher(model.encoder, model.head, View())


def clips(batch: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, frames, 3, size, size)


def test_a_view_that_changes_nothing_hands_on_the_same_tensor() -> None:
    given_clips = clips()
    for view in (View(), View.between(IMAGENET, IMAGENET, 4, 32)):
        assert view(given_clips) is given_clips


def test_pixels_arrive_as_the_teacher_normalises_them() -> None:
    pixels = torch.rand(2, 4, 3, 8, 8)

    def normalised(stats: Any) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in stats)
        return (pixels - mean) / std

    seen = View.between(IMAGENET, HALVES, 0, 0)(normalised(IMAGENET))
    torch.testing.assert_close(seen, normalised(HALVES))


@pytest.mark.parametrize(
    ("given_frames", "wanted", "expected"),
    [
        (8, 4, [1, 3, 5, 7]),
        (16, 4, [2, 6, 10, 14]),
        (4, 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        (5, 1, [2]),
        (3, 4, [0, 1, 1, 2]),
    ],
)
def test_frames_are_those_nearest_to_an_even_spread(
    given_frames: int, wanted: int, expected: list[int]
) -> None:
    numbered = torch.arange(float(given_frames))[None, :, None, None, None].expand(1, -1, 3, 2, 2)
    assert View(num_frames=wanted)(numbered)[0, :, 0, 0, 0].tolist() == expected


def test_pictures_come_at_the_teachers_size() -> None:
    assert View(size=24)(clips()).shape == (2, 4, 3, 24, 24)
    flat = torch.full((1, 2, 3, 32, 32), 0.7)
    torch.testing.assert_close(View(size=24)(flat), flat[..., :24, :24])


grids = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)).map(
    lambda sizes: TubeletGrid(*sizes)
)


@given(old=grids, new=grids)
@settings(max_examples=25, deadline=None)
def test_features_between_grids_are_trilinear_at_the_token_centres(
    old: TubeletGrid, new: TubeletGrid
) -> None:
    generator = torch.Generator().manual_seed(sum(old) * 31 + sum(new))
    features = torch.randn(2, old.num_tokens, 3, generator=generator)
    volume = features.double().unflatten(1, tuple(old))
    expected = torch.zeros(2, *new, 3, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in new)).tolist():
        corners = []
        for number, (n_old, n_new) in zip(place, zip(old, new)):
            at = min(max((number + 0.5) * n_old / n_new - 0.5, 0.0), n_old - 1.0)
            low = math.floor(at)
            corners.append([(low, 1 - at + low), (min(low + 1, n_old - 1), at - low)])
        for t, wt in corners[0]:
            for h, wh in corners[1]:
                for w, ww in corners[2]:
                    expected[:, *place] += wt * wh * ww * volume[:, t, h, w]
    found = resize_features(features, old, new)
    torch.testing.assert_close(found.double(), expected.flatten(1, 3), atol=1e-5, rtol=1e-5)


def test_on_the_same_grid_features_are_the_same_tensor() -> None:
    grid = TubeletGrid(2, 3, 4)
    features = torch.randn(2, 24, 5, dtype=torch.bfloat16)
    assert resize_features(features, grid, grid) is features


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_layers_and_final_feature_are_the_models(pool: str) -> None:
    own = teacher(pool=pool)
    shown = clips()
    said = own(shown, (3, 1, 1))
    tokens = patchify(shown, 2, 8)
    keep = torch.ones(2, 32, dtype=torch.bool)
    features, between = own.encoder.forward_layers(
        pack(tokens, TokenSelection(keep), said.grid), None, (1, 3)
    )
    first = int(pool == "cls")
    for found, values in zip(said.layers, (between[1], between[0], between[0]), strict=True):
        assert torch.equal(found, values.unflatten(0, (2, -1))[:, first:])
    assert said.grid == TubeletGrid(2, 4, 4)
    assert torch.equal(said.final, own.head.pooled(features))
    assert said.attention is None


def test_shown_part_of_the_tokens_it_sees_no_others() -> None:
    own, shown = teacher(), clips()
    keep = torch.zeros(2, 32, dtype=torch.bool)
    keep[0, [0, 5, 6, 30]] = keep[1, [1, 2, 3, 31]] = True
    pool = TokenSelection(keep, num_kept=4)
    said = own(shown, (2,), pool, attention=True)
    other = shown.clone()
    other[0, 2:, :, 8:16, :16] += 1  # tokens 20 and 21, which are not in the pool
    assert torch.equal(own(other, (2,), pool).layers[0], said.layers[0])
    assert said.layers[0].shape == (2, 32, 96)
    assert (said.layers[0].abs().sum(-1) > 0).equal(keep)
    assert said.attention is not None
    assert (said.attention > 0).equal(keep)


def test_attention_is_the_class_tokens_share_of_the_last_block() -> None:
    own, shown = teacher(), clips(batch=1)
    said = own(shown, (), attention=True)
    x = own.encoder.forward_layers(
        pack(patchify(shown, 2, 8), TokenSelection(torch.ones(1, 32).bool()), said.grid), None, (2,)
    )[1][0]
    last = own.encoder.blocks[3]
    q, k, _ = last.attn.qkv(last.norm1(x)).view(33, 3, 3, 32).unbind(1)
    expected = torch.zeros(33)
    for head in range(3):
        logits = torch.stack([q[0, head] @ k[token, head] for token in range(33)]) / math.sqrt(32)
        expected += logits.softmax(0) / 3
    assert said.attention is not None
    torch.testing.assert_close(said.attention[0], expected[1:])


def test_it_is_frozen_for_good() -> None:
    own = teacher(drop_path_rate=0.5)
    before = own.fingerprint()
    own.train()
    said = own(clips(), (0,))
    assert not own.training
    assert not own.encoder.training
    assert not said.final.requires_grad
    assert not any(parameter.requires_grad for parameter in own.parameters())
    assert own.fingerprint() == before


def test_the_fingerprint_tells_weights_and_views_apart() -> None:
    first, second = teacher(), teacher()
    second.load_state_dict(first.state_dict())
    assert first.fingerprint() == second.fingerprint()
    with torch.no_grad():
        second.encoder.norm.bias[0] += 1e-3
    assert first.fingerprint() != second.fingerprint()
    other_view = OwnTeacher(first.encoder, first.head, View(size=24))
    assert first.fingerprint() != other_view.fingerprint()
