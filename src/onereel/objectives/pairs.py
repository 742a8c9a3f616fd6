"""Video-text pairs: every pair of a step is compared with all others, on all devices and in all micro-batches.

The towers see one micro-batch at a time, the loss sees the step: features first, without their graphs; then the loss
and its gradient for each feature; then the towers again, with a graph, micro-batch by micro-batch, each fed the
gradients of its own features (GradCache, arXiv 2101.06983). The gradient is exactly the big batch's and memory that of
a micro-batch. A step of one micro-batch is the same without the second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from onereel.errors import DataError
from onereel.objectives.base import (
    BACKWARD_FLOPS,
    layer_of_vit,
    one_budget,
    stats,
    undecayed_of_vit,
)
from onereel.seeding import clip_generators, stable_seed
from onereel.tokens.packing import to_device
from onereel.types import Batch, FrameFeatures, YuvClips

if TYPE_CHECKING:
    from onereel.models.dual_encoder import DualEncoder
    from onereel.models.video_model import Output
    from onereel.objectives.contrastive import InfoNce, SigmoidLoss
    from onereel.objectives.max_margin import MaxMargin

    PairLoss = InfoNce | SigmoidLoss | MaxMargin

NO_CLIP = -1
"""Caption number of a row that is no pair: a blank clip, or padding."""


class PairFeatures(NamedTuple):
    """Features of n pairs.

    Attributes:
        video, text: float32 `(n, E)` of unit length.
        captions: int64 `(n,)`, equal for equal captions; `NO_CLIP` where there is no pair.
    """

    video: Tensor
    text: Tensor
    captions: Tensor


class Coupled(NamedTuple):
    """What one micro-batch gets from the loss of its whole step.

    Attributes:
        video, text: gradients `(n, E)` of the step's summed loss.
        parameters: gradients of the loss's own parameters by the micro-batch's rows.
        loss, top1: means over the micro-batch's clips.
    """

    video: Tensor
    text: Tensor
    parameters: tuple[Tensor, ...]
    loss: Tensor
    top1: Tensor


class PairObjective(nn.Module):
    """A pair loss of a dual encoder.

    Args:
        model: the two towers.
        loss: rows of similarities to losses, see `InfoNce`.
        max_clips: most clips of one process per step; features are padded to it when they are gathered, so that no
            process need ask the others how many they have.
        mask_duplicates: pairs with equal captions are no negatives of one another (off: as published).
        seed: of the run; selectors and drop path draw from (seed, epoch, index, view).
        budgets: tokens kept of a clip in training, one number drawn for each micro-batch, so that clips of several
            budgets meet in one loss; empty: the selector's own.
    """

    def __init__(
        self,
        model: DualEncoder,
        loss: PairLoss,
        *,
        max_clips: int,
        mask_duplicates: bool = False,
        seed: int = 0,
        budgets: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.model, self.loss, self.budgets = model, loss, budgets
        self.max_clips, self.mask_duplicates, self.seed = max_clips, mask_duplicates, seed
        self.num_layers = max(model.video.encoder.depth, model.text.depth) + 2

    def forward(self, batch: Batch, coupled: Coupled | None = None) -> dict[str, Any]:
        """`loss` and `top1` (own caption nearest of the step's), float32 means over the clips; and `stats`.

        Args:
            coupled: what `couple` gave for this micro-batch; None where it is the whole step.

        Raises:
            DataError: a clip of the batch has no caption.
        """
        features, output, length = self._features(batch)
        if coupled is None:
            (coupled,) = self.couple([PairFeatures(*(part.detach() for part in features))])
        surrogate = (features.video * coupled.video).sum() + (features.text * coupled.text).sum()
        for parameter, gradient in zip(self._learned(), coupled.parameters, strict=True):
            surrogate = surrogate + (parameter * gradient).sum()
        surrogate = surrogate / max(batch.num_clips, 1)
        loss = surrogate - surrogate.detach() + coupled.loss  # the loss's value, with its gradient
        return {"loss": loss, "top1": coupled.top1, "stats": self._stats(batch, output, length)}

    def survey(self, batch: Batch) -> PairFeatures:
        """What `couple` needs of each micro-batch of a step; to be called without gradients."""
        return self._features(batch)[0]

    def couple(self, features: Sequence[PairFeatures]) -> list[Coupled]:
        """The loss of a step over the pairs of all its micro-batches, here and on all other processes.

        Each process forms the rows of its own pairs only, a micro-batch of them at a time: `(n, N)`.
        """
        self.loss.clamp()
        everyone, first = self._gather(
            PairFeatures(
                torch.cat([part.video for part in features]),
                torch.cat([part.text for part in features]),
                torch.cat([part.captions for part in features]),
            )
        )
        leaves = [x.detach().requires_grad_() for x in (everyone.video, everyone.text)]
        everyone = PairFeatures(leaves[0], leaves[1], everyone.captions)
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        starts, found = [first], []
        with torch.enable_grad(), torch.autocast(leaves[0].device.type, enabled=False):
            for part in features:
                stop = starts[-1] + len(part.video)
                losses, hits = self._rows(everyone, starts[-1], stop)
                wanted = [*leaves, *self._learned()]
                of_video, of_text, *of_parameters = torch.autograd.grad(losses.sum(), wanted)
                torch._foreach_add_(totals, [of_video, of_text])
                count = (part.captions != NO_CLIP).sum().clamp(min=1)
                found.append((tuple(of_parameters), losses.detach().sum() / count, hits / count))
                starts.append(stop)
        if _world_size() > 1:
            for total in totals:
                dist.all_reduce(total)
        return [
            Coupled(totals[0][start:stop], totals[1][start:stop], *values)
            for start, stop, values in zip(starts, starts[1:], found)
        ]

    def _features(self, batch: Batch) -> tuple[PairFeatures, Output, int]:
        """Features with their graph, what the video tower gave, and the length of the padded texts."""
        if batch.captions is None or len(batch.captions) != len(batch.keys):
            given = "none" if batch.captions is None else f"{len(batch.captions)}"
            raise DataError(
                f"each of the {len(batch.keys)} clips of a batch needs a caption; there are {given}. "
                "Fill in the caption column of the list"
            )
        assert not isinstance(batch.clips, YuvClips)  # augmentation has made pictures of them
        generators = clip_generators(self.seed, batch.keys)
        budget = one_budget(self, batch)
        video, output = self.model.encode_video(
            batch.clips, batch.scoring_clips, generators, budget
        )
        tokens = self.model.tokenizer(batch.captions)
        text = self.model.encode_tokens(tokens)
        if video.shape != text.shape:
            raise ValueError(
                f"features {tuple(video.shape)} of clips and {tuple(text.shape)} of texts"
            )
        numbers = [stable_seed(caption) for caption in batch.captions]
        captions = torch.tensor(numbers if batch.num_clips else [NO_CLIP] * len(numbers))
        captions = to_device(captions, video.device)
        return PairFeatures(video, text, captions), output, tokens.shape[1]

    def _rows(self, everyone: PairFeatures, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Losses `(n,)` of the pairs `start` to `stop`, and how many clips have their own caption nearest."""
        video, text, captions = everyone
        mine = slice(start, stop)
        video_to_text, text_to_video = video[mine] @ text.T, text[mine] @ video.T
        own = torch.arange(start, stop, device=video.device)
        ignored = (captions == NO_CLIP).expand(stop - start, -1)
        if self.mask_duplicates:
            ignored = ignored | (captions[mine, None] == captions)
        ignored = ignored.scatter(1, own[:, None], False)
        is_pair = captions[mine] != NO_CLIP
        losses = self.loss(video_to_text, text_to_video, own, ignored) * is_pair
        nearest = video_to_text.detach().masked_fill(ignored, -torch.inf).argmax(dim=1)
        return losses, ((nearest == own) & is_pair).sum()

    def _gather(self, mine: PairFeatures) -> tuple[PairFeatures, int]:
        """The pairs of all processes, those of each padded to `max_clips`, and the row of this process's first."""
        if _world_size() == 1:
            return mine, 0
        missing = self.max_clips - len(mine.video)
        if missing < 0:
            raise ValueError(f"{len(mine.video)} pairs in a step; allowed: {self.max_clips}")
        gathered = []
        for part, fill in zip(mine, (0.0, 0.0, NO_CLIP)):
            padded = torch.cat([part, part.new_full((missing, *part.shape[1:]), fill)])
            parts = [torch.empty_like(padded) for _ in range(_world_size())]
            dist.all_gather(parts, padded)
            gathered.append(torch.cat(parts))
        return PairFeatures(*gathered), dist.get_rank() * self.max_clips

    def _learned(self) -> list[nn.Parameter]:
        return [p for p in self.loss.parameters() if p.requires_grad]

    def _stats(self, batch: Batch, output: Output, length: int) -> dict[str, float]:
        if batch.num_clips == 0:
            return stats(0, 0, 0.0)
        from_frames = isinstance(batch.clips, FrameFeatures)
        macs = self.model.video.step_macs(
            output.lengths, BACKWARD_FLOPS, output.grid, from_frames=from_frames
        )
        macs += self.model.text.macs(len(batch.keys), length) * (1 + BACKWARD_FLOPS)
        num_dense = output.num_dense_tokens * len(output.lengths)
        return stats(sum(output.lengths), num_dense, 2.0 * macs)

    def layer_of(self, name: str) -> int:
        """Blocks of both towers are counted from their ends, so that both learn alike where one is deeper."""
        if ".text." in name:
            name = name.replace(".encoder.layers.", ".blocks.").replace(
                "embeddings.", "patch_embed."
            )
            depth, temporal_depth = self.model.text.depth, 0
        else:
            encoder = self.model.video.encoder
            depth, temporal_depth = encoder.depth, encoder.temporal_depth
        return layer_of_vit(name, depth, temporal_depth) + self.num_layers - 2 - depth

    def no_weight_decay(self) -> set[str]:
        names = [name for name, _ in self.named_parameters()]
        return undecayed_of_vit(names) | {
            n for n in names if n.endswith("position_embedding.weight")
        }


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
