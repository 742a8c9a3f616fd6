"""The loss of an objective without labels on clips that it was not trained on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from onereel.errors import OnereelError
from onereel.evaluation.inference import BatchTransform, autocast, evaluating
from onereel.evaluation.ranks import gather

if TYPE_CHECKING:
    from onereel.data.loader import ClipLoader
    from onereel.objectives import DistillationObjective, MaskedObjective


def evaluate_loss(
    objective: MaskedObjective | DistillationObjective,
    loader: ClipLoader,
    augment: BatchTransform,
    *,
    device: torch.device,
    precision: str = "auto",
) -> dict[str, float]:
    """Mean `loss` over all clips and ranks, share of tokens that the model computes, clips per second and seconds.

    Masks are drawn as in training, for the keys of the loader's epoch 0: every call has the same ones.

    Raises:
        OnereelError: a sample cannot be read, on whichever rank.
    """
    sums, failure, start = torch.zeros(4, dtype=torch.float64), None, time.perf_counter()
    try:
        with evaluating(objective):
            for batch in loader.batches(epoch=0):
                with autocast(device, precision):
                    output = objective(augment(batch, device))
                counts = output["stats"]
                loss = output["loss"].item() * batch.num_clips
                seen = (counts["num_tokens"], counts["num_tokens_dense"])
                sums += torch.tensor([batch.num_clips, loss, *seen], dtype=torch.float64)
    except OnereelError as error:
        failure = error
    seconds = time.perf_counter() - start
    num_clips, loss, num_tokens, num_dense = torch.stack(gather(sums, failure)).sum(dim=0).tolist()
    return {
        "loss": loss / max(1.0, num_clips),
        "kept_ratio": num_tokens / max(1.0, num_dense),
        "clips_per_second": num_clips / max(seconds, 1e-9),
        "seconds": seconds,
    }
