"""The run of `make demo`."""

from __future__ import annotations

from onereel.config import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)


def demo() -> RunConfig:
    """A small ViT on generated videos with run-length tokens; a few minutes on two cores."""
    return RunConfig(
        data=DataConfig(num_frames=16, size=112, crop_scale=(0.7, 1.0), num_workers=1),
        augment=AugmentConfig(hflip_prob=0.0),
        tokens=TokensConfig(kind="run-length", threshold=0.1),
        model=ModelConfig(name="vit_micro_patch16_112", patch_norm=True),
        optim=OptimConfig(lr=2e-3, lr_batch_size=0, warmup_epochs=2, clip_grad_norm=1.0),
        train=TrainConfig(epochs=40, batch_size_per_device=16, log_every=5, save_every=100),
    )
