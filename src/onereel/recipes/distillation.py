"""Distillation from a frozen teacher: Flux-UMT's pre-training as published, and a small one that runs here.

The published ones have not been run by us: they need more than this project's machine. Flux-UMT's code was never
released; what follows is the paper's table 14 and, where that is silent, InternVideo2's distillation, its base.
"""

from __future__ import annotations

from dataclasses import replace

from onereel.config import (
    AugmentConfig,
    DataConfig,
    DistillConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
    TrainConfig,
)
from onereel.recipes.actions import actions


def flux_umt_vits() -> RunConfig:
    """Flux-UMT's pre-training of FluxViT-S: three budgets of flexible clips learn a frozen teacher's features.

    Paper: arXiv 2503.14237, table 14: AdamW, batch 2048, 100 epochs of K710 and K-Mash (200 where only K400 follows),
    clips of 4 to 24 frames and 168 to 252 pixels with 2048 to 4096 tokens; 2048 of them for the teacher
    (InternVideo2-1B), 2048, 1536 and 1024 for the student. Give --distill.teacher, a run of onereel with a class token
    and tubelets of 1 x 14 x 14; other teachers see whole clips, and one without a class token needs
    --distill.choose ranking. Hardware as published for InternVideo2's: 32 GPUs x 128 clips. Not yet run by us.
    Command: onereel train flux_umt_vits --data.train train.csv --data.store STORE --distill.teacher TEACHER
    """
    return RunConfig(
        data=DataConfig(
            num_frames=8,
            size=224,
            num_frames_choices=(4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24),
            size_choices=(168, 196, 224, 252),
            token_window=(2048, 4096),
            crop="multi-scale",
        ),
        augment=AugmentConfig(hflip_prob=0.5),  # 0 for SSv2
        tokens=TokensConfig(kind="group-dynamic"),
        model=ModelConfig.named("fluxvit_small_patch14_224", drop_path_rate=0.05),
        objective=ObjectiveConfig(kind="distillation", budgets=(2048, 1536, 1024)),
        distill=DistillConfig(num_layers=6, pool_budget=2048, choose="attention"),
        optim=OptimConfig(
            # Table 14 says 1e-3 and batch 2048, but not whether that is scaled. Taken as it is: InternVideo2's command
            # scales it by batch / 256, which would be 8e-3.
            lr=1e-3,
            lr_batch_size=0,
            warmup_epochs=20,
            weight_decay=0.05,
            betas=(0.9, 0.98),
            clip_grad_norm=5.0,  # InternVideo2
        ),
        train=TrainConfig(epochs=100, batch_size_per_device=64, global_batch_size=2048),
    )


def flux_umt_vitb() -> RunConfig:
    """Flux-UMT's pre-training of FluxViT-B: as of FluxViT-S. Not yet run by us."""
    base = flux_umt_vits()
    return replace(base, model=base.model.renamed("fluxvit_base_patch14_224"))


def actions_distill() -> RunConfig:
    """A small ViT learns a frozen teacher's features on a few hundred clips, without labels.

    The teacher is asked about twelve views of each clip, and what it says is kept: 0.07 MB a view from a model of the
    same size. All tokens are learned from; whether half of them would do was not compared on equal terms.
    Then fine-tune: onereel train actions --model.pretrained RUN --optim.lr 3e-4. Scores and times: docs/results.md.
    Command: onereel train actions_distill --data.train train.csv --data.store STORE --distill.teacher TEACHER
    """
    base = actions()
    return replace(
        base,
        data=replace(base.data, cache_views=12),
        objective=ObjectiveConfig(kind="distillation"),
        distill=DistillConfig(num_layers=3),
        train=replace(base.train, epochs=60),
    )
