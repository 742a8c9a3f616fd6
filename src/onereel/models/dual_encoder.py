"""Clips and captions into one space: a video tower, a text tower, and a tokenizer (CLIP, arXiv 2103.00020; AVION)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.models.text import TextTower, Tokenizer
from onereel.models.video_model import Output, VideoModel
from onereel.tokens.packing import to_device
from onereel.types import Packed


class DualEncoder(nn.Module):
    """Features of unit length, whose scalar products are similarities.

    Args:
        video: selector, encoder and a `ProjectionHead`.
        text: the tower that reads captions, with as many outputs.
        tokenizer: what the text tower was made for.
    """

    def __init__(self, video: VideoModel, text: TextTower, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.video, self.text, self.tokenizer = video, text, tokenizer

    def encode_video(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, Output]:
        """float32 `(B, E)`, and what the video tower gave; arguments as `VideoModel.forward`."""
        output = self.video(clips, scoring_clips, generators)
        return F.normalize(output.logits.float(), dim=-1), output

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """float32 `(B, E)`."""
        return self.encode_tokens(self.tokenizer(captions))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """float32 `(B, E)` of token ids `(B, L)` on any device."""
        device = self.text.model.text_projection.weight.device
        features = self.text(to_device(tokens, device))
        return F.normalize(features.float(), dim=-1)
