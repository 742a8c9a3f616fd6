"""Losses of video-text pairs against all others of a step: InfoNCE (CLIP) and the sigmoid loss (SigLIP).

All pair losses have one form. They see some rows of the step's similarities, n of N pairs, and give one loss per row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# CLIP (arXiv 2103.00020, section 2.5): temperature 0.07 at the start, logits scaled by 100 at most.
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100)
# SigLIP (arXiv 2303.15343, algorithm 1).
SIGMOID_LOGIT_SCALE = math.log(10)
SIGMOID_BIAS = -10.0


class InfoNce(nn.Module):
    """Cross-entropy of the own pair among all others, mean of both directions; the scale is learned.

    Args:
        freeze_scale: keep the scale at its initial 14.29, as AVION's released models were trained.
    """

    def __init__(self, freeze_scale: bool = False) -> None:
        super().__init__()
        scale = torch.tensor(INITIAL_LOGIT_SCALE)
        self.logit_scale = nn.Parameter(scale, requires_grad=not freeze_scale)

    def clamp(self) -> None:
        """Keep the scale within 1 to 100."""
        with torch.no_grad():
            self.logit_scale.clamp_(0, MAX_LOGIT_SCALE)

    def forward(
        self, video_to_text: Tensor, text_to_video: Tensor, own: Tensor, ignored: Tensor
    ) -> Tensor:
        """Losses `(n,)`.

        Args:
            video_to_text: similarities of n clips with all texts of the step, float `(n, N)`.
            text_to_video: of the same n pairs' texts with all clips, `(n, N)`.
            own: int64 `(n,)`, which column is the row's own pair.
            ignored: bool `(n, N)`, others that are not negatives; never a row's own pair.

        Raises:
            ValueError: the shapes do not fit together.
        """
        check_rows(video_to_text, text_to_video, own, ignored)
        scale = self.logit_scale.exp()
        losses = [
            F.cross_entropy((scale * rows).masked_fill(ignored, -math.inf), own, reduction="none")
            for rows in (video_to_text, text_to_video)
        ]
        return (losses[0] + losses[1]) / 2


class SigmoidLoss(nn.Module):
    """Each pair alone: is it one or not? Scale and bias are learned (SigLIP, arXiv 2303.15343, equation 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(SIGMOID_LOGIT_SCALE))
        self.bias = nn.Parameter(torch.tensor(SIGMOID_BIAS))

    def clamp(self) -> None:
        """Nothing: the published loss leaves its scale free."""

    def forward(
        self, video_to_text: Tensor, text_to_video: Tensor, own: Tensor, ignored: Tensor
    ) -> Tensor:
        """Losses `(n,)`; arguments and errors as `InfoNce`. The rows of clips hold every pair once, so they suffice."""
        check_rows(video_to_text, text_to_video, own, ignored)
        logits = self.logit_scale.exp() * video_to_text + self.bias
        is_own = torch.zeros_like(ignored).scatter_(1, own[:, None], True)
        losses = F.softplus(torch.where(is_own, -logits, logits))
        return losses.masked_fill(ignored, 0.0).sum(dim=1)


def check_rows(video_to_text: Tensor, text_to_video: Tensor, own: Tensor, ignored: Tensor) -> None:
    """Raise ValueError unless these are n rows of N pairs: a wrong shape would broadcast to a wrong loss."""
    shapes = [tuple(x.shape) for x in (video_to_text, text_to_video, ignored)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or own.shape != shapes[0][:1]:
        raise ValueError(
            f"similarities {shapes[0]} and {shapes[1]}, ignored {shapes[2]}, own {tuple(own.shape)}; "
            "allowed: (n, N) three times, and (n,)"
        )
    if ignored.dtype != torch.bool or own.dtype != torch.int64:
        raise ValueError(
            f"ignored is {ignored.dtype} and own {own.dtype}; allowed: torch.bool and torch.int64"
        )
