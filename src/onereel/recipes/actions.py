"""Small clips, small model, from scratch: what a laptop can train in minutes."""

from __future__ import annotations

from dataclasses import replace

from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)


def actions() -> RunConfig:
    """A small ViT from scratch on a few hundred short clips of one fixed camera; dense tokens."""
    return RunConfig(
        data=DataConfig(
            num_frames=16, size=112, crop_scale=(0.7, 1.0), num_workers=1, max_bad_ratio=0.05
        ),
        augment=AugmentConfig(hflip_prob=0.0, color_jitter=0.2),
        model=ModelConfig(name="vit_tiny_patch16_112", tubelet_size=2, drop_path_rate=0.0),
        objective=ObjectiveConfig(label_smoothing=0.1),
        optim=OptimConfig(
            lr=1e-3, lr_batch_size=0, warmup_epochs=5, weight_decay=0.05, clip_grad_norm=1.0
        ),
        train=TrainConfig(epochs=100, batch_size_per_device=16, log_every=5, save_every=100),
    )


def actions_rlt() -> RunConfig:
    """The same run with run-length tokens: only what moves is computed."""
    return replace(actions(), tokens=TokensConfig(kind="run-length", threshold=0.1))
