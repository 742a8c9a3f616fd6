"""A technique that is switched off, or whose setting makes it do nothing, gives the bits of the code without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from onereel import build
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
from onereel.training import create_optimizer, create_schedule, fit, plan_steps
from onereel.types import Batch, SampleKey

PLAIN = RunConfig(
    data=DataConfig(num_frames=4, size=32),
    augment=AugmentConfig(hflip_prob=0.5, color_jitter=0.2),
    model=ModelConfig(name="vit_micro_patch16_32"),
    optim=OptimConfig(lr=1e-2, lr_batch_size=0, warmup_epochs=0),
    train=TrainConfig(epochs=3, batch_size_per_device=3, log_every=1, eval_every=1, device="cpu"),
)


class ThreeClips:
    """The same three clips in every epoch, as one batch."""

    num_batches = 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1)
        clips = torch.randint(0, 256, (3, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
        keys = [SampleKey(epoch, i) for i in range(3)]
        yield Batch(clips, keys, labels=torch.tensor([0, 1, 3]), num_clips=3)


@cache
def losses(config: RunConfig) -> tuple[float, ...]:
    """Losses of the three steps of a run, with an evaluation (which changes nothing) after each."""
    loader = ThreeClips()
    objective = build.build_objective(config, build.build_trainee(config, 4))
    plan = plan_steps(config, loader.num_batches, world_size=1)
    with TemporaryDirectory() as run:
        fit(
            objective,
            loader,
            build.build_augment(config, 4, training=True),
            create_optimizer(objective, config.optim),
            create_schedule(config.optim, plan),
            config=config,
            run=Path(run),
            device=torch.device("cpu"),
            evaluate=lambda step, epoch: {},
        )
        lines = map(json.loads, (Path(run) / "metrics.jsonl").read_text().splitlines())
        return tuple(line["loss"] for line in lines if line["kind"] == "train")


def changed(section: str, **values: Any) -> RunConfig:
    return replace(PLAIN, **{section: replace(getattr(PLAIN, section), **values)})


@pytest.mark.parametrize(
    "config",
    [
        changed("tokens", kind="random", keep_ratio=1.0),
        changed("tokens", kind="tube", keep_ratio=1.0),
        changed("tokens", kind="redundancy", keep_ratio=1.0),
        changed("tokens", kind="group-dynamic", token_budget=8),
        changed("tokens", kind="run-length", budget="batch", keep_ratio=1.0),
        changed("tokens", threshold=0.7, keep_ratio=0.2),
        changed("tokens", frame_selection=1.0),
        changed("optim", ema_decay=0.9),
        changed("optim", layer_decay=1.0, momentum=0.3),
        changed("augment", mix_prob=0.0, mixup_alpha=0.0, randaugment_magnitude=9.0),
        changed("model", attention="sdpa"),
        changed("model", checkpointing=True),
    ],
    ids=lambda config: str(
        [
            k
            for k in ("tokens", "optim", "augment", "model")
            if getattr(config, k) != getattr(PLAIN, k)
        ]
    ),
)
def test_off_is_bit_identical(config: RunConfig) -> None:
    assert len(losses(PLAIN)) == 3
    assert losses(config) == losses(PLAIN)


def test_run_length_that_keeps_everything_is_identical() -> None:
    """At a threshold below every difference all tubelets are kept, packed one by one, and nothing else changes."""
    config = replace(PLAIN, tokens=TokensConfig(kind="run-length", threshold=0.0))
    assert losses(config) == losses(PLAIN)


@pytest.mark.parametrize(
    "tokens",
    [
        TokensConfig(kind="random", keep_ratio=1.0),
        TokensConfig(kind="redundancy", keep_ratio=1.0),
        TokensConfig(kind="run-length", threshold=0.0),
    ],
    ids=lambda tokens: tokens.kind,
)
def test_masking_within_all_tokens_is_masking_without_a_selector(tokens: TokensConfig) -> None:
    objective = ObjectiveConfig(kind="masked", mask="random", mask_ratio=0.75)
    masked = replace(PLAIN, objective=objective)
    assert losses(replace(masked, tokens=tokens)) == losses(masked)
    assert losses(masked) != losses(replace(masked, objective=replace(objective, decode_ratio=0.5)))


def test_length_embedding_starts_as_nothing() -> None:
    """Zero at the start: the first loss is the same, and the second is not."""
    tokens = TokensConfig(kind="run-length", threshold=3.0)
    without, with_it = (
        losses(replace(PLAIN, tokens=replace(tokens, length_embedding=on))) for on in (False, True)
    )
    assert without[0] == with_it[0]
    assert without[1:] != with_it[1:]


@pytest.mark.parametrize(
    "config",
    [
        changed("tokens", kind="random", keep_ratio=0.5),
        changed("tokens", kind="run-length", threshold=3.0),
        changed("tokens", kind="redundancy"),
        changed("augment", mixup_alpha=0.8),
        changed("model", drop_path_rate=0.5),
        changed("objective", label_smoothing=0.1),
    ],
    ids=["random", "run-length", "redundancy", "mixup", "drop-path", "smoothing"],
)
def test_on_is_not_off(config: RunConfig) -> None:
    """The comparison can fail: each of these does something."""
    assert losses(config) != losses(PLAIN)
