"""The configuration is strict, and survives a round trip through JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from onereel.config import (
    AugmentConfig,
    DataConfig,
    ObjectiveConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
    from_dict,
    from_json,
    to_dict,
    to_json,
)
from onereel.errors import ConfigError
from onereel.recipes import RECIPES, describe, load_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_says_what_it_is(name: str) -> None:
    config = load_recipe(name)
    assert config.recipe == name
    assert from_json(to_json(config)) == config
    assert describe(name)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'optim.learning_rat'.*|'optim.wramup_epochs'.*'warmup_epochs'"
    ):
        from_dict(RunConfig, {"optim": {"wramup_epochs": 3}})


def test_every_field_is_documented_or_obvious() -> None:
    """Each section's fields carry a docstring in the source: they are the help text of the command line."""
    import ast
    from pathlib import Path

    import onereel.config

    tree = ast.parse(Path(onereel.config.__file__).read_text())
    obvious = {
        "seed",
        "kind",
        "label_smoothing",
        "warmup_epochs",
        "epochs",
        "batch_size_per_device",
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name != "RunConfig":
            for field, after in zip(node.body, [*node.body[1:], None]):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    documented = isinstance(after, ast.Expr) and isinstance(
                        after.value, ast.Constant
                    )
                    assert documented or field.target.id in obvious, (
                        f"{node.name}.{field.target.id}"
                    )


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (DataConfig, {"num_frames": 0}),
        (DataConfig, {"size": 225}),
        (DataConfig, {"crop_scale": (0.0, 1.0)}),
        (DataConfig, {"max_bad_ratio": 1.5}),
        (AugmentConfig, {"hflip_prob": 2.0}),
        (TokensConfig, {"keep_ratio": 1.1}),
        (TokensConfig, {"token_budget": -1}),
        (TrainConfig, {"epochs": 0}),
        (DataConfig, {"num_frames_choices": (8, 0)}),
        (DataConfig, {"size_choices": (224, 225)}),
        (DataConfig, {"token_window": (4096, 2048)}),
        (DataConfig, {"token_window": (2048, 4096)}),
        (ObjectiveConfig, {"budgets": (1024, 2048)}),
        (ObjectiveConfig, {"budgets": (1024, 1024)}),
        (ObjectiveConfig, {"budgets": (1024, 0)}),
        (ObjectiveConfig, {"budgets_per_step": 1}),
        (ObjectiveConfig, {"alignment": -0.1}),
    ],
)
def test_values_out_of_range_name_the_field(section: type, values: dict[str, object]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=name):
        section(**values)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"objective": {"budgets": (8, 4)}, "tokens": {"where": "loader"}},
            "tokens.where is loader.*set tokens.where to device",
        ),
        (
            {"objective": {"budgets": (8, 4)}, "tokens": {"frame_selection": 1.5}},
            "tokens.frame_selection is 1.5.*set tokens.frame_selection to 0",
        ),
        (
            {"data": {"size_choices": (32, 48)}, "tokens": {"frame_selection": 1.5}},
            "frame_selection is 1.5.*use one of the two",
        ),
        (
            {"data": {"num_frames_choices": (8, 24)}, "tokens": {"length_embedding": True}},
            "data.num_frames = 16.*go up to 24; raise data.num_frames",
        ),
        (
            {"objective": {"kind": "contrastive", "budgets": (8, 4), "budgets_per_step": 2}},
            "budgets_per_step is 2; allowed: 0 to 1",
        ),
    ],
)
def test_contradictions_of_flux_say_what_to_do(sections: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(RunConfig, sections)


def test_config_is_frozen() -> None:
    config = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    assert to_dict(config)["data"]["crop_scale"] == [0.5, 1.0]


def test_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from onereel.config import RunConfig\n\ndef recipe():\n    return RunConfig(seed=7)\n"
    )
    assert load_recipe(str(path)).seed == 7
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="no function `recipe"):
        load_recipe(str(path))
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(str(tmp_path / "absent.py"))
    with pytest.raises(ConfigError, match="Did you mean 'actions'"):
        load_recipe("actoins")
