"""One model for every token budget: several budgets of each clip in one step, the smaller taught by the largest (Flux,
arXiv 2503.14237, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.objectives.base import (
    BACKWARD_FLOPS,
    draw_budgets,
    layer_of_vit,
    stats,
    undecayed_of_vit,
)
from onereel.objectives.classification import targets_of
from onereel.seeding import clip_generators
from onereel.types import Batch

if TYPE_CHECKING:
    from onereel.models.video_model import Output, VideoModel


class MultiBudgetObjective(nn.Module):
    """Cross-entropies of every budget's logits, summed, plus what aligns the smaller budgets' pooled features, through
    a linear layer each, with the largest one's, which gets no gradient of it.

    Args:
        model: with `BudgetHeads` of the same `budgets`.
        budgets: tokens kept of a clip, falling.
        budgets_per_step: so many of them, drawn for each micro-batch (the same on all ranks); the largest of these
            teaches, and the gradient of heads and layers that were not drawn is zero. 0: all.
        alignment: weight of the alignment; its terms are summed over the smaller budgets.
        alignment_loss: see `alignment_of`.
        label_smoothing: share of the target spread evenly over all classes.
        seed: of the run; selectors, drop path and dropout draw from (seed, epoch, index, view).
    """

    def __init__(
        self,
        model: VideoModel,
        budgets: Sequence[int],
        *,
        budgets_per_step: int = 0,
        alignment: float = 0.1,
        alignment_loss: Literal["cosine", "smooth-l1"] = "cosine",
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.budgets = tuple(budgets)
        self.budgets_per_step = budgets_per_step or len(self.budgets)
        self.alignment, self.alignment_loss = alignment, alignment_loss
        self.label_smoothing, self.seed = label_smoothing, seed
        self.num_layers = model.encoder.depth + 2
        width = model.head_of(self.budgets[0]).feature_dim
        self.aligners = nn.ModuleList(_identity(width) for _ in self.budgets[1:])

    def forward(self, batch: Batch) -> dict[str, Any]:
        """float32 means over the clips of `batch` (normalised floats), and `stats`: `loss`; `top1` and
        `top1_smallest` of the largest and smallest budget of the step; `alignment`, unweighted.

        Raises:
            DataError: the batch has no labels.
        """
        if batch.num_clips == 0:
            loss = _zero(self.parameters())
            figures = dict.fromkeys(("top1", "top1_smallest", "alignment"), loss.detach())
            return {"loss": loss, **figures, "stats": stats(0, 0, 0.0)}
        assert isinstance(batch.clips, Tensor)  # the configuration refuses selection in the loader
        budgets = draw_budgets(self.budgets, self.budgets_per_step, batch, self.seed)
        outputs = self.model.forward_budgets(
            batch.clips,
            scoring_clips=batch.scoring_clips,
            generators=clip_generators(self.seed, batch.keys),
            budgets=budgets,
        )
        target, label = targets_of(batch)
        logits = [output.logits.float() for output in outputs]
        losses = [F.cross_entropy(x, target, label_smoothing=self.label_smoothing) for x in logits]
        alignment = self._alignment(budgets, outputs)
        loss = torch.stack(losses).sum() + self.alignment * alignment
        if len(budgets) < len(self.budgets):
            loss = loss + _zero(self._resting(budgets))
        hits = [(x.detach().argmax(dim=1) == label).float().mean() for x in (logits[0], logits[-1])]
        return {
            "loss": loss,
            "top1": hits[0],
            "top1_smallest": hits[1],
            "alignment": alignment.detach(),
            "stats": self._stats(outputs),
        }

    def _alignment(self, budgets: Sequence[int], outputs: Sequence[Output]) -> Tensor:
        teacher = outputs[0].pooled.detach().float()
        total = teacher.new_zeros(())
        for budget, output in zip(budgets[1:], outputs[1:]):
            aligner = self.aligners[self.budgets.index(budget) - 1]
            total = total + alignment_of(
                aligner(output.pooled).float(), teacher, self.alignment_loss
            )
        return total

    def _resting(self, budgets: Sequence[int]) -> list[nn.Parameter]:
        """Parameters of the heads and aligners that these budgets don't use."""
        resting: list[nn.Parameter] = []
        for number, budget in enumerate(self.budgets):
            if budget not in budgets:
                resting += self.model.head_of(budget).parameters()
            if number and budget not in budgets[1:]:
                resting += self.aligners[number - 1].parameters()
        return resting

    def _stats(self, outputs: Sequence[Output]) -> dict[str, float]:
        macs = self.model.budget_macs(outputs, BACKWARD_FLOPS)
        num_tokens = sum(sum(output.lengths) for output in outputs)
        num_dense = sum(output.num_dense_tokens * len(output.lengths) for output in outputs)
        return stats(num_tokens, num_dense, 2.0 * macs)

    def layer_of(self, name: str) -> int:
        encoder = self.model.encoder
        return layer_of_vit(name, encoder.depth, encoder.temporal_depth)

    def no_weight_decay(self) -> set[str]:
        return undecayed_of_vit(name for name, _ in self.named_parameters())


def alignment_of(student: Tensor, teacher: Tensor, kind: Literal["cosine", "smooth-l1"]) -> Tensor:
    """How far the directions of `student` are from those of `teacher`, both float32 `(B, F)`, as a mean over clips.

    cosine: 2 - 2 cos, 0 to 4. smooth-l1: the mean over values, as released, which on unit vectors is (1 - cos) / F: at
    F = 768 never above 0.0026, beside cross-entropies of 1 to 6.
    """
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if kind == "smooth-l1":
        return F.smooth_l1_loss(student, teacher)
    return (2 - 2 * (student * teacher).sum(dim=-1)).mean()


def _identity(width: int) -> nn.Linear:
    """A linear layer that changes nothing yet: equal features are aligned from the start."""
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _zero(parameters: Iterable[nn.Parameter]) -> Tensor:
    """0 that reaches all of `parameters`: each has a gradient in every step, for which other processes wait."""
    return torch.stack([(p * 0.0).sum() for p in parameters if p.requires_grad]).sum()
