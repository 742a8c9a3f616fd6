"""A run under a setting: frames, size and budget that need not be those of its training.

T frames, S pixels of height and width, N tokens of a clip, K of them kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from onereel import build
from onereel.config import DataConfig, RunConfig, TokensConfig
from onereel.errors import ConfigError
from onereel.evaluation.budget_table import Setting
from onereel.loading import TrainedModel
from onereel.models.video_model import VideoModel, dense_grid
from onereel.tokens.tubelets import tubelet_grid
from onereel.types import TubeletGrid
from onereel.video.schedule import num_cores

FRAME_FACTORS, SIZE_FACTORS, BUDGET_DIVISORS = (0.5, 1, 2), (0.75, 1), (1, 2, 4, 8)
"""The default grid, times the run's own: more frames of fewer pixels are what gains (Flux, tables 1 and 11)."""

MOST_CHOICES = 4
"""Of the frames, and of the sizes, that flexible sampling drew from."""
NEARLY_ALL = 0.9
"""Of the default budgets, one that keeps more of a clip's tokens than this keeps all of them."""


def default_threads() -> int:
    """CPU threads of an answer: one core is left over, since the threads of a product wait for the slowest."""
    return max(1, num_cores() - 1)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def budget_tokens(tokens: TokensConfig, kind: str, count: int) -> TokensConfig:
    """The run's selector, or that of `kind`, keeping exactly `count` tokens of every clip.

    A threshold, quantile or mean over the batch becomes a count per clip; all tokens become Flux's selection.
    """
    own = "group-dynamic" if tokens.kind == "all" else tokens.kind
    if own != tokens.kind or kind not in ("", own):
        stays = {name: getattr(tokens, name) for name in ("length_embedding", "frame_selection")}
        tokens = TokensConfig(kind=kind or own, **stays)
    budget = tokens.budget
    if budget not in ("clip", "group"):
        budget = "group" if tokens.kind == "group-dynamic" else "clip"
    return replace(
        tokens,
        budget=budget,
        token_budget=count,
        keep_ratio=0.0,
        reference="adjacent",
        where="device",
    )


def for_budgets(config: RunConfig) -> RunConfig:
    """The configuration of a run whose clips may keep any of their tokens: without the cache of its training.

    Raises ConfigError where its model takes whole frames alone.
    """
    backbone = config.model.backbone
    if backbone:
        raise ConfigError(
            f"model.backbone is {backbone}, which sees whole frames and so takes no budget of tokens; allowed: models "
            "without a backbone, factorised ones too. Train one (--model.pretrained WEIGHTS in place of "
            "--model.backbone; ViT, DINOv2 and CLIP can be had so), or compare this one's frames and sizes: onereel "
            "eval RUN --data.num-frames 8 --name frames8"
        )
    data = replace(config.data, cache="", cache_views=0, cache_dtype=DataConfig.cache_dtype)
    return replace(config, data=data)


def at_setting(config: RunConfig, setting: Setting) -> RunConfig:
    """The configuration of a run that is used under `setting`."""
    data = replace(config.data, num_frames=setting.num_frames, size=setting.size)
    tokens = budget_tokens(config.tokens, "", setting.token_budget)
    return replace(config, data=data, tokens=tokens)


def fit_to(model: VideoModel, config: RunConfig) -> tuple[TubeletGrid, TubeletGrid]:
    """Make `model` select as `config` says; the grids of a clip that is read, and of what selection begins with.

    Positions need no change: the encoder resizes its table to whatever grid comes.

    Raises ConfigError where the clip or the budget does not fit the model.
    """
    encoder, data = model.encoder, config.data
    blocks = (encoder.tubelet_size, encoder.patch_size)
    tubelet_grid(data.num_frames, data.size, data.size, *blocks)
    read = tubelet_grid(build.frames_read(config), data.size, data.size, *blocks)
    if config.tokens.length_embedding and read.gt > encoder.grid.gt:
        raise ConfigError(
            f"clips of {data.num_frames} frames, but tokens.length_embedding was trained for runs of at most "
            f"{encoder.grid.gt} tubelets; allowed: up to {encoder.grid.gt * encoder.tubelet_size} frames"
        )
    model.frames = build.build_frames(config)
    model.selector = build.build_selector(config.tokens, *blocks, config.augment.std)
    given = dense_grid(model.frames, read)
    model.selector.num_kept(given)  # refuses a budget that does not fit
    return read, given


def num_tokens(model: VideoModel, num_frames: int, size: int) -> int:
    """Tokens of a clip before selection."""
    encoder = model.encoder
    return tubelet_grid(num_frames, size, size, encoder.tubelet_size, encoder.patch_size).num_tokens


def own_setting(trained: TrainedModel) -> Setting:
    """The run's own frames, size and tokens; all tokens where their number depends on the clip."""
    data, model = trained.config.data, trained.model
    grid = dense_grid(model.frames, model.encoder.grid)
    return Setting(data.num_frames, data.size, model.selector.num_kept(grid) or grid.num_tokens)


def settings_to_measure(
    trained: TrainedModel,
    frames: Sequence[int] = (),
    sizes: Sequence[int] = (),
    budgets: Sequence[int] = (),
) -> list[Setting]:
    """Every combination, grid by grid; a budget of more tokens than a clip has keeps all of them.

    Empty: half, the same and twice the run's frames, three quarters and all of its size, or some of those that flexible
    sampling drew; its own tokens and the budgets it was trained with, and all, a half, a quarter and an eighth of the
    tokens of its clips.
    """
    config, encoder, own = trained.config, trained.model.encoder, own_setting(trained)
    if not frames:
        frames = spread(config.data.num_frames_choices) or _multiples(
            own.num_frames, FRAME_FACTORS, encoder.tubelet_size
        )
        if config.tokens.length_embedding:
            frames = [one for one in frames if one <= own.num_frames]
    if not sizes:
        unit = math.lcm(encoder.patch_size, 2)
        multiples = [one for one in _multiples(own.size, SIZE_FACTORS, unit) if one >= 16]
        sizes = spread(config.data.size_choices) or multiples
    exact = bool(budgets)
    if not budgets:
        whole = num_tokens(trained.model, own.num_frames, own.size)
        shares = [max(1, whole // part) for part in BUDGET_DIVISORS]
        budgets = [own.token_budget, *config.objective.budgets, *shares]
    for name, values in (("frames", frames), ("sizes", sizes), ("budgets", budgets)):
        if min(values) < 1:
            raise ConfigError(f"{name} are {list(values)}; allowed: 1 or more each")
    found = []
    for f, s in itertools.product(sorted(set(frames)), sorted(set(sizes))):
        n = num_tokens(trained.model, f, s)
        kept = {n if k > (n if exact else NEARLY_ALL * n) else k for k in budgets}
        found += [Setting(f, s, k) for k in sorted(kept, reverse=True)]
    return found


def spread(choices: Sequence[int]) -> list[int]:
    """At most `MOST_CHOICES` of them, from the smallest to the largest."""
    ordered = sorted(set(choices))
    if len(ordered) <= MOST_CHOICES:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(i * last / (MOST_CHOICES - 1))] for i in range(MOST_CHOICES)]


def _multiples(own: int, factors: Sequence[float], unit: int) -> list[int]:
    """`own` times each factor, rounded to multiples of `unit`."""
    return sorted({max(unit, round(own * factor / unit) * unit) for factor in factors})
