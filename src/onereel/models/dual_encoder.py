"""Clips and captions into one space: a video tower, a text tower, and a tokenizer (CLIP, arXiv 2103.00020; AVION)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.models.text import TextTower, Tokenizer
from onereel.models.video_model import Output, VideoModel
from onereel.tokens.packing import to_device
from onereel.types import Packed

OtherModel = TypeVar("OtherModel", bound=nn.Module)


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
        budget: int = 0,
    ) -> tuple[Tensor, Output]:
        """float32 `(B, E)`, and what the video tower gave; arguments as `VideoModel.forward`."""
        output = self.video(clips, scoring_clips, generators, budget)
        return F.normalize(output.logits.float(), dim=-1), output

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """float32 `(B, E)`."""
        return self.encode_tokens(self.tokenizer(captions))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """float32 `(B, E)` of token ids `(B, L)` on any device."""
        device = self.text.model.text_projection.weight.device
        features = self.text(to_device(tokens, device))
        return F.normalize(features.float(), dim=-1)

    def save_pretrained(self, folder: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
        """Write weights, configuration, tokenizer and card for `onereel.load_dual_encoder(folder)`: see
        `pretrained.folder.write_folder`."""
        from onereel.models.pretrained.folder import write_folder

        return write_folder(folder, self, facts=facts)

    def push_to_hub(
        self, name: str, facts: Mapping[str, Any] | None = None, *, private: bool = True
    ) -> str:
        """Upload the same as the model `owner/name` of the Hugging Face Hub: see `pretrained.folder.push_folder`."""
        from onereel.models.pretrained.folder import push_folder

        return push_folder(name, self, facts=facts, private=private)


@overload
def video_of(model: DualEncoder) -> VideoModel: ...
@overload
def video_of(model: OtherModel) -> OtherModel: ...
def video_of(model: Any) -> Any:
    """The model of videos in a run's model: one of two towers, or all of it."""
    return model.video if isinstance(model, DualEncoder) else model
