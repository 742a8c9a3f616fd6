"""Video and language: which caption goes with which clip."""

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
    TextConfig,
    TokensConfig,
    TrainConfig,
)


def language_demo() -> RunConfig:
    """Small towers from scratch on narrated videos, as the demo draws them; minutes on two cores. Dense tokens.

    Captions say left and right, so nothing is mirrored. Scores and times: benchmarks/language_demo.py.
    Command: onereel train language_demo --data.train train.csv --data.val val.csv --data.store STORE
    """
    return RunConfig(
        # Nearly square crops of nearly the whole height, like that of the test: squeezing would turn squares into other
        # shapes, and smaller crops leave out where things move to. At 128 pixels, with patches of 16, the same number
        # of tokens learns hardly more in a quarter more time.
        data=DataConfig(
            num_frames=8, size=64, crop_scale=(0.68, 0.75), crop_ratio=(0.95, 1.05), num_workers=1
        ),
        augment=AugmentConfig(hflip_prob=0.0),
        model=ModelConfig(name="vit_micro_patch8_64", patch_norm=True),
        text=TextConfig(size="micro", context_length=16, vocab_size=512, embed_dim=64),
        objective=ObjectiveConfig(kind="contrastive", mask_duplicates=True),
        optim=OptimConfig(
            lr=1e-3, lr_batch_size=0, warmup_epochs=2, betas=(0.9, 0.98), clip_grad_norm=1.0
        ),
        # Reading takes a small part of one core, so training takes both.
        train=TrainConfig(
            epochs=14, batch_size_per_device=64, num_threads=2, log_every=10, save_every=500
        ),
        eval=EvalConfig(batch_size_per_device=16),
    )


def language_demo_rlt() -> RunConfig:
    """The same run with run-length tokens: only what moves is computed, and some of the time saved goes into epochs."""
    base = language_demo()
    return replace(
        base,
        tokens=TokensConfig(kind="run-length"),
        train=replace(base.train, epochs=16),
    )
