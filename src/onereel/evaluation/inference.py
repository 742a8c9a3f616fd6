"""One batch through a model without gradients: what evaluation, prediction and timing share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onereel.errors import ConfigError, OnereelError
from onereel.seeding import clip_generators
from onereel.types import Batch

if TYPE_CHECKING:
    from onereel.models.video_model import Output, VideoModel

BatchTransform = Callable[[Batch, torch.device], Batch]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of `precision`: float32, bf16, or auto (bf16 on CUDA, float32 on CPU)."""
    if precision not in ("auto", "float32", "bf16"):
        raise ConfigError(f"precision is {precision!r}; allowed: auto, float32, bf16")
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """`model` in evaluation mode and without gradients; its mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def view_probabilities(
    model: VideoModel, batch: Batch, *, precision: str = "auto", seed: int = 0
) -> tuple[Tensor, Output]:
    """Softmax of one normalised batch: float32 `(B, num_classes)`, and the model's output.

    Raises OnereelError naming the sample where the model's output is not finite.
    """
    with autocast(batch.clips.device, precision):
        output = model(
            batch.clips,
            scoring_clips=batch.scoring_clips,
            generators=clip_generators(seed, batch.keys),
        )
    probabilities = output.logits.float().softmax(dim=-1)
    finite = probabilities.isfinite().all(dim=-1).cpu()
    if not finite.all():
        key = batch.keys[int(finite.int().argmin())]
        raise OnereelError(
            f"the model's output for sample {key.index}, view {key.view} is not finite: its weights are broken; "
            "evaluate an earlier checkpoint, or use precision float32"
        )
    return probabilities, output
