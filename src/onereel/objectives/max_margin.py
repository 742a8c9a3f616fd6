"""Multi-instance max-margin loss of video-text pairs (Wray et al., arXiv 1908.03477; EgoVLP, LaViLa, AVION)."""

from __future__ import annotations

from torch import Tensor, nn

from onereel.objectives.contrastive import check_rows


class MaxMargin(nn.Module):
    """The own pair must be more alike than any other of its row by a margin, in both directions.

    Several texts describe a clip more or less: which of them is the own one is drawn each epoch among those that the
    relevancy matrix calls relevant (`data.relevancy`); all others count as negatives, as published.

    Args:
        margin: 0.2 as published.
    """

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def clamp(self) -> None:
        """Nothing: there is no scale."""

    def forward(
        self, video_to_text: Tensor, text_to_video: Tensor, own: Tensor, ignored: Tensor
    ) -> Tensor:
        """Losses `(n,)`, whose mean over all N rows is that over the 2 N (N - 1) comparisons; as `InfoNce` else."""
        check_rows(video_to_text, text_to_video, own, ignored)
        kept = ~ignored.scatter(1, own[:, None], True)
        positive = video_to_text.gather(1, own[:, None])
        violations = [
            (self.margin - positive + rows).relu() for rows in (video_to_text, text_to_video)
        ]
        total = ((violations[0] + violations[1]) * kept).sum(dim=1)
        return total / (2 * kept.sum(dim=1)).clamp(min=1)
