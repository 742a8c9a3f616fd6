"""Recipes: one Python function per named run, returning its complete `RunConfig`.

A recipe of one's own is a path to a Python file with a function `recipe() -> RunConfig`.
"""

from __future__ import annotations

import re
import runpy
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from onereel.config import RunConfig
from onereel.errors import ConfigError, unknown_name

RECIPES = {
    "demo": "onereel.recipes.demo:demo",
    "actions": "onereel.recipes.actions:actions",
    "actions_rlt": "onereel.recipes.actions:actions_rlt",
    "actions_mae": "onereel.recipes.actions:actions_mae",
    "actions_everest": "onereel.recipes.actions:actions_everest",
    "actions_fe": "onereel.recipes.actions:actions_fe",
    "actions_sfa": "onereel.recipes.actions:actions_sfa",
    "actions_flux": "onereel.recipes.flux:actions_flux",
    "actions_flux_two": "onereel.recipes.flux:actions_flux_two",
    "language_demo": "onereel.recipes.language:language_demo",
    "language_demo_rlt": "onereel.recipes.language:language_demo_rlt",
    "actions_distill": "onereel.recipes.distillation:actions_distill",
    "flux_umt_vits": "onereel.recipes.distillation:flux_umt_vits",
    "flux_umt_vitb": "onereel.recipes.distillation:flux_umt_vitb",
    "avion_ego4d_vitb": "onereel.recipes.avion:avion_ego4d_vitb",
    "avion_ego4d_vitl": "onereel.recipes.avion:avion_ego4d_vitl",
    "avion_lavila_vitb": "onereel.recipes.avion:avion_lavila_vitb",
    "avion_lavila_vitl": "onereel.recipes.avion:avion_lavila_vitl",
    "avion_ek100_mir_vitb": "onereel.recipes.avion:avion_ek100_mir_vitb",
    "avion_ek100_mir_vitl": "onereel.recipes.avion:avion_ek100_mir_vitl",
    "avion_ek100_cls_vitb": "onereel.recipes.avion:avion_ek100_cls_vitb",
    "avion_ek100_cls_vitl": "onereel.recipes.avion:avion_ek100_cls_vitl",
    "k400_vitb": "onereel.recipes.kinetics:k400_vitb",
    "rlt_k400_vitb": "onereel.recipes.kinetics:rlt_k400_vitb",
    "ssv2_vitb": "onereel.recipes.kinetics:ssv2_vitb",
    "vivit_k400_vitb": "onereel.recipes.vivit:vivit_k400_vitb",
    "vivit_k400_vitb_joint": "onereel.recipes.vivit:vivit_k400_vitb_joint",
    "vivit_k400_vitl": "onereel.recipes.vivit:vivit_k400_vitl",
    "vivit_ek100_vitl": "onereel.recipes.vivit:vivit_ek100_vitl",
    "vivit_ssv2_vitl": "onereel.recipes.vivit:vivit_ssv2_vitl",
    "vivit_ssv2_vitb_8f": "onereel.recipes.vivit:vivit_ssv2_vitb_8f",
    "sfa_ssv2_vitb_32f": "onereel.recipes.vivit:sfa_ssv2_vitb_32f",
    "sfa_ssv2_vitb_64f": "onereel.recipes.vivit:sfa_ssv2_vitb_64f",
    "sfa_ssv2_vitb_128f": "onereel.recipes.vivit:sfa_ssv2_vitb_128f",
    "dinov2_k400_vitb": "onereel.recipes.vivit:dinov2_k400_vitb",
    "dinov2_ssv2_vitb": "onereel.recipes.vivit:dinov2_ssv2_vitb",
    "flux_k710_vits": "onereel.recipes.fluxvit:flux_k710_vits",
    "flux_k710_vitb": "onereel.recipes.fluxvit:flux_k710_vitb",
    "flux_k400_vits": "onereel.recipes.fluxvit:flux_k400_vits",
    "flux_k400_vitb": "onereel.recipes.fluxvit:flux_k400_vitb",
    "flux_k400_vits_single": "onereel.recipes.fluxvit:flux_k400_vits_single",
    "flux_k400_vitb_single": "onereel.recipes.fluxvit:flux_k400_vitb_single",
    "flux_ssv2_vits": "onereel.recipes.fluxvit:flux_ssv2_vits",
    "flux_ssv2_vitb": "onereel.recipes.fluxvit:flux_ssv2_vitb",
    "flux_coin_vits": "onereel.recipes.fluxvit:flux_coin_vits",
    "flux_coin_vitb": "onereel.recipes.fluxvit:flux_coin_vitb",
    "flux_clip_vits": "onereel.recipes.fluxvit:flux_clip_vits",
    "flux_clip_vits_finetune": "onereel.recipes.fluxvit:flux_clip_vits_finetune",
    "videomae_k400_vitb": "onereel.recipes.masked:videomae_k400_vitb",
    "videomae_ssv2_vitb": "onereel.recipes.masked:videomae_ssv2_vitb",
    "videomae_v2_k400_vitb": "onereel.recipes.masked:videomae_v2_k400_vitb",
    "avion_videomae_k400_vitb": "onereel.recipes.masked:avion_videomae_k400_vitb",
    "everest_ucf101_vitb": "onereel.recipes.masked:everest_ucf101_vitb",
    "everest_ucf101_vitb_finetune": "onereel.recipes.masked:everest_ucf101_vitb_finetune",
    "everest_hmdb51_vitb": "onereel.recipes.masked:everest_hmdb51_vitb",
    "everest_hmdb51_vitb_finetune": "onereel.recipes.masked:everest_hmdb51_vitb_finetune",
    "everest_k400_vitb": "onereel.recipes.masked:everest_k400_vitb",
    "everest_k400_vitb_finetune": "onereel.recipes.masked:everest_k400_vitb_finetune",
    "everest_ssv2_vitb": "onereel.recipes.masked:everest_ssv2_vitb",
    "everest_ssv2_vitb_finetune": "onereel.recipes.masked:everest_ssv2_vitb_finetune",
}

FINE_TUNING = re.compile(
    r"(rlt_)?k400_vitb|ssv2_vitb|everest_\w+_finetune|vivit_\w+|avion_ek100_\w+|flux_(k710|k400|ssv2|coin|clip)_\w+"
)
"""Recipes that are published for weights to start from, and have none of their own."""


def recipe_function(name: str) -> Callable[[], RunConfig]:
    """The function behind a recipe's name, or behind a path to a file that defines `recipe()`."""
    if name.endswith(".py"):
        return _function_in_file(Path(name))
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    module, function = RECIPES[name].split(":")
    return getattr(import_module(module), function)


def load_recipe(name: str, model: str = "") -> RunConfig:
    """The configuration of recipe `name`, which remembers where it came from.

    Args:
        model: name of the model in place of the recipe's own; see `ModelConfig.renamed`.
    """
    try:
        config = recipe_function(name)()
    except Exception as error:  # somebody else's code may raise anything
        if not name.endswith(".py") or isinstance(error, ConfigError):
            raise
        raise _error_in(Path(name), error) from error
    if not isinstance(config, RunConfig):
        raise ConfigError(f"recipe {name!r} returned {type(config).__name__}, not a RunConfig")
    named = config.model.renamed(model) if model else config.model
    return replace(config, recipe=name, model=named)


def describe(name: str) -> str:
    """First line of the recipe's docstring."""
    return (recipe_function(name).__doc__ or "").strip().split("\n")[0]


def lacks_weights(config: RunConfig) -> str:
    """What to say where a recipe for fine-tuning would train from scratch; else nothing."""
    started = config.after or config.model.pretrained or config.model.backbone
    if started or not FINE_TUNING.fullmatch(config.recipe):
        return ""
    return (
        f"{config.recipe} is a recipe for fine-tuning, and the model starts at random: its rate and its epochs are for "
        "weights that are trained already; give them with --model.pretrained"
    )


def _error_in(path: Path, error: Exception) -> ConfigError:
    """What went wrong in somebody's recipe, and in which line of it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"{path}, line {line}" if line else str(path)
    return ConfigError(f"recipe {where}: {type(error).__name__}: {error}")


def _function_in_file(path: Path) -> Callable[[], RunConfig]:
    if not path.is_file():
        raise ConfigError(f"recipe file {path} does not exist")
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise _error_in(path, error) from error
    if "recipe" not in names:
        raise ConfigError(f"{path} has no function `recipe()` that returns a RunConfig")
    return names["recipe"]
