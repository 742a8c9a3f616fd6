"""From a configuration to the objects it names: the only file that may import every room.

A new selector, objective or model is one file in its room and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from onereel.config import ObjectiveConfig, RunConfig, TokensConfig
from onereel.data.annotations import Annotations, paragraphs, read_annotations
from onereel.data.augment import BatchAugment
from onereel.data.dataset import ClipDataset
from onereel.data.loader import ClipLoader
from onereel.data.sources.epic import are_actions
from onereel.errors import ConfigError, unknown_name
from onereel.models.dual_encoder import DualEncoder
from onereel.models.heads import ClassificationHead, ProjectionHead
from onereel.models.masked_autoencoder import MaskedAutoencoder
from onereel.models.registry import create_decoder, create_encoder, patch_size_of
from onereel.models.text import TextTower, Tokenizer
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.objectives.classification import ClassificationObjective
from onereel.objectives.contrastive import InfoNce, SigmoidLoss
from onereel.objectives.masked import MaskedObjective
from onereel.objectives.max_margin import MaxMargin
from onereel.objectives.pairs import PairObjective
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
from onereel.tokens.masking import Masking
from onereel.tokens.picking import PatchPicker
from onereel.tokens.pixels import STD, Std
from onereel.tokens.redundancy import KEEP_RATIO as REDUNDANCY_RATIO
from onereel.tokens.redundancy import redundancy
from onereel.tokens.run_length import RunLength
from onereel.tokens.scored import ScoredSelector
from onereel.tokens.scores import PixelScore, RandomScore
from onereel.tokens.selector import KeepAll, Selector, Tube
from onereel.tokens.tubelets import tubelet_grid
from onereel.training import World
from onereel.video.library import VideoLibrary, open_library
from onereel.video.schedule import num_cores

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
# What a selector's name alone stands for: its budget, and where that is a share, which; as published where it was.
OWN_BUDGET = {"run-length": "threshold", "group-dynamic": "group"}
OWN_KEEP_RATIO = {"redundancy": REDUNDANCY_RATIO, "group-dynamic": GROUP_DYNAMIC_RATIO}


PAIR_LOSSES: dict[str, Callable[[ObjectiveConfig], InfoNce | SigmoidLoss | MaxMargin]] = {
    "contrastive": lambda learned: InfoNce(learned.freeze_scale),
    "sigmoid": lambda learned: SigmoidLoss(),
    "max-margin": lambda learned: MaxMargin(learned.margin),
}


def build_selector(
    tokens: TokensConfig, tubelet_size: int, patch_size: int, std: Std = STD
) -> Selector:
    """The selector that `tokens.kind` names; raises ConfigError where its settings contradict one another."""
    if tokens.kind not in SELECTORS:
        raise unknown_name("tokens.kind", tokens.kind, SELECTORS)
    pixels = PixelScore(
        tubelet_size,
        patch_size,
        std,
        noise_cell=tokens.noise_cell,
        follow_camera=tokens.follow_camera,
        cap_cuts=tokens.cap_cuts,
    )
    return SELECTORS[tokens.kind](tokens, pixels)


def build_budget(tokens: TokensConfig) -> Budget:
    """What bounds the tokens: `tokens.budget`, or the selector's own."""
    budget = OWN_BUDGET.get(tokens.kind, "clip") if tokens.budget == "auto" else tokens.budget
    if budget == "threshold":
        if tokens.token_budget:
            raise ConfigError(
                f"tokens.token_budget is {tokens.token_budget}, but the budget of {tokens.kind} is a threshold; "
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


def build_picker(config: RunConfig, *, training: bool) -> PatchPicker | None:
    """What the loader's workers select tokens with; None where the model does.

    Raises ConfigError where the selector looks at what only the model has, or train.max_tokens_per_device at lengths
    that are not known, or could be too great.
    """
    tokens, tubelet = config.tokens, config.model.tubelet_size
    patch = patch_size_of(config.model.name)
    selector = build_selector(tokens, tubelet, patch, config.augment.std)
    if training and config.train.max_tokens_per_device:
        _check_token_cap(config, selector, patch)
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


def _check_token_cap(config: RunConfig, selector: Selector, patch_size: int) -> None:
    data, cap = config.data, config.train.max_tokens_per_device
    if config.tokens.where == "device":
        raise ConfigError(
            f"train.max_tokens_per_device is {cap}, but tokens.where is 'device', where a clip's tokens are known only "
            "within the model. Set tokens.where to 'loader'; or, for a selector that keeps the same number of every "
            "clip, lower train.batch_size_per_device and raise train.accum_steps"
        )
    grid = tubelet_grid(
        data.num_frames, data.size, data.size, config.model.tubelet_size, patch_size
    )
    most = selector.num_kept(grid) or grid.num_tokens
    if most > cap:
        raise ConfigError(
            f"train.max_tokens_per_device is {cap}, but one clip may keep {most} tokens; allowed: {most} or more, or 0"
        )


def build_encoder(config: RunConfig) -> VisionTransformer:
    """The encoder of a run, from PyTorch's generator as it stands."""
    model = config.model
    return create_encoder(
        model.name,
        num_frames=frames_read(config),
        size=config.data.size,
        tubelet_size=model.tubelet_size,
        positions=model.positions,
        style=model.style,
        pool=model.pool,
        drop_path_rate=model.drop_path_rate,
        qk_norm=model.qk_norm,
        patch_norm=model.patch_norm,
        checkpointing=model.checkpointing,
        attention=model.attention,
        length_embedding=config.tokens.length_embedding,
        final_norm=not model.fc_norm,
    )


def build_model(config: RunConfig, num_classes: int) -> VideoModel:
    """Encoder, head and selector of a run, freshly initialised from `config.seed`."""
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config)
        head = ClassificationHead(
            encoder.embed_dim, num_classes, model.pool, model.head_dropout, model.fc_norm
        )
    selector = _selector_of(encoder, config)
    return VideoModel(encoder, head, selector, config, build_frames(config))


def build_autoencoder(config: RunConfig) -> MaskedAutoencoder:
    """Encoder, decoder, selector and masks of a masked run, freshly initialised from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = build_encoder(config)
        decoder = create_decoder(config.model.name, encoder)
    learned = config.objective
    masking = Masking(learned.mask, learned.mask_ratio, learned.decode_ratio)
    selector = _selector_of(encoder, config)
    return MaskedAutoencoder(encoder, decoder, selector, masking, build_frames(config))


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
    video = VideoModel(encoder, head, _selector_of(encoder, config), config)
    return DualEncoder(video, tower, tokenizer)


def learns_pairs(config: RunConfig) -> bool:
    """Whether a run learns which caption goes with which clip."""
    return config.objective.kind in PAIR_LOSSES


def _selector_of(encoder: VisionTransformer, config: RunConfig) -> Selector:
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
) -> VideoModel | MaskedAutoencoder | DualEncoder:
    """The model of a run, whatever it learns; a video-language run needs a tokenizer."""
    if config.objective.kind == "masked":
        return build_autoencoder(config)
    if tokenizer is not None:
        return build_dual_encoder(config, tokenizer)
    return build_model(config, num_classes)


def build_objective(
    config: RunConfig, model: VideoModel | MaskedAutoencoder | DualEncoder
) -> ClassificationObjective | MaskedObjective | PairObjective:
    """What the run learns, around the model that `build_trainee` gave."""
    if isinstance(model, DualEncoder):
        return PairObjective(
            model,
            PAIR_LOSSES[config.objective.kind](config.objective),
            max_clips=config.train.batch_size_per_device * config.train.accum_steps,
            mask_duplicates=config.objective.mask_duplicates,
            seed=config.seed,
        )
    if isinstance(model, MaskedAutoencoder):
        return MaskedObjective(model, config.augment.std, config.seed)
    return ClassificationObjective(model, config.objective.label_smoothing, config.seed)


def build_library(config: RunConfig, annotations: Annotations) -> VideoLibrary:
    """Where the pixels come from: the chunk store, or the raw files under the list's root."""
    return open_library(
        config.data.store, root=annotations.root, timeout_seconds=config.data.timeout_seconds
    )


def build_annotations(config: RunConfig, path: str) -> Annotations:
    """The records of a list; ids of videos become the names of those in the store, or below the list's root."""
    annotations = read_annotations(path, config.data.root)
    if config.data.captions == "paragraph":
        annotations = paragraphs(annotations)
    if not annotations.origin.by_id:
        return annotations
    return annotations.located(build_library(config, annotations).videos())


def class_names(config: RunConfig, annotations: Annotations) -> tuple[str, ...]:
    """The classes of a run, in the order of their numbers: the labels of its training list.

    Actions (a verb and a noun) that only the validation list has are classes too, as published for
    EPIC-KITCHENS-100: their verbs and nouns are trained, and their share counts when actions are summed up.
    """
    names = annotations.label_names()
    if not config.data.val or not are_actions(names):
        return names
    return tuple(sorted({*names, *build_annotations(config, config.data.val).label_names()}))


def build_dataset(
    config: RunConfig,
    annotations: Annotations,
    label_names: tuple[str, ...] | None,
    *,
    training: bool,
) -> ClipDataset:
    """Clips of `annotations`: random ones in training, num_clips x num_crops fixed ones in testing."""
    data, views = config.data, config.eval
    return ClipDataset(
        annotations,
        build_library(config, annotations),
        num_frames=frames_read(config),
        sampling=data.sampling,
        sampling_rate=data.sampling_rate,
        size=data.size,
        crop=data.crop if training else "center",
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        seed=config.seed,
        training=training,
        label_names=label_names,
        num_clips=1 if training else views.num_clips,
        num_crops=1 if training else views.num_crops,
    )


def num_workers(config: RunConfig, devices_here: int = 1) -> int:
    """Decoding processes per device: as configured, or the cores that the training processes leave over."""
    if config.data.num_workers >= 0:
        return config.data.num_workers
    return max(1, num_cores() // devices_here - 1)


def num_threads(config: RunConfig, devices_here: int = 1) -> int:
    """CPU threads of a training process: as configured, or the cores that its workers leave over.

    One thread too many costs more than it brings: the threads of a matrix product wait for the slowest of them.
    """
    if config.train.num_threads:
        return config.train.num_threads
    return max(1, num_cores() // devices_here - num_workers(config, devices_here))


def build_train_loader(
    config: RunConfig, dataset: ClipDataset, *, world: World, run: Path
) -> ClipLoader:
    return ClipLoader(
        dataset,
        batch_size=config.train.batch_size_per_device,
        seed=config.seed,
        shuffle=True,
        drop_last=True,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=num_workers(config, world.world_size),
        prefetch=config.data.prefetch,
        repeats=config.data.repeats,
        max_bad_ratio=config.data.max_bad_ratio,
        quarantine=run / "quarantine.csv",
        pin_memory=world.device.type == "cuda",
        pick=build_picker(config, training=True),
        hflip_prob=config.augment.hflip_prob,
    )


def build_eval_loader(config: RunConfig, dataset: ClipDataset, *, world: World) -> ClipLoader:
    return ClipLoader(
        dataset,
        batch_size=config.eval.batch_size_per_device,
        seed=config.seed,
        shuffle=False,
        drop_last=False,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=num_workers(config, world.world_size),
        prefetch=config.data.prefetch,
        strict=True,
        pin_memory=world.device.type == "cuda",
        pick=build_picker(config, training=False),
    )


def build_augment(config: RunConfig, num_classes: int | None, *, training: bool) -> BatchAugment:
    """Batch augmentation; None classes where there are no labels to mix."""
    in_loader = config.tokens.where == "loader"
    return BatchAugment(
        config.augment,
        num_classes,
        config.seed,
        training=training,
        patch_size=patch_size_of(config.model.name) if in_loader else None,
    )
