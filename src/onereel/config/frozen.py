"""What a frozen model allows: a spatial half of another library, and a cache of its features or a teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onereel.config.inputs import DataConfig
from onereel.errors import ConfigError

if TYPE_CHECKING:
    from onereel.config.run import RunConfig


def check_backbone(config: RunConfig) -> None:
    """Raise ConfigError where settings don't fit an image transformer that sees whole single frames."""
    model = config.model
    if not model.backbone:
        return
    for name, given, needed in (
        ("model.frozen", model.frozen, "spatial"),
        ("model.tubelet_size", model.tubelet_size, 1),
        ("model.patch_norm", model.patch_norm, False),
        ("tokens.kind", config.tokens.kind, "all"),
        ("objective.budgets", config.objective.budgets, ()),
    ):
        if given != needed:
            raise ConfigError(
                f"{name} is {given!r}, but model.backbone {model.backbone} is frozen and sees whole single frames; "
                f"set {name} to {needed!r}, or leave model.backbone empty"
            )


def check_cache(config: RunConfig) -> None:
    """Raise ConfigError where features cannot be cached, or something would be drawn that they no longer can show."""
    data, augment = config.data, config.augment
    if not data.cache_views:
        for name in ("cache", "cache_dtype"):
            if getattr(data, name) != getattr(DataConfig, name):
                raise ConfigError(
                    f"data.{name} is {getattr(data, name)!r}, but nothing is cached; add --data.cache_views 4 (views "
                    "of each sample), or leave it as it was"
                )
        return
    if config.objective.kind == "distillation":
        _check_lessons(config)
        return
    if config.model.frozen != "spatial":
        raise ConfigError(
            f"data.cache_views is {data.cache_views}, but what is to be cached still learns: set model.frozen to "
            "spatial (with model.temporal_depth 4), or data.cache_views to 0"
        )
    for name, given, needed, why in (
        ("data.repeats", data.repeats, 1, "an epoch reads one view of each; set data.cache_views for more"),
        ("augment.cutmix_alpha", augment.cutmix_alpha, 0, "features have no pixels to paste; use mixup_alpha"),
        ("objective.budgets", config.objective.budgets, (), "tokens are kept before features are made"),
        ("data.num_frames_choices", data.num_frames_choices, (), "features are of one shape of clip"),
        ("data.size_choices", data.size_choices, (), "features are of one shape of clip"),
        ("train.max_tokens_per_device", config.train.max_tokens_per_device, 0, "a clip is as small as its frames"),
    ):  # fmt: skip
        if given != needed:
            raise ConfigError(f"{name} is {given}; allowed with data.cache_views: {needed} ({why})")
    if config.model.adapter == "attention-pool":
        raise ConfigError(
            "model.adapter 'attention-pool' reads all tokens of a frame, which would take some 200 times the disk; "
            "choose bottleneck, temporal-conv or fusion, or set data.cache_views to 0"
        )
    if augment.mixup_alpha and (config.tokens.kind != "all" or config.tokens.frame_selection > 1):
        raise ConfigError(
            f"augment.mixup_alpha is {augment.mixup_alpha}: mixing features needs the same frames of both clips, and "
            "selected tokens need not have them; set it to 0, or tokens.kind to all (and tokens.frame_selection to 0), "
            "or data.cache_views to 0"
        )


def _check_lessons(config: RunConfig) -> None:
    """Raise ConfigError where what a teacher says of a clip cannot be said again."""
    data = config.data
    for name, given, needed, why in (
        ("data.repeats", data.repeats, 1, "an epoch reads one view of each; set data.cache_views for more"),
        ("data.num_frames_choices", data.num_frames_choices, (), "features are of one shape of clip"),
        ("data.size_choices", data.size_choices, (), "features are of one shape of clip"),
    ):  # fmt: skip
        if given != needed:
            raise ConfigError(f"{name} is {given}; allowed with data.cache_views: {needed} ({why})")
