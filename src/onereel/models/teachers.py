"""Frozen models whose features a student learns: what they see of a clip, and what they say of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.models.blocks import Block
from onereel.models.heads import BudgetHeads, ProjectionHead, TokenPool
from onereel.models.pooling import pool_tokens
from onereel.models.vit import VisionTransformer
from onereel.tokens.packing import pack, pack_all, unpack
from onereel.tokens.tubelets import clip_grid, patchify
from onereel.types import Packed, TokenSelection, TubeletGrid

Stats = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of R, G, B in 0..1."""


class TeacherFeatures(NamedTuple):
    """What a teacher says of B clips, tokens in order (t, h, w) of its own grid.

    Attributes:
        layers: what each of the blocks asked for gives, `(B, N, D)`; zeros where a token was not shown.
        final: one feature per clip, `(B, E)`.
        grid: N tokens.
        attention: share of the last block's attention, from the class token, that each token has: `(B, N)`, the mean
            over heads; None where it was not asked for.
    """

    layers: tuple[Tensor, ...]
    final: Tensor
    grid: TubeletGrid
    attention: Tensor | None = None


class FeatureRow(NamedTuple):
    """How what a teacher says of one clip is laid out in one row of numbers: layers, final feature, attention.

    Attributes:
        num_layers, embed_dim, final_dim: of `TeacherFeatures`; tokens are those of `grid`.
        attends: whether attention is part of it.
    """

    num_layers: int
    grid: TubeletGrid
    embed_dim: int
    final_dim: int
    attends: bool

    @classmethod
    def like(cls, said: TeacherFeatures) -> FeatureRow:
        """The layout of `said`."""
        width = said.layers[0].shape[-1] if said.layers else 0
        attends = said.attention is not None
        return cls(len(said.layers), said.grid, width, said.final.shape[-1], attends)

    @property
    def sizes(self) -> list[int]:
        """Numbers of each part."""
        of_tokens = self.grid.num_tokens * self.embed_dim
        return [*[of_tokens] * self.num_layers, self.final_dim, self.grid.num_tokens * self.attends]

    def rows(self, said: TeacherFeatures) -> Tensor:
        """float32 `(B, sum(sizes))`."""
        parts = [*(layer.flatten(1) for layer in said.layers), said.final]
        if said.attention is not None:
            parts.append(said.attention)
        return torch.cat([part.float() for part in parts], dim=1)

    def said(self, rows: Tensor) -> TeacherFeatures:
        """What became these `rows`."""
        *layers, final, attention = rows.split(self.sizes, dim=1)
        shape = (self.grid.num_tokens, self.embed_dim)
        return TeacherFeatures(
            tuple(layer.unflatten(1, shape) for layer in layers),
            final,
            self.grid,
            attention if self.attends else None,
        )


@dataclass(frozen=True)
class View:
    """How a teacher sees clips that are normalised for a student.

    Attributes:
        scale, shift: per colour; from the student's normalisation to the teacher's.
        num_frames: frames it takes, evenly spread, repeated where the clip has fewer; 0: those of the clip.
        size: pixels per side; 0: those of the clip.
    """

    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)
    num_frames: int = 0
    size: int = 0

    @classmethod
    def between(cls, student: Stats, teacher: Stats, num_frames: int, size: int) -> View:
        """The view of a teacher trained on pixels of other statistics."""
        pairs = list(zip(*student, *teacher, strict=True))
        scale = tuple(of_ours / of_its for _, of_ours, _, of_its in pairs)
        shift = tuple((ours - its) / of_its for ours, _, its, of_its in pairs)
        return cls(scale, shift, num_frames, size)

    def __call__(self, clips: Tensor) -> Tensor:
        """Normalised `(B, T, C, H, W)` as the teacher sees them; untouched where there is nothing to change."""
        given = clips.shape[1]
        if self.num_frames and self.num_frames != given:
            centres = torch.arange(1, 2 * self.num_frames, 2, device=clips.device)
            clips = clips[:, centres * given // (2 * self.num_frames)]
        if self.size and clips.shape[-2:] != (self.size, self.size):
            frames, shape = clips.flatten(0, 1), (self.size, self.size)
            frames = F.interpolate(frames, shape, mode="bilinear", antialias=True)
            clips = frames.unflatten(0, clips.shape[:2])
        if self.scale != View.scale or self.shift != View.shift:
            scale, shift = (
                torch.stack([clips.new_full((1, 1), value) for value in values])
                for values in (self.scale, self.shift)
            )
            clips = clips * scale + shift
        return clips


class Teacher(nn.Module, ABC):
    """A frozen model: no gradients, always in evaluation mode.

    Attributes:
        depth: blocks.
        embed_dim: width of what a block gives.
        final_dim: width of the final feature.
        view: how it sees a clip of which it is shown all.
        attends: whether it has a class token, and so can say where it looks.
        tubelet_size, patch_size: where it can be shown part of the tokens, those of its tubelets; else None.
    """

    depth: int
    embed_dim: int
    final_dim: int
    view: View
    attends: bool
    tubelet_size: int | None = None
    patch_size: int | None = None

    def freeze(self) -> None:
        """To be called when all parts are there."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def fits(self, encoder: VisionTransformer) -> bool:
        """Whether it can be shown some of the tokens that `encoder` sees, and no others."""
        return (self.tubelet_size, self.patch_size) == (encoder.tubelet_size, encoder.patch_size)

    def fingerprint(self) -> str:
        """A hash of what its features depend on: weights and view."""
        digest = hashlib.sha256(repr((type(self).__name__, self.view)).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(
        self,
        clips: Tensor,
        layers: Sequence[int],
        pool: TokenSelection | None = None,
        *,
        attention: bool = False,
    ) -> TeacherFeatures:
        """What it says of `clips (B, T, C, H, W)`, normalised for the student.

        Args:
            layers: blocks (from 0) to give the features of, in this order.
            pool: the tokens of the clips, as they are, that it is shown; None: its own view of all.
            attention: whether to say where it looks.
        """
        found = self.see(clips, sorted(set(layers)), pool, attention)
        by_number = dict(zip(sorted(set(layers)), found.layers, strict=True))
        return found._replace(layers=tuple(by_number[number] for number in layers))

    @abstractmethod
    def see(
        self,
        clips: Tensor,
        layers: Sequence[int],
        pool: TokenSelection | None,
        attention: bool,
    ) -> TeacherFeatures:
        """As `forward`, for blocks in rising order."""

    @abstractmethod
    def macs(self, batch_size: int, num_frames: int, size: int, num_shown: int = 0) -> int:
        """Multiply-adds of a forward of clips of this shape; `num_shown` tokens of each, or all."""


class OwnTeacher(Teacher):
    """A vision transformer of ours.

    Args:
        encoder: of a classifier, of pre-training, or of a video-language model.
        head: whose pooled feature, or embedding, is the final one; None: the mean of the tokens.
        view: how it sees clips.
    """

    def __init__(
        self, encoder: VisionTransformer, head: TokenPool | BudgetHeads | None, view: View
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.view = encoder, head, view
        self.depth, self.embed_dim = encoder.depth, encoder.embed_dim
        self.attends = encoder.cls_token is not None and encoder.depth > 1
        self.tubelet_size, self.patch_size = encoder.tubelet_size, encoder.patch_size
        if isinstance(head, ProjectionHead):
            self.final_dim = head.fc.out_features
        elif isinstance(head, BudgetHeads):
            self.final_dim = head.head_of(0).feature_dim
        else:
            self.final_dim = encoder.embed_dim if head is None else head.feature_dim
        self.freeze()

    def see(
        self,
        clips: Tensor,
        layers: Sequence[int],
        pool: TokenSelection | None,
        attention: bool,
    ) -> TeacherFeatures:
        encoder = self.encoder
        # Tokens that were chosen are those of the clip as it is.
        view = self.view if pool is None else replace(self.view, num_frames=0, size=0)
        clips = view(clips)
        block = (encoder.tubelet_size, encoder.patch_size)
        grid, patches = clip_grid(clips, *block), patchify(clips, *block)
        tokens = pack_all(patches, grid) if pool is None else pack(patches, pool, grid)
        before_last = [encoder.depth - 2] if attention else []
        wanted = sorted({*layers, *before_last})
        features, between = encoder.forward_layers(tokens, None, wanted)
        by_number = dict(zip(wanted, between, strict=True))
        return TeacherFeatures(
            tuple(_dense(features, by_number[number]) for number in layers),
            self._final(features, tokens.lengths[0]),
            grid,
            self._attention(features, by_number[encoder.depth - 2]) if attention else None,
        )

    def _final(self, features: Packed, num_tokens: int) -> Tensor:
        head = self.head
        if isinstance(head, ProjectionHead):
            return head(features)
        if isinstance(head, BudgetHeads):
            head = head.head_of(num_tokens)
        return pool_tokens(features, "mean") if head is None else head.pooled(features)

    def _attention(self, features: Packed, x: Tensor) -> Tensor:
        """Where the class tokens look in the last block, whose input is `x`."""
        last = self.encoder.blocks[-1]
        assert isinstance(last, Block)
        angles = self.encoder.segments(features).angles
        q, k, _ = (part.float() for part in last.attn.heads(last.norm1(x), angles))
        q, k = (part.unflatten(0, (features.batch_size, -1)) for part in (q, k))
        logits = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * q.shape[-1] ** -0.5
        shares = logits.softmax(dim=-1).mean(dim=1)
        return _dense(features, shares.flatten()[:, None]).squeeze(-1)

    def macs(self, batch_size: int, num_frames: int, size: int, num_shown: int = 0) -> int:
        encoder = self.encoder
        if not num_shown:
            frames, side = self.view.num_frames or num_frames, self.view.size or size
            num_shown = (frames // encoder.tubelet_size) * (side // encoder.patch_size) ** 2
        return encoder.macs((num_shown,) * batch_size)


def _dense(features: Packed, values: Tensor) -> Tensor:
    """`values`, one per token of `features`, at their places in the grid: `(B, N, D)`, without class tokens."""
    num_tokens = features.grid.num_tokens
    has_class = features.lengths[0] == num_tokens + 1
    if features.is_uniform and (has_class or features.lengths[0] == num_tokens):
        return values.unflatten(0, (features.batch_size, -1))[:, int(has_class) :]
    return unpack(replace(features, values=values))


def resize_features(features: Tensor, old: TubeletGrid, new: TubeletGrid) -> Tensor:
    """`features (B, N, D)` of grid `old` at the token centres of grid `new`, both over the same clip: trilinear.

    float32, or untouched where the grids agree. Beyond the outermost centres the nearest value holds.
    """
    if old == new:
        return features
    volume = features.float().unflatten(1, tuple(old)).movedim(-1, 1)
    resized = F.interpolate(volume, tuple(new), mode="trilinear", align_corners=False)
    return resized.movedim(1, -1).flatten(1, 3)
