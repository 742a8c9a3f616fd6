"""Two runs as one recipe: what `RunConfig.after` names is trained first, on the same clips, with weights that fit."""

from __future__ import annotations

from dataclasses import replace

from onereel.config import RunConfig
from onereel.recipes import load_recipe

SHARED = {
    "data": (
        *("train", "val", "hold_out_ratio", "root", "store", "captions", "size"),
        *("num_workers", "prefetch", "max_bad_ratio", "timeout_seconds"),
    ),
    "augment": ("mean", "std"),
    "model": (
        *("name", "tubelet_size", "pool", "positions", "style"),
        *("qk_norm", "patch_norm", "local_positions", "checkpointing"),
    ),
    "train": (
        *("precision", "device", "num_threads", "compile"),
        *("batch_size_per_device", "accum_steps", "global_batch_size"),
    ),
    "eval": ("batch_size_per_device",),
}
"""What the first run takes from the second: where its clips come from (none that the second keeps out of training), the
scale of their pixels, what both models must have alike, and what the machine can hold: batches, checkpointing. Frames
per clip, tokens, optimiser and epochs are each run's own."""

START = ("pretrained", "inflation", "image_class_token")
"""And where it starts, if the second says so."""


def stages(config: RunConfig) -> list[RunConfig]:
    """The runs of a recipe in their order, `config` last."""
    return [*(stages(first_stage(config)) if config.after else []), config]


def first_stage(config: RunConfig) -> RunConfig:
    """The configuration of the run that `config.after` names, for the lists and the model of `config`."""
    first = load_recipe(config.after)
    sections = {
        section: replace(
            getattr(first, section),
            **{name: getattr(getattr(config, section), name) for name in names},
        )
        for section, names in SHARED.items()
    }
    if config.model.pretrained:
        start = {name: getattr(config.model, name) for name in START}
        sections["model"] = replace(sections["model"], **start)
    return replace(first, seed=config.seed, **sections)
