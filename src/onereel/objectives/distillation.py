"""Learning a frozen teacher's features from part of a clip's tokens (UMT, arXiv 2303.16058; Flux-UMT, 2503.14237)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onereel.errors import ConfigError
from onereel.models.choosing import dense_grid
from onereel.models.positions import positions_of
from onereel.models.teachers import TeacherFeatures, resize_features
from onereel.objectives.base import (
    BACKWARD_FLOPS,
    draw_budgets,
    layer_of_vit,
    stats,
    undecayed_of_vit,
)
from onereel.seeding import clip_generators
from onereel.tokens.packing import per_token, segment_mean
from onereel.tokens.positions import flat_index, sincos_positions
from onereel.types import Batch, Packed, SampleKey, TokenSelection, TubeletGrid

if TYPE_CHECKING:
    from onereel.models.choosing import Generators
    from onereel.models.student import Shown, Student
    from onereel.models.teachers import Teacher


class Lessons(Protocol):
    """What a teacher said of clips before."""

    def recall(self, keys: Sequence[SampleKey], device: torch.device) -> TeacherFeatures | None:
        """Of the training clips `keys`; None where one of them is not known."""
        ...


@dataclass(frozen=True)
class Alignment:
    """Which features are to be alike.

    Attributes:
        student_layers, teacher_layers: blocks (from 0), in pairs.
        layer_weight: of the mean over pairs and tokens; final_weight: of the clip's feature.
    """

    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    layer_weight: float = 1.0
    final_weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.student_layers and self.layer_weight) and not self.final_weight:
            raise ConfigError(
                "nothing is to be learned: distill.num_layers or distill.layer_weight is 0, and so is "
                "distill.final_weight; raise one"
            )


def spread_layers(count: int, student_depth: int, teacher_depth: int) -> tuple[int, ...]:
    """Blocks of the teacher that the student's last `count` are aligned with, from the last on.

    Evenly by depth: 39, 36, 33, 29, 26, 23 of 40 for the last six of 12, as InternVideo2's distillation.
    """
    return tuple(teacher_depth - 1 - i * teacher_depth // student_depth for i in range(count))


class Projection(nn.Module):
    """Linear, GELU, linear, LayerNorm: from the student's features to the teacher's (InternVideo2's decoder)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_dim, in_dim), nn.Linear(in_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., out_dim)`."""
        return self.norm(self.fc2(F.gelu(self.fc1(x))))


class DistillationObjective(nn.Module):
    """`2 - 2 cos` of projected student and teacher features: of tokens at aligned blocks, and of whole clips.

    Without budgets the student sees what its selector keeps. With budgets they share decoding, patch embedding, and the
    teacher; their losses are averaged.

    Args:
        model: the student.
        teacher: no part of the module: it is neither trained, saved, averaged nor exchanged. It moves along with the
            module, and its hash is saved.
        alignment: which features, and their weights.
        seed: of the run; selectors, masks and drop path draw from (seed, epoch, index, view).
        budgets_per_step: so many of the student's budgets, drawn for each micro-batch; 0: all.
        lessons: what the teacher said of the training clips, where that is known beforehand.
    """

    teacher_hash: Tensor
    places: Tensor

    def __init__(
        self,
        model: Student,
        teacher: Teacher,
        alignment: Alignment,
        seed: int = 0,
        *,
        budgets_per_step: int = 0,
        lessons: Lessons | None = None,
    ) -> None:
        super().__init__()
        self.model, self.alignment, self.seed, self.lessons = model, alignment, seed, lessons
        self.budgets_per_step = budgets_per_step or len(model.budgets)
        self._unregistered = (teacher,)
        encoder = model.encoder
        self.shows_pool = teacher.fits(encoder)
        self.num_layers = encoder.depth + 2
        width = encoder.embed_dim
        pairs = alignment.student_layers if alignment.layer_weight else ()
        # Drawn even where it is left out, so that the others start as they do with it.
        final = Projection(model.head.feature_dim, teacher.final_dim)
        self.final = final if alignment.final_weight else None
        self.projections = nn.ModuleList(Projection(width, teacher.embed_dim) for _ in pairs)
        # The published one has a table of its own for this, sine-cosine at first.
        table = sincos_positions(encoder.grid, width)
        self.register_buffer("places", table, persistent=False)
        fingerprint = bytes.fromhex(teacher.fingerprint())
        self.register_buffer("teacher_hash", torch.tensor(list(fingerprint), dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_check_teacher)

    @property
    def teacher(self) -> Teacher:
        return self._unregistered[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistillationObjective:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """`loss`; `layer_loss`, `final_loss`, where they have a weight: float32 means over the clips; and `stats`."""
        assert isinstance(batch.clips, Tensor)  # the configuration refuses the loader's selection
        generators = clip_generators(self.seed, batch.keys)
        budgets = self.model.budgets
        if self.training and self.budgets_per_step < len(budgets):
            budgets = draw_budgets(budgets, self.budgets_per_step, batch, self.seed)
        shown = self.model.show(batch.clips, batch.scoring_clips, generators, budgets)
        recalled = self.lessons is not None and self.training
        said = self._said(batch, shown.pool)
        parts = self.model.tokens(shown, _attention_on(shown.grid, said), generators)
        targets = [resize_features(layer, said.grid, shown.grid) for layer in said.layers]
        named: dict[str, list[Tensor]] = {}
        for number, tokens in enumerate(parts):
            losses = self._losses(tokens, targets, said.final, self.model.draws(generators, number))
            for name, value in losses.items():
                named.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in named.items()}
        weights = {"layer_loss": self.alignment.layer_weight}
        weights["final_loss"] = self.alignment.final_weight
        loss = torch.stack([weights[name] * value for name, value in means.items()]).sum()
        scalars = {name: value.detach() for name, value in means.items()}
        if batch.num_clips == 0:
            zeros = {name: value * 0.0 for name, value in scalars.items()}
            return {"loss": loss * 0.0, **zeros, "stats": stats(0, 0, 0.0)}
        return {"loss": loss, **scalars, "stats": self._stats(batch.clips, shown, parts, recalled)}

    def shown(self, batch: Batch) -> Packed:
        """The embedded tokens that the student sees of a normalised batch, by its largest budget."""
        assert isinstance(batch.clips, Tensor)
        generators, model = clip_generators(self.seed, batch.keys), self.model
        shown = model.show(batch.clips, batch.scoring_clips, generators, model.budgets)
        attention = None
        if model.by_attention:
            attention = _attention_on(shown.grid, self._said(batch, shown.pool))
        return model.tokens(shown, attention, generators)[0]

    def _said(self, batch: Batch, pool: TokenSelection | None) -> TeacherFeatures:
        if self.lessons is not None and self.training and batch.num_clips:
            recalled = self.lessons.recall(batch.keys, batch.clips.device)
            if recalled is not None:
                return recalled
        assert isinstance(batch.clips, Tensor)
        return self.ask(batch.clips, pool if self.shows_pool else None)

    def ask(self, clips: Tensor, pool: TokenSelection | None = None) -> TeacherFeatures:
        """What the teacher says of normalised `clips (B, T, C, H, W)`, or of the `pool` of their tokens."""
        layers = self.alignment.teacher_layers if len(self.projections) else ()
        return self.teacher(clips, layers, pool, attention=self.model.by_attention)

    def _losses(
        self,
        tokens: Packed,
        targets: Sequence[Tensor],
        final: Tensor,
        generators: Generators,
    ) -> dict[str, Tensor]:
        """Of one budget's embedded `tokens`; `targets (B, N, E)` of their grid, for each aligned block."""
        encoder = self.model.encoder
        layers = self.alignment.student_layers if len(self.projections) else ()
        features, between = encoder.forward_layers(tokens, generators, layers, embedded=True)
        losses = {}
        if targets:
            # As UMT adds where a token lies before it is compared; class tokens have no place, and none is compared.
            is_tubelet = features.coordinates[:, 0] >= 0
            (rows,) = torch.nonzero_static(is_tubelet, size=sum(tokens.lengths)).T
            places = positions_of(tokens, self.places, encoder.grid, "sincos")
            clip = per_token(torch.arange(tokens.batch_size, device=tokens.device), tokens)
            place = flat_index(tokens.coordinates, tokens.grid)
            errors = [
                distance(project(x[rows] + places), target[clip, place])
                for project, x, target in zip(self.projections, between, targets, strict=True)
            ]
            error = torch.stack(errors).mean(dim=0)[:, None]
            losses["layer_loss"] = segment_mean(error, tokens.lengths, tokens.cu_seqlens).mean()
        if self.final is None:
            # What comes after the last block has no part in the loss then, but takes part in the step.
            idle = [features.values, *self.model.head.parameters()]
            untouched = torch.stack([x.float().sum() * 0.0 for x in idle]).sum()
            losses["layer_loss"] = losses["layer_loss"] + untouched
        else:
            pooled = self.model.head.pooled(features)
            losses["final_loss"] = distance(self.final(pooled), final).mean()
        return losses

    def _stats(
        self, clips: Tensor, shown: Shown, parts: Sequence[Packed], recalled: bool
    ) -> dict[str, float]:
        batch, num_frames, _, size, _ = clips.shape
        lengths = [tokens.lengths for tokens in parts]
        macs = self.model.macs(shown.grid, lengths)
        macs += sum(map(sum, lengths)) * _num_weights(self.projections)
        macs += batch * len(parts) * _num_weights(self.final)
        macs *= 1 + BACKWARD_FLOPS
        if not recalled:
            pool = shown.pool if self.shows_pool else None
            num_shown = 0 if pool is None else pool.num_kept or 0
            macs += self.teacher.macs(batch, num_frames, size, num_shown)
        num_dense = dense_grid(self.model.frames, shown.grid).num_tokens * batch * len(parts)
        return stats(sum(map(sum, lengths)), num_dense, 2.0 * macs)

    def layer_of(self, name: str) -> int:
        """As for classification; the projections learn with the last layer."""
        return layer_of_vit(name, self.num_layers - 2)

    def no_weight_decay(self) -> set[str]:
        return undecayed_of_vit(name for name, _ in self.named_parameters())


def _num_weights(part: nn.Module | None) -> int:
    """Multiply-adds of its linear layers for one row."""
    return 0 if part is None else sum(p.numel() for p in part.parameters() if p.ndim == 2)


def distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`2 - 2 cos` of the rows of `(M, E)`, in float32: `(M,)`."""
    student, teacher = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
    return 2 - 2 * (student * teacher).sum(dim=-1)


def _attention_on(grid: TubeletGrid, said: TeacherFeatures) -> Tensor | None:
    """The teacher's attention on the student's grid: `(B, N)`."""
    if said.attention is None:
        return None
    return resize_features(said.attention[..., None], said.grid, grid).squeeze(-1)


def _check_teacher(
    objective: DistillationObjective, state: Mapping[str, Tensor], prefix: str, *_: Any
) -> None:
    """Raise ConfigError where a run would go on with another teacher than it began with."""
    then = state.get(f"{prefix}teacher_hash")
    if then is not None and not torch.equal(then.cpu(), objective.teacher_hash.cpu()):
        raise ConfigError(
            "the run cannot go on: its teacher's weights, or how it sees clips, are no longer those that it "
            "began with. Put them back, or start a new run"
        )
