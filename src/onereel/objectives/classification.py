"""Supervised classification: one label, or a mixture of labels, per clip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from onereel.errors import DataError
from onereel.objectives.base import BACKWARD_FLOPS, layer_of_vit, stats, undecayed_of_vit
from onereel.seeding import clip_generators
from onereel.types import Batch, FrameFeatures

if TYPE_CHECKING:
    from onereel.models.video_model import VideoModel


class ClassificationObjective(nn.Module):
    """Cross-entropy of a model's logits.

    Args:
        model: `model(clips, scoring_clips=, generators=)` gives `logits` `(B, num_classes)`, `lengths`,
            `num_dense_tokens`; `model.step_macs` the multiply-adds of a step.
        label_smoothing: share of the target spread evenly over all classes.
        seed: of the run; selectors, drop path and dropout draw from (seed, epoch, index, view).
    """

    def __init__(self, model: VideoModel, label_smoothing: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.num_layers = model.encoder.depth + 2

    def forward(self, batch: Batch) -> dict[str, Any]:
        """`loss` and `top1`, float32 means over the clips of `batch` (normalised floats), and `stats`.

        `top1` of a mixed clip counts the label with the larger weight.

        Raises:
            DataError: the batch has no labels.
        """
        output = self.model(
            batch.clips,
            scoring_clips=batch.scoring_clips,
            generators=clip_generators(self.seed, batch.keys),
        )
        logits = output.logits.float()
        if batch.num_clips == 0:
            zero = logits.sum() * 0.0
            return {"loss": zero, "top1": zero.detach(), "stats": stats(0, 0, 0.0)}
        target, label = targets_of(batch)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        top1 = (logits.detach().argmax(dim=1) == label).float().mean()
        from_frames = isinstance(batch.clips, FrameFeatures)
        counted = stats(
            sum(output.lengths),
            output.num_dense_tokens * len(output.lengths),
            2.0
            * self.model.step_macs(
                output.lengths, BACKWARD_FLOPS, output.grid, from_frames=from_frames
            ),
        )
        return {"loss": loss, "top1": top1, "stats": counted}

    def layer_of(self, name: str) -> int:
        encoder = self.model.encoder
        return layer_of_vit(name, encoder.depth, encoder.temporal_depth)

    def no_weight_decay(self) -> set[str]:
        return undecayed_of_vit(name for name, _ in self.named_parameters())


def targets_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """What cross-entropy compares with (classes, or shares per class), and one class per clip `(B,)`."""
    if batch.soft_labels is not None:
        return batch.soft_labels, batch.soft_labels.argmax(dim=1)
    if batch.labels is None:
        raise DataError(
            "classification needs a label per clip; the batch has none. Add a label column."
        )
    return batch.labels, batch.labels
