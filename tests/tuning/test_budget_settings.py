"""A run under another setting: exact budgets by every selector, a default grid that fits, positions that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from onereel.build import build_model
from onereel.config import RunConfig, TokensConfig, from_dict
from onereel.errors import ConfigError
from onereel.evaluation.budget_table import Setting
from onereel.loading import TrainedModel
from onereel.tuning import search
from onereel.tuning.settings import (
    at_setting,
    budget_tokens,
    fit_to,
    for_budgets,
    own_setting,
    settings_to_measure,
)
from onereel.types import TubeletGrid

SELECTORS: list[dict[str, Any]] = [
    {"kind": "all"},
    {"kind": "random", "keep_ratio": 0.3},
    {"kind": "run-length"},
    {"kind": "run-length", "reference": "anchor", "length_embedding": True},
    {"kind": "run-length", "budget": "quantile", "keep_ratio": 0.5},
    {"kind": "redundancy", "budget": "batch", "cap_cuts": True},
    {"kind": "redundancy", "budget": "group", "groups": 2},
    {"kind": "group-dynamic", "groups": 2},
    {"kind": "group-dynamic", "budget": "clip", "min_per_tubelet": 1},
]


def trained(tokens: dict[str, Any], **model: Any) -> TrainedModel:
    """Clips of 8 x 48 x 48 px: 4 x 3 x 3 tokens."""
    values = {
        "data": {"num_frames": 8, "size": 48},
        "tokens": tokens,
        "model": {"name": "vit_micro_patch16_48", **model},
    }
    config = from_dict(RunConfig, values)
    return TrainedModel(build_model(config, 3).eval(), config, ("a", "b", "c"))


@pytest.mark.parametrize("tokens", SELECTORS, ids=lambda t: "-".join(map(str, t.values())))
@pytest.mark.parametrize("setting", [Setting(8, 48, 17), Setting(4, 80, 9), Setting(8, 32, 16)])
def test_every_selector_keeps_exactly_the_budget(tokens: dict[str, Any], setting: Setting) -> None:
    run = trained(tokens)
    config = at_setting(run.config, setting)
    read, given = fit_to(run.model, config)
    f, s, k = setting
    assert read == given == TubeletGrid(f // 2, s // 16, s // 16)
    clips = torch.randn(2, f, 3, s, s)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    with torch.inference_mode():
        assert run.model(clips, generators=generators).lengths == (k, k)
    assert budget_tokens(config.tokens, "", k) == config.tokens
    if tokens["kind"] != "all":
        assert config.tokens.kind == tokens["kind"]


def test_keeping_all_tokens_is_the_dense_model_bit_for_bit() -> None:
    run = trained({"kind": "all"})
    clips = torch.randn(2, 8, 3, 48, 48)
    with torch.inference_mode():
        dense = run.model(clips).logits
        fit_to(run.model, at_setting(run.config, Setting(8, 48, 36)))
        assert torch.equal(run.model(clips).logits, dense)


def test_a_cache_of_training_binds_no_one_to_all_tokens() -> None:
    """Mixed features need all tokens of both clips; the model that came of them does not."""
    values = {
        "data": {"num_frames": 8, "size": 48, "cache_views": 2, "cache_dtype": "float32"},
        "augment": {"mixup_alpha": 0.5},
        "model": {"name": "vit_micro_patch16_48", "temporal_depth": 1, "frozen": "spatial"},
    }
    config = from_dict(RunConfig, values)
    model = build_model(config, 3).eval()
    fit_to(model, at_setting(for_budgets(config), Setting(8, 48, 17)))
    assert model(torch.randn(1, 8, 3, 48, 48)).lengths == (17,)
    searched = search._config(config, "random", None, 3)
    assert (searched.tokens.kind, searched.eval.num_crops) == ("random", 3)
    assert for_budgets(run := trained({"kind": "all"}).config) == run


def test_another_selector_takes_over_what_the_weights_need() -> None:
    own = TokensConfig(kind="run-length", length_embedding=True, follow_camera=True)
    assert budget_tokens(own, "redundancy", 5) == TokensConfig(
        kind="redundancy", budget="clip", token_budget=5, length_embedding=True
    )
    assert budget_tokens(own, "run-length", 5).follow_camera


def test_the_default_grid_is_around_the_runs_own() -> None:
    found = settings_to_measure(trained({"kind": "all"}))
    assert {(one.num_frames, one.size) for one in found} == {
        *((f, s) for f in (4, 8, 16) for s in (32, 48))
    }
    assert [one for one in found if one[:2] == (8, 48)] == [(8, 48, k) for k in (36, 18, 9, 4)]
    # 16 of the 18 tokens that half the frames have would be nearly all of them.
    assert [one.token_budget for one in found if one[:2] == (4, 48)] == [18, 9, 4]
    counted = settings_to_measure(trained({"kind": "redundancy", "token_budget": 12}))
    assert (8, 48, 12) in counted
    embedded = trained({"kind": "run-length", "length_embedding": True})
    assert max(one.num_frames for one in settings_to_measure(embedded)) == 8


def test_a_flexible_run_is_measured_on_what_it_was_trained_on() -> None:
    values = {
        "data": {
            "num_frames": 8,
            "size": 48,
            "num_frames_choices": [2, 4, 6, 8, 10, 12],
            "size_choices": [32, 48],
        },
        "tokens": {"kind": "group-dynamic"},
        "objective": {"budgets": [27, 18, 5]},
        "model": {"name": "vit_micro_patch16_48"},
    }
    config = from_dict(RunConfig, values)
    run = TrainedModel(build_model(config, 3).eval(), config, ("a", "b", "c"))
    found = settings_to_measure(run)
    assert sorted({one.num_frames for one in found}) == [2, 6, 8, 12]
    assert {one.size for one in found} == {32, 48}
    assert [one.token_budget for one in found if one[:2] == (8, 48)] == [36, 27, 18, 9, 5, 4]
    for setting in found:  # each budget by its own head
        fit_to(run.model, at_setting(config, setting))


def test_what_is_asked_for_is_measured_and_no_clip_keeps_more_than_it_has() -> None:
    found = settings_to_measure(
        trained({"kind": "all"}), frames=(4, 2), sizes=(48,), budgets=(17, 10)
    )
    assert found == [(2, 48, 9), (4, 48, 17), (4, 48, 10)]
    with pytest.raises(ConfigError, match=r"budgets are \[0\]; allowed: 1 or more"):
        settings_to_measure(trained({"kind": "all"}), budgets=(0,))
    assert own_setting(trained({"kind": "run-length"})) == (8, 48, 36)
    assert own_setting(trained({"kind": "redundancy", "token_budget": 12})) == (8, 48, 12)


@pytest.mark.parametrize(
    ("setting", "tokens", "says"),
    [
        (Setting(7, 48, 9), {"kind": "all"}, "num_frames 7 is not a multiple"),
        (Setting(8, 50, 9), {"kind": "all"}, "height 50 is not a multiple"),
        (Setting(8, 48, 37), {"kind": "all"}, "token_budget is 37"),
        (Setting(8, 48, 9), {"kind": "tube"}, "can't be tubes"),
        (Setting(16, 48, 9), {"kind": "run-length", "length_embedding": True}, "up to 8 frames"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    setting: Setting, tokens: dict[str, Any], says: str
) -> None:
    run = trained(tokens)
    with pytest.raises(ConfigError, match=says):
        fit_to(run.model, at_setting(run.config, setting))


def test_frame_selection_goes_with_the_setting() -> None:
    run = trained({"kind": "redundancy", "frame_selection": 1.5})
    read, given = fit_to(run.model, at_setting(run.config, Setting(4, 48, 7)))
    assert (read.gt, given.gt) == (3, 2)
    with torch.inference_mode():
        assert run.model(torch.randn(1, 6, 3, 48, 48)).lengths == (7,)


def test_the_budget_of_the_configuration_is_replaced_whole() -> None:
    config = replace(RunConfig(), tokens=TokensConfig(kind="redundancy", keep_ratio=0.3))
    assert at_setting(config, Setting(4, 32, 5)).tokens == TokensConfig(
        kind="redundancy", budget="clip", token_budget=5
    )
