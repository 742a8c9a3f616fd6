"""Which tokens and frames a run keeps: selectors, budgets, frame selection, selection in the loader.

A new selector is one file in `tokens/` and one line here.
"""

from __future__ import annotations

from collections.abc import Callable

from onereel.config import RunConfig, TokensConfig
from onereel.errors import ConfigError, unknown_name
from onereel.models.registry import patch_size_of
from onereel.tokens.budgets import (
    BatchCount,
    Budget,
    ClipCount,
    GroupCount,
    Quantile,
    Threshold,
)
from onereel.tokens.frames import FrameSelection
from onereel.tokens.group_dynamic import KEEP_RATIO as GROUP_DYNAMIC_RATIO
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.picking import PatchPicker
from onereel.tokens.pixels import STD, Std
from onereel.tokens.redundancy import KEEP_RATIO as REDUNDANCY_RATIO
from onereel.tokens.redundancy import redundancy
from onereel.tokens.run_length import RunLength
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import PixelScore, RandomScore
from onereel.tokens.selector import KeepAll, Selector, Tube
from onereel.tokens.tubelets import shapes_in_window, tubelet_grid
from onereel.types import ClipShape, TubeletGrid

SELECTORS: dict[str, Callable[[TokensConfig, PixelScore], Selector]] = {
    "all": lambda tokens, pixels: KeepAll(),
    "random": lambda tokens, pixels: ScoredSelector(
        RandomScore(), build_budget(tokens), tokens.min_per_tubelet
    ),
    "tube": lambda tokens, pixels: build_tube(tokens),
    "run-length": lambda tokens, pixels: build_run_length(tokens, pixels),
    "redundancy": lambda tokens, pixels: redundancy(
        build_budget(tokens), tokens.min_per_tubelet, tokens.cap_cuts
    ),
    "group-dynamic": lambda tokens, pixels: group_dynamic(
        build_budget(tokens), tokens.groups, tokens.min_per_tubelet, tokens.cap_cuts
    ),
}
# Guards and options that only some selectors know. Set for another they would do nothing, in silence; "all" is how any
# selection is switched off, and asks for no more changes.
KNOWN_BY = {
    "reference": ("run-length",),
    "noise_cell": ("run-length",),
    "follow_camera": ("run-length",),
    "cap_cuts": ("run-length", "redundancy", "group-dynamic"),
    "min_per_tubelet": ("run-length", "redundancy", "group-dynamic", "random"),
}
# What a selector's name alone stands for: its budget, and where that is a share, which; as published where it was.
OWN_BUDGET = {"run-length": "threshold", "group-dynamic": "group"}
OWN_KEEP_RATIO = {"redundancy": REDUNDANCY_RATIO, "group-dynamic": GROUP_DYNAMIC_RATIO}


def build_selector(
    tokens: TokensConfig, tubelet_size: int, patch_size: int, std: Std = STD
) -> Selector:
    """The selector that `tokens.kind` names; raises ConfigError where its settings contradict one another."""
    if tokens.kind not in SELECTORS:
        raise unknown_name("tokens.kind", tokens.kind, SELECTORS)
    _check_known(tokens)
    pixels = PixelScore(
        tubelet_size,
        patch_size,
        std,
        noise_cell=tokens.noise_cell,
        follow_camera=tokens.follow_camera,
        cap_cuts=tokens.cap_cuts,
    )
    return SELECTORS[tokens.kind](tokens, pixels)


def _check_known(tokens: TokensConfig) -> None:
    """Raise ConfigError for a setting that the selector would ignore."""
    for name, kinds in KNOWN_BY.items():
        given, off = getattr(tokens, name), getattr(TokensConfig, name)
        if given != off and tokens.kind not in (*kinds, "all"):
            raise ConfigError(
                f"tokens.{name} is {given}, which {tokens.kind} doesn't know; it is for {', '.join(kinds)}; "
                f"set it to {off}"
            )
    if tokens.groups and tokens.kind not in ("group-dynamic", "all") and tokens.budget != "group":
        raise ConfigError(
            f"tokens.groups is {tokens.groups}, but {tokens.kind} has no groups; add --tokens.budget group, "
            "or set it to 0"
        )


def check_given(tokens: TokensConfig, before: TokensConfig) -> None:
    """Raise ConfigError for a setting that was given, that is, changed from `before`, and would be ignored.

    What was there before may be left over from another selector or budget, and does no harm.
    """
    if tokens.kind == "all":
        _check_nothing_bounds_all(tokens, before)
        return
    if tokens.threshold != before.threshold and _budget_of(tokens) != "threshold":
        remedy = "" if tokens.kind in ("random", "tube") else "add --tokens.budget threshold, or "
        raise ConfigError(
            f"tokens.threshold is {tokens.threshold}, but the budget of {tokens.kind} is no threshold; "
            f"{remedy}leave it out"
        )
    if tokens.keep_ratio and tokens.keep_ratio != before.keep_ratio and tokens.token_budget:
        raise ConfigError(
            f"tokens.keep_ratio is {tokens.keep_ratio}, but tokens.token_budget is {tokens.token_budget}, which counts "
            "in its place; set the one or the other to 0"
        )


def _check_nothing_bounds_all(tokens: TokensConfig, before: TokensConfig) -> None:
    """Raise ConfigError for a bound given without a selector, where there was none before either."""
    for name in ("threshold", "keep_ratio", "token_budget"):
        given = getattr(tokens, name)
        if before.kind == "all" and given != getattr(before, name):
            selector = "run-length" if name == "threshold" else "random"
            raise ConfigError(
                f"tokens.{name} is {given}, but tokens.kind is all, which keeps every token; add a selector, such as "
                f"--tokens.kind {selector}, or leave it out"
            )


def _budget_of(tokens: TokensConfig) -> str:
    return OWN_BUDGET.get(tokens.kind, "clip") if tokens.budget == "auto" else tokens.budget


def build_budget(tokens: TokensConfig) -> Budget:
    """What bounds the tokens: `tokens.budget`, or the selector's own."""
    budget = _budget_of(tokens)
    if budget == "threshold":
        for name in ("token_budget", "keep_ratio"):
            if getattr(tokens, name):
                raise ConfigError(
                    f"tokens.{name} is {getattr(tokens, name)}, but the budget of {tokens.kind} is a threshold; "
                    "add --tokens.budget clip, or set it to 0"
                )
        if tokens.kind == "random":
            raise ConfigError(
                "tokens.budget threshold means nothing to chance; allowed for random: clip, group, batch, quantile"
            )
        return Threshold(tokens.threshold)
    count = (tokens.keep_ratio or OWN_KEEP_RATIO.get(tokens.kind, 0.5), tokens.token_budget)
    if budget == "group":
        return GroupCount(*count, groups=tokens.groups)
    counted: dict[str, Callable[[float, int], Budget]]
    counted = {"clip": ClipCount, "quantile": Quantile, "batch": BatchCount}
    return counted[budget](*count)


def build_run_length(tokens: TokensConfig, pixels: PixelScore) -> Selector:
    """RLT by its threshold, or the same differences under another budget."""
    budget = build_budget(tokens)
    if not isinstance(budget, Threshold):
        if tokens.reference == "anchor":
            raise ConfigError(
                f"tokens.reference anchor needs a threshold, and tokens.budget is {tokens.budget}; "
                "set the one to adjacent or the other to auto"
            )
        return ScoredSelector(pixels, budget, tokens.min_per_tubelet)
    if tokens.min_per_tubelet or tokens.cap_cuts:
        raise ConfigError(
            "tokens.min_per_tubelet and cap_cuts guard an exact count, and run-length keeps by a threshold; "
            "add --tokens.budget clip, or switch them off"
        )
    return RunLength(
        tokens.threshold,
        tokens.reference,
        pixels.tubelet_size,
        pixels.patch_size,
        pixels.std,
        pixels.noise_cell,
        pixels.follow_camera,
    )


def build_tube(tokens: TokensConfig) -> Selector:
    if tokens.budget not in ("auto", "clip"):
        raise ConfigError(f"tokens.budget is {tokens.budget}; allowed for tube: auto or clip")
    return Tube(tokens.keep_ratio or 0.5, tokens.token_budget)


def build_frames(config: RunConfig) -> FrameSelection | None:
    """Frame selection, where it is on."""
    if config.tokens.frame_selection <= 1:
        return None
    return FrameSelection(config.data.num_frames // config.model.tubelet_size)


def frames_read(config: RunConfig) -> int:
    """Frames of a clip that are read: data.num_frames, or the whole tubelets that frame selection chooses from."""
    data, tubelet = config.data, config.model.tubelet_size
    if config.tokens.frame_selection <= 1:
        return data.num_frames
    patch = patch_size_of(config.model.name)
    grid = tubelet_grid(data.num_frames, data.size, data.size, tubelet, patch)
    return round(config.tokens.frame_selection * grid.gt) * tubelet


def train_shapes(config: RunConfig) -> tuple[ClipShape, ...]:
    """Frames read and size of the clips that training may meet: one, or those of flexible sampling."""
    data = config.data
    if not data.is_flexible:
        return (ClipShape(frames_read(config), data.size),)
    return shapes_in_window(
        data.num_frames_choices or (data.num_frames,),
        data.size_choices or (data.size,),
        data.token_window,
        config.model.tubelet_size,
        patch_size_of(config.model.name),
    )


def train_grids(config: RunConfig) -> tuple[TubeletGrid, ...]:
    """The tubelets of the clips that training may meet, before frame selection."""
    tubelet, patch = config.model.tubelet_size, patch_size_of(config.model.name)
    shapes = train_shapes(config)
    return tuple(tubelet_grid(s.num_frames, s.size, s.size, tubelet, patch) for s in shapes)


def build_picker(config: RunConfig, *, training: bool) -> PatchPicker | None:
    """What the loader's workers select tokens with; None where the model does.

    Raises ConfigError where the selector looks at what only the model has, or train.max_tokens_per_device at lengths
    that are not known, or could be too great; in training also where frame selection has nothing to choose from.
    """
    tokens, tubelet = config.tokens, config.model.tubelet_size
    patch = patch_size_of(config.model.name)
    selector = build_selector(tokens, tubelet, patch, config.augment.std)
    if training:
        _check_frames(config)
    if training and config.train.max_tokens_per_device:
        _check_token_cap(config, selector)
    if tokens.where == "device":
        return None
    if selector.needs_embeddings:
        raise ConfigError(
            f"tokens.kind {tokens.kind!r} looks at patch embeddings, which the loader's workers don't have; set "
            "tokens.where to 'device', or choose a kind that looks at pixels"
        )
    return PatchPicker(
        selector,
        build_frames(config),
        training,
        tubelet_size=tubelet,
        patch_size=patch,
        seed=config.seed,
    )


def _check_frames(config: RunConfig) -> None:
    factor = config.tokens.frame_selection
    tubelets = config.data.num_frames // config.model.tubelet_size
    if factor > 1 and frames_read(config) <= config.data.num_frames:
        raise ConfigError(
            f"tokens.frame_selection is {factor}, which adds no frame to a clip of {tubelets} tubelets in time; "
            f"allowed: {1 + 1 / tubelets:.3g} or more, or 0"
        )


def _check_token_cap(config: RunConfig, selector: Selector) -> None:
    cap, frames = config.train.max_tokens_per_device, build_frames(config)
    if config.tokens.where == "device":
        raise ConfigError(
            f"train.max_tokens_per_device is {cap}, but tokens.where is 'device', where a clip's tokens are known only "
            "within the model. Set tokens.where to 'loader'; or, for a selector that keeps the same number of every "
            "clip, lower train.batch_size_per_device and raise train.accum_steps"
        )
    grids = [grid if frames is None else frames.given_grid(grid) for grid in train_grids(config)]
    most = max(selector.num_kept(grid) or grid.num_tokens for grid in grids)
    if most > cap:
        raise ConfigError(
            f"train.max_tokens_per_device is {cap}, but one clip may keep {most} tokens; allowed: {most} or more, or 0"
        )
