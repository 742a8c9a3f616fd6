"""What is learned, and how: objective, optimiser, loop, and the test of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onereel.config.checks import require


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned."""

    kind: Literal[
        "classification", "masked", "distillation", "contrastive", "sigmoid", "max-margin"
    ] = "classification"
    """classification: the label. masked: the pixels of hidden tubelets, without labels (VideoMAE, EVEREST).
    distillation: the features of distill.teacher, without labels (UMT, Flux-UMT). contrastive (InfoNCE), sigmoid
    (SigLIP), max-margin (EPIC-KITCHENS-100 retrieval): which caption goes with which clip."""
    label_smoothing: float = 0.0
    """classification: share of the target that goes to all classes alike."""
    mask: Literal["tube", "random"] = "tube"
    """masked: hide places at all times (VideoMAE), or any of the kept tokens (EVEREST)."""
    mask_ratio: float = 0.9
    """masked: share hidden, of places (tube) or of the tokens that the selector keeps (random)."""
    decode_ratio: float = 1.0
    """masked: share of the hidden tokens that the decoder reconstructs; 0.5 is VideoMAE v2's dual masking."""
    budgets: tuple[int, ...] = ()
    """Tokens kept of a clip in training, largest first (Flux: 3072 2048 1024); a clip with fewer keeps all.
    Classification learns several at once, each with a head of its own; other kinds draw one per micro-batch. Empty: as
    tokens says."""
    budgets_per_step: int = 0
    """classification, distillation: so many of the budgets, drawn for each micro-batch; 0: all."""
    alignment: float = 0.1
    """classification with budgets: weight of the smaller budgets' features being like the largest one's."""
    alignment_loss: Literal["cosine", "smooth-l1"] = "cosine"
    """cosine: 2 - 2 cos. smooth-l1: as Flux's code reduces it, which is (1 - cos) / width and next to nothing."""
    freeze_scale: bool = False
    """contrastive: keep the logits' scale at its initial 14.29, as AVION's released models were trained."""
    margin: float = 0.2
    """max-margin: by how much the own caption must be more alike than others."""
    mask_duplicates: bool = False
    """contrastive, sigmoid, max-margin: clips with equal captions are no negatives of one another."""

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, "objective.mask_ratio", self.mask_ratio, "between 0 and 1")
        decode = self.decode_ratio
        require(0 < decode <= 1, "objective.decode_ratio", decode, "above 0, up to 1")
        require(0 < self.margin <= 2, "objective.margin", self.margin, "above 0, up to 2")
        self._check_budgets()
        require(
            0 <= self.label_smoothing < 1,
            "objective.label_smoothing",
            self.label_smoothing,
            "0 or more, below 1",
        )

    def _check_budgets(self) -> None:
        budgets, per_step = self.budgets, self.budgets_per_step
        falling = all(a > b for a, b in zip(budgets, (*budgets[1:], 0)))
        require(falling, "objective.budgets", budgets, "counts of tokens, each smaller than before")
        at_once = self.kind in ("classification", "distillation")
        most = len(budgets) if at_once else min(1, len(budgets))
        require(0 <= per_step <= most, "objective.budgets_per_step", per_step, f"0 to {most}")
        require(self.alignment >= 0, "objective.alignment", self.alignment, "0 or more")


@dataclass(frozen=True)
class DistillConfig:
    """objective.kind distillation: whose features are learned, and which of them."""

    teacher: str = ""
    """A run, checkpoint or saved folder of onereel (a classifier, pre-training, video-language), or a model of
    transformers (VideoMAE, V-JEPA 2; DINOv2, DINOv3, SigLIP, CLIP and ViT by frames): a folder, or its name OWNER/MODEL
    on the Hugging Face Hub. It sees clips at its own size, frames and pixel statistics."""
    teacher_size: int = 0
    """Pixels per side that the teacher sees; 0: those it was made for."""
    num_layers: int = 6
    """Last blocks of the student that are aligned with blocks of the teacher, spread evenly; 0: none."""
    teacher_layers: tuple[int, ...] = ()
    """Blocks of the teacher (from 0) for the student's last, last but one, and so on, in place of num_layers."""
    layer_weight: float = 1.0
    """Weight of the aligned blocks' loss, the mean over blocks and tokens."""
    final_weight: float = 1.0
    """Weight of the loss of the clip's final feature."""
    pool_budget: int = 0
    """Tokens that the selector keeps first, among which the student's objective.budgets lie (Flux-UMT: 2048); a teacher
    of onereel with the student's tubelets is shown these and no others. 0: all."""
    choose: Literal["ranking", "attention"] = "ranking"
    """ranking: the student's tokens are the selector's first. attention: drawn by the attention of the teacher's class
    token (UMT)."""

    def __post_init__(self) -> None:
        for name in ("teacher_size", "num_layers", "layer_weight", "final_weight", "pool_budget"):
            require(getattr(self, name) >= 0, f"distill.{name}", getattr(self, name), "0 or more")
        layers = self.teacher_layers
        require(min(layers, default=0) >= 0, "distill.teacher_layers", layers, "each 0 or more")


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
            require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "0 or more")
        for name, value in (("betas", max(self.betas)), ("momentum", self.momentum)):
            require(0 <= value < 1, f"optim.{name}", getattr(self, name), "0 or more, below 1")
        require(min(self.betas) >= 0, "optim.betas", self.betas, "0 or more, below 1")
        require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "above 0, to 1")
        require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "0 or more, below 1")


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
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        for name in ("num_threads", "eval_every", "max_tokens_per_device", "global_batch_size"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class EvalConfig:
    """How a model is tested."""

    num_clips: int = 1
    """Clips spread over the video."""
    num_crops: int = 1
    """1: centre; 3: left or top, centre, right or bottom."""
    batch_size_per_device: int = 8
    """Views per device and batch."""
    templates: tuple[str, ...] = ()
    """Prompts of a test by class names, with {} where the name goes ("#C C {}" after training on Ego4D's narrations);
    empty: five that fit names of actions."""

    def __post_init__(self) -> None:
        good = all("{}" in template for template in self.templates)
        require(good, "eval.templates", self.templates, "texts with {} where the name goes")
        batch = self.batch_size_per_device
        require(batch >= 1, "eval.batch_size_per_device", batch, "1 or more")
        require(self.num_clips >= 1, "eval.num_clips", self.num_clips, "1 or more")
        require(self.num_crops in (1, 3), "eval.num_crops", self.num_crops, "1 or 3")
