"""The sections of a configuration: nested frozen dataclasses, with no logic beyond validation.

A recipe (`onereel.recipes`) is a function that returns a `RunConfig`; the command line overrides any field by its
dotted name (`--optim.lr 3e-4`). What the words mean is in `docs/design.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from onereel.errors import ConfigError


def _require(condition: bool, name: str, given: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {given!r}; allowed: {allowed}")


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are read."""

    train: str = ""
    """Training list: a CSV with path,label or path,caption[,start,end], a "path label" list, a folder per class, or a
    data set's own file (docs/data.md); a CSV with path alone where no label is learned."""
    val: str = ""
    """Validation list, in any of the same forms."""
    root: str = ""
    """Folder that relative paths start from; empty: the folder of the list."""
    store: str = ""
    """Chunk store made by `onereel prepare`; empty: read the raw files."""
    captions: Literal["each", "paragraph"] = "each"
    """each: every caption at its own time. paragraph: all captions of a video, by time, as one about all of it."""
    num_frames: int = 16
    """Frames of a clip that the model gets (T); frame selection reads more and chooses these."""
    sampling: Literal["segment", "dense"] = "segment"
    """segment: T equal parts of the video, one frame of each. dense: T frames, sampling_rate apart."""
    sampling_rate: int = 4
    """Source frames between two frames of a dense clip."""
    size: int = 224
    """Height and width of the clip in pixels."""
    crop: Literal["random-resized", "multi-scale", "center"] = "random-resized"
    """Training crop; evaluation uses centre or three-crop (eval.num_crops)."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that a random resized crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random resized crop."""
    repeats: int = 1
    """Views of one decoded video per sample (repeated augmentation); each counts as a clip of the batch."""
    num_workers: int = -1
    """Decoding processes per device; -1: one per core left over, 0: in the training process."""
    prefetch: int = 2
    """Batches that each worker reads ahead."""
    max_bad_ratio: float = 0.01
    """Share of samples that may fail to decode before the run stops."""
    timeout_seconds: float = 30.0
    """Time that one clip's decode may take before it counts as failed."""

    def __post_init__(self) -> None:
        _require(self.num_frames >= 1, "data.num_frames", self.num_frames, "1 or more")
        _require(self.sampling_rate >= 1, "data.sampling_rate", self.sampling_rate, "1 or more")
        _require(self.size >= 16 and self.size % 2 == 0, "data.size", self.size, "even, 16 or more")
        _require(self.repeats >= 1, "data.repeats", self.repeats, "1 or more")
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "0 < low <= high <= 1")
        low, high = self.crop_ratio
        _require(0 < low <= high, "data.crop_ratio", self.crop_ratio, "0 < low <= high")
        _require(0 <= self.max_bad_ratio <= 1, "data.max_bad_ratio", self.max_bad_ratio, "0 to 1")
        _require(self.num_workers >= -1, "data.num_workers", self.num_workers, "-1 or more")
        _require(self.prefetch >= 1, "data.prefetch", self.prefetch, "1 or more")
        _require(self.timeout_seconds > 0, "data.timeout_seconds", self.timeout_seconds, "above 0")


@dataclass(frozen=True)
class AugmentConfig:
    """Batch augmentation on the device, in training only: one draw per clip, the same for its frames."""

    hflip_prob: float = 0.5
    """Probability of mirroring a clip; 0 where left and right differ in meaning (SSv2, gestures)."""
    randaugment_num_ops: int = 0
    """RandAugment operations per clip; 0: off."""
    randaugment_magnitude: float = 7.0
    """Strength of RandAugment, 0 to 10."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    erase_prob: float = 0.0
    """Probability of erasing a box, the same box in all frames."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup; 0: off."""
    cutmix_alpha: float = 0.0
    """Beta parameter of cutmix; 0: off."""
    mix_prob: float = 1.0
    """Probability that a clip is mixed at all, where mixup or cutmix is on."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B in 0..1 (ImageNet)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B in 0..1 (ImageNet)."""

    def __post_init__(self) -> None:
        for name in ("hflip_prob", "erase_prob", "mix_prob"):
            _require(
                0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "0 to 1"
            )
        for name in ("randaugment_num_ops", "mixup_alpha", "cutmix_alpha"):
            _require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "0 or more")
        _require(min(self.std) > 0, "augment.std", self.std, "above 0")


@dataclass(frozen=True)
class TokensConfig:
    """Which tubelets the model sees."""

    kind: str = "all"
    """Selector: all, random, tube, run-length (RLT), redundancy (EVEREST), group-dynamic (Flux)."""
    budget: Literal["auto", "threshold", "quantile", "clip", "group", "batch"] = "auto"
    """What bounds the tokens: a score; or an exact count per clip, per group in time, or on average over the batch;
    quantile: at most that count, ties left out. auto: run-length threshold, group-dynamic group, others clip."""
    threshold: float = 0.1
    """budget threshold: score above which a tubelet is kept; for run-length the mean absolute difference of normalised
    pixels (RLT section 3)."""
    keep_ratio: float = 0.0
    """Share of tubelets kept, rounded down; 0: the selector's own (redundancy 0.6, others 0.5)."""
    token_budget: int = 0
    """Tokens kept per clip, exactly, in place of keep_ratio; 0: keep_ratio."""
    groups: int = 0
    """group-dynamic, budget group: parts of a clip in time that are ranked apart; 0: Flux's rule (4, or 2)."""
    reference: Literal["adjacent", "anchor"] = "adjacent"
    """run-length: compare with the neighbouring tubelet (as published) or with the head of the run."""
    noise_cell: int = 1
    """run-length: average cells of so many pixels squared before comparing; 2 makes sensor noise half as loud."""
    follow_camera: bool = False
    """run-length: don't count as new what only moved with the camera (by a threshold: half a patch at most); for
    hand-held video."""
    min_per_tubelet: int = 0
    """budget clip, group: tokens that every tubelet in time keeps at least."""
    cap_cuts: bool = False
    """run-length with a count, redundancy, group-dynamic: let a scene cut claim half of its tubelet, not all."""
    length_embedding: bool = False
    """Add a learned embedding of each token's run length (zero-initialised)."""
    where: Literal["device", "loader"] = "device"
    """device: the model selects. loader: the workers do, and only kept patches travel to the device."""
    frame_selection: float = 0.0
    """Frames read per frame of the clip, which is chosen among them by kept tokens (EVEREST: 1.5); 0 or 1: off."""

    def __post_init__(self) -> None:
        _require(
            self.frame_selection == 0 or 1 <= self.frame_selection < math.inf,
            "tokens.frame_selection",
            self.frame_selection,
            "0, or 1 or more",
        )
        _require(0 <= self.threshold < math.inf, "tokens.threshold", self.threshold, "0 or more")
        _require(0 <= self.keep_ratio <= 1, "tokens.keep_ratio", self.keep_ratio, "0 to 1")
        _require(self.noise_cell >= 1, "tokens.noise_cell", self.noise_cell, "1 or more")
        for name in ("token_budget", "groups", "min_per_tubelet"):
            _require(getattr(self, name) >= 0, f"tokens.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder and its head."""

    name: str = "vit_base_patch16_224"
    """Model name; `onereel recipes --models` lists them."""
    tubelet_size: int = 2
    """Frames per tubelet (t)."""
    pool: Literal["mean", "cls"] = "mean"
    """How a clip's tokens become one feature."""
    positions: Literal["sincos", "sincos-1d", "learned", "space-time"] = "sincos"
    """Fixed sine-cosine by coordinate, or by running number (VideoMAE's weights), or a learned table, or learned
    tables of places and times, added (CLIP's weights)."""
    style: Literal["vit", "clip"] = "vit"
    """Of norms, activation and patch embedding: the ViT paper's, or that of CLIP's weights."""
    fc_norm: bool = False
    """Normalise the pooled feature in place of each token, as VideoMAE's fine-tuning does."""
    drop_path_rate: float = 0.0
    """Largest probability of skipping a block for a clip; rises linearly with depth."""
    head_dropout: float = 0.0
    """Dropout before the classifier."""
    qk_norm: bool = False
    """Normalise queries and keys of each head."""
    patch_norm: bool = False
    """Normalise patches before and after their embedding; makes training from scratch on few videos far quicker."""
    checkpointing: bool = False
    """Recompute each block in the backward pass to save memory."""
    attention: Literal["auto", "sdpa", "varlen", "reference"] = "auto"
    """Attention back-end; auto: the fastest that is exact here."""
    pretrained: str = ""
    """Weights to start from: a run, checkpoint or saved folder of onereel; weights of VideoMAE, a ViT, DINOv2 or CLIP
    (a folder, a .safetensors, .pth or .bin file); or the name OWNER/MODEL of such on the Hugging Face Hub."""
    inflation: Literal["central", "mean"] = "central"
    """How an image model's patch embedding becomes one of tubelets: all in the middle frame, or spread evenly."""


@dataclass(frozen=True)
class TextConfig:
    """The text tower of a video-language run."""

    size: str = "base"
    """micro, base or large; the last two are those of CLIP's ViT-B and ViT-L."""
    context_length: int = 77
    """Most tokens of a caption; longer ones lose their last words."""
    vocab_size: int = 16384
    """Most byte pairs of the tokenizer that is trained on the captions; model.pretrained brings its own."""
    embed_dim: int = 256
    """Width of the space that clips and captions share."""

    def __post_init__(self) -> None:
        for name, least in (("context_length", 3), ("vocab_size", 258), ("embed_dim", 1)):
            _require(
                getattr(self, name) >= least, f"text.{name}", getattr(self, name), f">= {least}"
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned."""

    kind: Literal["classification", "masked", "contrastive", "sigmoid", "max-margin"] = (
        "classification"
    )
    """classification: the label. masked: the pixels of hidden tubelets, without labels (VideoMAE, EVEREST). contrastive
    (InfoNCE), sigmoid (SigLIP), max-margin (EPIC-KITCHENS-100 retrieval): which caption goes with which clip."""
    label_smoothing: float = 0.0
    """classification: share of the target that goes to all classes alike."""
    mask: Literal["tube", "random"] = "tube"
    """masked: hide places at all times (VideoMAE), or any of the kept tokens (EVEREST)."""
    mask_ratio: float = 0.9
    """masked: share hidden, of places (tube) or of the tokens that the selector keeps (random)."""
    decode_ratio: float = 1.0
    """masked: share of the hidden tokens that the decoder reconstructs; 0.5 is VideoMAE v2's dual masking."""
    freeze_scale: bool = False
    """contrastive: keep the logits' scale at its initial 14.29, as AVION's released models were trained."""
    margin: float = 0.2
    """max-margin: by how much the own caption must be more alike than others."""
    mask_duplicates: bool = False
    """contrastive, sigmoid, max-margin: clips with equal captions are no negatives of one another."""

    def __post_init__(self) -> None:
        _require(
            0 < self.mask_ratio < 1, "objective.mask_ratio", self.mask_ratio, "between 0 and 1"
        )
        decode = self.decode_ratio
        _require(0 < decode <= 1, "objective.decode_ratio", decode, "above 0, up to 1")
        _require(0 < self.margin <= 2, "objective.margin", self.margin, "above 0, up to 2")
        _require(
            0 <= self.label_smoothing < 1,
            "objective.label_smoothing",
            self.label_smoothing,
            "0 or more, below 1",
        )


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its schedule."""

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    """Learning rate at lr_batch_size clips; scaled linearly to the global batch."""
    lr_batch_size: int = 256
    """Global batch that lr is stated for; 0: lr is used as it is."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    warmup_lr: float = 1e-6
    """Learning rate at the first step."""
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    """Not applied to biases, norms, position tables and tokens."""
    betas: tuple[float, float] = (0.9, 0.999)
    """adamw only: decay of the two moving averages."""
    momentum: float = 0.9
    """sgd only."""
    layer_decay: float = 1.0
    """Each block's learning rate is this times that of the block above."""
    clip_grad_norm: float = 0.0
    """Largest norm of the gradient; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then what is evaluated; 0: off."""

    def __post_init__(self) -> None:
        for name in ("lr", "lr_batch_size", "warmup_epochs", "weight_decay", "clip_grad_norm"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        for name, value in (("betas", max(self.betas)), ("momentum", self.momentum)):
            _require(0 <= value < 1, f"optim.{name}", getattr(self, name), "0 or more, below 1")
        _require(min(self.betas) >= 0, "optim.betas", self.betas, "0 or more, below 1")
        _require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "above 0, to 1")
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "0 or more, below 1")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    epochs: int = 100
    batch_size_per_device: int = 8
    """Clips per device and micro-step."""
    accum_steps: int = 1
    """Micro-steps per optimiser step; global batch = batch_size_per_device * accum_steps * devices."""
    global_batch_size: int = 0
    """Clips per optimiser step on any number of devices: accum_steps then follows from it. 0: as accum_steps says."""
    max_tokens_per_device: int = 0
    """Kept tokens that a device takes at once: larger micro-steps are cut, to the same gradient; 0: no limit."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto: bf16 on CUDA, float32 on CPU."""
    device: str = "auto"
    """auto, cpu, cuda, or cuda:1."""
    compile: bool = False
    """torch.compile the encoder."""
    num_threads: int = 0
    """CPU threads of the training process; 0: the cores that the workers leave over."""
    log_every: int = 10
    """Optimiser steps between two log lines."""
    save_every: int = 500
    """Optimiser steps between two checkpoints; one is always written at the end and at Ctrl-C."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep."""
    eval_every: int = 0
    """Epochs between two evaluations on data.val; 0: only at the end."""

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "batch_size_per_device", "accum_steps"),
            *("log_every", "save_every", "keep_checkpoints"),
        ):
            _require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        for name in ("num_threads", "eval_every", "max_tokens_per_device", "global_batch_size"):
            _require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class EvalConfig:
    """How a model is tested."""

    num_clips: int = 1
    """Clips spread over the video."""
    num_crops: int = 1
    """1: centre; 3: left or top, centre, right or bottom."""
    batch_size_per_device: int = 8
    """Views per device and batch."""

    def __post_init__(self) -> None:
        batch = self.batch_size_per_device
        _require(batch >= 1, "eval.batch_size_per_device", batch, "1 or more")
        _require(self.num_clips >= 1, "eval.num_clips", self.num_clips, "1 or more")
        _require(self.num_crops in (1, 3), "eval.num_crops", self.num_crops, "1 or 3")


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on."""

    recipe: str = ""
    """The recipe this configuration came from."""
    seed: int = 0
    """What all randomness of the run derives from."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2 ** 63")
        tokens = self.tokens
        masked_tubes = self.objective.kind == "masked" and self.objective.mask == "tube"
        keeps_a_picture = tokens.kind == "run-length" and tokens.budget in ("auto", "threshold")
        if masked_tubes and tokens.kind != "all" and not keeps_a_picture:
            raise ConfigError(
                f"objective.mask is 'tube', but {tokens.kind} tokens need not be left at the places that a tube shows; "
                "use objective.mask random, or tokens.kind all, or run-length by its threshold"
            )
