"""What a run trains: encoders, models, objectives.

A new objective or model is one file in its room and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onereel.build.selection import build_frames, build_selector, frames_read, train_grids
from onereel.config import ObjectiveConfig, RunConfig
from onereel.data.annotations import Annotations
from onereel.errors import ConfigError
from onereel.models import Student, Trainee
from onereel.models.dual_encoder import DualEncoder, video_of
from onereel.models.factorised import Encoder
from onereel.models.heads import BudgetHeads, ClassificationHead, ProjectionHead
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.pretrained.reading import locate, pixel_stats
from onereel.models.registry import create_decoder, create_encoder, create_factorised
from onereel.models.teachers import Teacher
from onereel.models.text import TextTower, Tokenizer
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.objectives import AnyObjective
from onereel.objectives.classification import ClassificationObjective
from onereel.objectives.contrastive import InfoNce, SigmoidLoss
from onereel.objectives.distillation import (
    Alignment,
    DistillationObjective,
    spread_layers,
)
from onereel.objectives.masked import MaskedObjective
from onereel.objectives.max_margin import MaxMargin
from onereel.objectives.multi_budget import MultiBudgetObjective
from onereel.objectives.pairs import PairObjective
from onereel.seeding import stable_seed
from onereel.tokens.masking import Masking
from onereel.tokens.ranking import at_budget
from onereel.tokens.run_length import RunLength
from onereel.tokens.selector import Selector
from onereel.types import TubeletGrid

PAIR_LOSSES: dict[str, Callable[[ObjectiveConfig], InfoNce | SigmoidLoss | MaxMargin]] = {
    "contrastive": lambda learned: InfoNce(learned.freeze_scale),
    "sigmoid": lambda learned: SigmoidLoss(),
    "max-margin": lambda learned: MaxMargin(learned.margin),
}


def build_encoder(config: RunConfig) -> Encoder:
    """The encoder of a run, from PyTorch's generator as it stands."""
    model = config.model
    options: dict[str, Any] = {
        "num_frames": frames_read(config),
        "size": config.data.size,
        "tubelet_size": model.tubelet_size,
        "positions": model.positions,
        "position_std": model.position_std,
        "style": model.style,
        "pool": model.pool,
        "drop_path_rate": model.drop_path_rate,
        "qk_norm": model.qk_norm,
        "patch_norm": model.patch_norm,
        "local_positions": model.local_positions,
        "checkpointing": model.checkpointing,
        "attention": model.attention,
        "final_norm": not model.fc_norm,
    }
    if not model.temporal_depth:
        return create_encoder(
            model.name, length_embedding=config.tokens.length_embedding, **options
        )
    return create_factorised(
        model.name,
        temporal_depth=model.temporal_depth,
        backbone=_backbone(config),
        adapter=model.adapter,
        frozen=model.frozen == "spatial",
        frames_at_once=model.frames_at_once,
        **options,
    )


def _backbone(config: RunConfig) -> str:
    """The folder of model.backbone, if there is one. Raises ConfigError where it knows pixels of another scale."""
    if not config.model.backbone:
        return ""
    folder = locate(config.model.backbone)
    stats, given = pixel_stats(folder, {}), (config.augment.mean, config.augment.std)
    if stats is not None and stats != given:
        mean, std = (" ".join(map(str, values)) for values in stats)
        raise ConfigError(
            f"model.backbone {config.model.backbone} was trained on pixels of other mean and standard deviation than "
            f"augment.mean and augment.std, {given[0]} and {given[1]}; add --augment.mean {mean} --augment.std {std}"
        )
    return str(folder)


def build_model(config: RunConfig, num_classes: int) -> VideoModel:
    """Encoder, head and selector of a run, freshly initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config)
        head = build_head(config, encoder.embed_dim, num_classes)
    selector = _selector_of(encoder, config)
    return VideoModel(encoder, head, selector, config, build_frames(config))


def build_head(
    config: RunConfig, embed_dim: int, num_classes: int
) -> ClassificationHead | BudgetHeads:
    """The classifier, or one for each of `objective.budgets`."""
    model, budgets = config.model, config.objective.budgets
    heads = [
        ClassificationHead(
            embed_dim,
            num_classes,
            model.pool,
            model.head_dropout,
            norm=model.fc_norm,
            zero=model.style == "vivit",
        )
        for _ in budgets or (0,)
    ]
    return BudgetHeads(heads, budgets) if budgets else heads[0]


def build_autoencoder(config: RunConfig) -> MaskedAutoencoder:
    """Encoder, decoder, selector and masks of a masked run, freshly initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config)
        assert isinstance(encoder, VisionTransformer)  # the configuration refuses others
        decoder = create_decoder(config.model.name, encoder)
    learned = config.objective
    masking = Masking(learned.mask, learned.mask_ratio, learned.decode_ratio)
    selector, frames = _selector_of(encoder, config), build_frames(config)
    if masking.kind == "random":
        grids = train_grids(config)
        given = grids if frames is None else [frames.given_grid(grid) for grid in grids]
        masking.check_shows_some(
            min(
                _fewest_kept(one, grid)
                for grid in given
                for one in _selectors(config, selector, grid)
            )
        )
    return MaskedAutoencoder(encoder, decoder, selector, masking, frames)


def _selectors(config: RunConfig, selector: Selector, grid: TubeletGrid) -> list[Selector]:
    """What may select the tokens of a clip of `grid`: `selector`, and in training itself at each budget."""
    return [selector, *(at_budget(selector, budget, grid) for budget in config.objective.budgets)]


def _fewest_kept(selector: Selector, grid: TubeletGrid) -> int:
    """Tokens that every clip keeps at least. Raises ConfigError where that may be one alone."""
    if isinstance(selector, RunLength):
        return grid.gh * grid.gw  # its first tubelet in time
    num_kept = selector.num_kept(grid)
    if num_kept is None:
        raise ConfigError(
            "by this tokens.budget a clip may keep a single token, of which nothing can be hidden; allowed for masked "
            "pre-training: budgets that keep an exact number of each clip (clip, group), or run-length's threshold"
        )
    return num_kept


def build_student(config: RunConfig) -> Student:
    """Encoder and selector of a distillation, freshly initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config)
        assert isinstance(encoder, VisionTransformer)  # the configuration refuses others
        return Student(
            encoder,
            _selector_of(encoder, config),
            build_frames(config),
            budgets=config.objective.budgets,
            pool_budget=config.distill.pool_budget,
            by_attention=config.distill.choose == "attention",
        )


def build_tokenizer(config: RunConfig, annotations: Annotations) -> Tokenizer:
    """Byte pairs of all captions of a training list."""
    text = config.text
    return Tokenizer.train(annotations.captions(), text.vocab_size, text.context_length)


def build_dual_encoder(config: RunConfig, tokenizer: Tokenizer) -> DualEncoder:
    """Both towers of a video-language run, freshly initialised from `config.seed`."""
    model, text = config.model, config.text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config)
        head = ProjectionHead(encoder.embed_dim, text.embed_dim, model.pool)
        tower = TextTower(
            text.size,
            vocab_size=tokenizer.vocab_size,
            context_length=text.context_length,
            out_dim=text.embed_dim,
            end_id=tokenizer.end_id,
            checkpointing=model.checkpointing,
        )
    frames, selector = build_frames(config), _selector_of(encoder, config)
    video = VideoModel(encoder, head, selector, config, frames)
    return DualEncoder(video, tower, tokenizer)


def learns_pairs(config: RunConfig) -> bool:
    """Whether a run learns which caption goes with which clip."""
    return config.objective.kind in PAIR_LOSSES


def _selector_of(encoder: Encoder, config: RunConfig) -> Selector:
    selector = build_selector(
        config.tokens, encoder.tubelet_size, encoder.patch_size, config.augment.std
    )
    frames = build_frames(config)
    # They say before anything is read that a budget doesn't fit.
    selector.num_kept(encoder.grid)
    if frames is not None:
        selector.num_kept(frames.given_grid(encoder.grid))
    return selector


def build_trainee(
    config: RunConfig, num_classes: int, tokenizer: Tokenizer | None = None
) -> Trainee:
    """The model of a run, whatever it learns; a video-language run needs a tokenizer."""
    if config.objective.kind == "masked":
        return build_autoencoder(config)
    if config.objective.kind == "distillation":
        return build_student(config)
    if tokenizer is not None:
        return build_dual_encoder(config, tokenizer)
    return build_model(config, num_classes)


def check_train_clips(config: RunConfig, selector: Selector) -> None:
    """Raise ConfigError, before anything is read, where budget or selector don't fit a clip that training may meet."""
    budgets, grids = config.objective.budgets, train_grids(config)
    most = max(grid.num_tokens for grid in grids)
    if len(budgets) > 1 and budgets[1] >= most:
        raise ConfigError(
            f"objective.budgets begin with {budgets[0]} and {budgets[1]} tokens, and clips have {most} at most, so "
            "both keep all: leave out the first, or give longer or larger clips"
        )
    if config.objective.kind == "distillation":
        pool = config.distill.pool_budget
        # The teacher's attention chooses among all tokens, or among those of the pool.
        by_attention = config.distill.choose == "attention"
        budgets = (*(() if by_attention else budgets), *((pool,) if pool else ()))
    for grid in grids:
        for budget in budgets:
            at_budget(selector, budget, grid).num_kept(grid)
        if config.data.is_flexible and not budgets:
            selector.num_kept(grid)


def build_objective(
    config: RunConfig, model: Trainee, teacher: Teacher | None = None
) -> AnyObjective:
    """What the run learns, around the model that `build_trainee` gave."""
    learned, seed = config.objective, config.seed
    check_train_clips(config, video_of(model).selector)
    if isinstance(model, DualEncoder):
        return PairObjective(
            model,
            PAIR_LOSSES[learned.kind](learned),
            max_clips=config.train.batch_size_per_device * config.train.accum_steps,
            mask_duplicates=learned.mask_duplicates,
            seed=seed,
            budgets=learned.budgets,
        )
    if isinstance(model, Student):
        assert teacher is not None  # who builds the objective loads it
        return build_distillation(config, model, teacher)
    if isinstance(model, MaskedAutoencoder):
        return MaskedObjective(model, config.augment.std, seed, learned.budgets)
    if not learned.budgets:
        return ClassificationObjective(model, learned.label_smoothing, seed)
    return MultiBudgetObjective(
        model,
        learned.budgets,
        budgets_per_step=learned.budgets_per_step,
        alignment=learned.alignment,
        alignment_loss=learned.alignment_loss,
        label_smoothing=learned.label_smoothing,
        seed=seed,
    )


def build_distillation(
    config: RunConfig, student: Student, teacher: Teacher
) -> DistillationObjective:
    """The student's projections to what `teacher` says, freshly initialised from `config.seed`.

    Raises ConfigError where student or teacher lacks a block that is to be aligned, or cannot be shown a part of the
    tokens.
    """
    distill, depth = config.distill, student.encoder.depth
    layers = distill.teacher_layers
    count = len(layers) or distill.num_layers
    if count > depth:
        raise ConfigError(
            f"distill.num_layers is {count}, and {config.model.name} has {depth} blocks; allowed: 0 to {depth}"
        )
    layers = layers or spread_layers(count, depth, teacher.depth)
    if max(layers, default=0) >= teacher.depth:
        raise ConfigError(
            f"distill.teacher_layers are {layers}, and {distill.teacher} has {teacher.depth} blocks, from 0 on"
        )
    if distill.pool_budget and distill.teacher_size and teacher.fits(student.encoder):
        raise ConfigError(
            f"distill.teacher_size is {distill.teacher_size}, but {distill.teacher} is shown the "
            f"{distill.pool_budget} tokens of the pool, which are those of the student's clips; set one of the two to 0"
        )
    if distill.pool_budget and config.data.cache_views and teacher.fits(student.encoder):
        raise ConfigError(
            f"data.cache_views is {config.data.cache_views}, but {distill.teacher} is shown the student's choice of "
            f"{distill.pool_budget} tokens, which changes as the student learns; set one of the two to 0"
        )
    alignment = Alignment(
        tuple(range(depth - count, depth)),
        layers[::-1],
        distill.layer_weight,
        distill.final_weight,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(config.seed, "projections"))
        return DistillationObjective(
            student,
            teacher,
            alignment,
            config.seed,
            budgets_per_step=config.objective.budgets_per_step,
        )
