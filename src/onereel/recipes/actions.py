"""Small clips, small model, from scratch: what a laptop can train in minutes."""

from __future__ import annotations

from dataclasses import replace

from onereel.config import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)


def actions() -> RunConfig:
    """A small ViT from scratch on a few hundred short clips of one fixed camera; dense tokens.

    Left and right may mean different classes, so nothing is mirrored. Scores and times: docs/results.md.
    Command: onereel train actions --data.train train.csv --data.val val.csv --data.store STORE
    """
    return RunConfig(
        data=DataConfig(
            num_frames=16, size=32, crop_scale=(0.7, 1.0), num_workers=1, max_bad_ratio=0.05
        ),
        augment=AugmentConfig(hflip_prob=0.0, color_jitter=0.2),
        model=ModelConfig(name="vit_micro_patch8_32", patch_norm=True),
        objective=ObjectiveConfig(label_smoothing=0.1),
        optim=OptimConfig(
            lr=1.5e-3, lr_batch_size=0, warmup_epochs=5, betas=(0.9, 0.98), clip_grad_norm=1.0
        ),
        train=TrainConfig(epochs=350, batch_size_per_device=8, log_every=50, save_every=500),
        eval=EvalConfig(num_clips=2, num_crops=3, batch_size_per_device=24),
    )


def actions_rlt() -> RunConfig:
    """The same run with run-length tokens: only what moves is computed.

    The threshold is half of RLT's 0.1: pictures of 32 pixels are averages, with less noise and paler edges.
    """
    return replace(actions(), tokens=TokensConfig(kind="run-length", threshold=0.05))


def actions_mae() -> RunConfig:
    """Masked pre-training of the same model on any short clips, without labels; then --model.pretrained RUN.

    Tubes at 75 %, as VideoMAE hides on small data sets: of 4x4 places 4 are seen. Not mirrored, like `actions`.
    Command: onereel train actions_mae --data.train videos.csv, which needs no more than a column path.
    """
    base = actions()
    return replace(
        base,
        data=replace(base.data, crop="multi-scale"),
        augment=AugmentConfig(hflip_prob=0.0),
        objective=ObjectiveConfig(kind="masked", mask="tube", mask_ratio=0.75),
        optim=replace(base.optim, lr=1e-3, warmup_epochs=10, betas=(0.9, 0.95)),
        train=replace(base.train, epochs=400, batch_size_per_device=16),
    )


def actions_everest() -> RunConfig:
    """The same pre-training within the 30 % least redundant tokens: 12 of 128 are seen, 26 reconstructed."""
    return replace(
        actions_mae(),
        tokens=TokensConfig(kind="redundancy", keep_ratio=0.3),
        objective=ObjectiveConfig(kind="masked", mask="random", mask_ratio=2 / 3),
    )


def actions_fe() -> RunConfig:
    """A factorised encoder on 8 frames of the same clips: the first stage of `actions_sfa`.

    Without class tokens (Scenic's "gap"), and at a quarter of the rate of `actions`: in trials with class tokens, or
    at that rate, it did not begin to learn within 60 to 80 epochs.
    """
    base = actions()
    return replace(
        base,
        data=replace(base.data, num_frames=8),
        model=replace(base.model, temporal_depth=2, positions="learned", position_std=0.5),
        optim=replace(base.optim, lr=4e-4),
        train=replace(base.train, epochs=200),
    )


def actions_sfa() -> RunConfig:
    """`actions_fe` first; then on 16 frames with its spatial half frozen, as `sfa_ssv2_vitb_32f` in small.

    Command: onereel train actions_sfa --data.train train.csv --data.val val.csv --data.store STORE
    """
    base = actions_fe()
    return replace(
        base,
        after="actions_fe",
        data=replace(base.data, num_frames=16),
        model=replace(base.model, frozen="spatial", adapter="bottleneck", keep_head=True),
        train=replace(base.train, epochs=100),
    )
