"""Clips to logits: select tubelets, encode the kept ones, classify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from onereel.errors import ConfigError
from onereel.models.choosing import (
    Generators,
    chosen_tokens,
    dense_grid,
    derived_generators,
    nested_tokens,
    rank_tokens,
)
from onereel.models.factorised import Encoder, FactorisedEncoder
from onereel.models.heads import BudgetHeads, ClassificationHead, Head, ProjectionHead
from onereel.tokens.ranking import at_budget
from onereel.tokens.tubelets import clip_grid
from onereel.types import FrameFeatures, Packed, TubeletGrid

if TYPE_CHECKING:
    from onereel.config import RunConfig
    from onereel.tokens.frames import FrameSelection
    from onereel.tokens.selector import Selector


class Output(NamedTuple):
    """What a forward gives.

    Attributes:
        logits: `(B, num_classes)`; of a `ProjectionHead` the embedding `(B, E)`, not normalised.
        lengths: tokens kept per clip, a class token not counted.
        num_dense_tokens: tokens that a clip has when all are kept (of the frames that frame selection chooses).
        features: the encoder's features, class tokens included.
        grid: of the clips.
        pooled: one feature per clip, before the head's norm and classifier: `(B, F)`.
    """

    logits: Tensor
    lengths: tuple[int, ...]
    num_dense_tokens: int
    features: Packed
    grid: TubeletGrid
    pooled: Tensor


class VideoModel(nn.Module):
    """Selector, encoder and head.

    Args:
        encoder: turns packed patches into packed features.
        head: turns packed features into logits, or an embedding; its pool must be the encoder's. Of `BudgetHeads`
            each clip gets that of the budget nearest to the tokens it keeps.
        selector: holds no weights, and may be replaced at any time (`model.selector = ...`).
        config: what the parts were built from, which `save_pretrained` writes; None where they were put together
            by hand.
        frames: frame selection before it: draws in training, takes the best in evaluation. None: all frames.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: ClassificationHead | ProjectionHead | BudgetHeads,
        selector: Selector,
        config: RunConfig | None = None,
        frames: FrameSelection | None = None,
    ) -> None:
        super().__init__()
        if encoder.pool != head.pool:
            raise ConfigError(f"encoder pools by {encoder.pool!r}, head by {head.pool!r}")
        self.encoder, self.head, self.selector, self.frames = encoder, head, selector, frames
        self.config = config

    def forward(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None = None,
        generators: Generators = None,
        budget: int = 0,
    ) -> Output:
        """Classify `clips`.

        Args:
            clips: normalised float `(B, T, C, H, W)`, or patches of them that were selected before, or the
                `FrameFeatures` that a factorised encoder's spatial half made of them.
            scoring_clips: what the selector looks at in place of `clips`, same shape; None: `clips`.
            generators: one CPU generator per clip. A selector draws from it; drop path and dropout draw from
                others made of its seed, so that no technique shifts the draws of another.
            budget: tokens kept of each clip, all where it has fewer, in place of the selector's own number; 0: its own.
        """
        tokens, embedded = self._tokens(clips, scoring_clips, generators, budget)
        features = self.encoder(
            tokens, derived_generators(generators, "drop-path"), embedded=embedded
        )
        heads = [self.head_of(length) for length in tokens.lengths]
        return self._output(features, tokens, heads, generators)

    def _output(
        self, features: Packed, tokens: Packed, heads: Sequence[Head], generators: Generators
    ) -> Output:
        """With a head for each clip, so that what it gets does not depend on its company."""
        said = {}
        for head in dict.fromkeys(heads):
            pooled = head.pooled(features)
            said[head] = pooled, head.logits(pooled, derived_generators(generators, "dropout"))
        pooled, logits = said[heads[0]]
        if len(said) > 1:
            pooled, logits = (
                torch.stack([said[head][part][clip] for clip, head in enumerate(heads)])
                for part in (0, 1)
            )
        num_dense = dense_grid(self.frames, tokens.grid).num_tokens
        return Output(logits, tokens.lengths, num_dense, features, tokens.grid, pooled)

    def head_of(self, num_tokens: int) -> Head:
        """The head for clips of so many tokens: the only one, or that of the nearest budget."""
        head = self.head
        return head.head_of(num_tokens) if isinstance(head, BudgetHeads) else head

    def forward_budgets(
        self,
        clips: Tensor,
        scoring_clips: Tensor | None = None,
        generators: Generators = None,
        *,
        budgets: Sequence[int],
    ) -> list[Output]:
        """One output for each of `budgets` (falling), with its own head: `forward(..., budget=K)` of each K, in
        which patches are embedded and ranked once.

        Where clips have fewer tokens than two of the budgets, these keep the same tokens, all of them: the encoder then
        runs once, and each of the two heads gets its features. Drop path and dropout draw anew for each budget; the
        largest draws as `forward` does.

        Raises ConfigError where the selector doesn't rank.
        """
        if len(budgets) == 0 or self.frames is not None:
            raise ValueError("forward_budgets needs one budget or more, and no frame selection")
        parts = self._nested_tokens(clips, scoring_clips, generators, budgets)
        features: dict[int, Packed] = {}
        outputs = []
        for number, (budget, tokens) in enumerate(zip(budgets, parts, strict=True)):
            draws = (
                generators if number == 0 else derived_generators(generators, f"budget {number}")
            )
            length = tokens.lengths[0]
            if length not in features:
                purpose = derived_generators(draws, "drop-path")
                features[length] = self.encoder(tokens, purpose, embedded=True)
            heads = [self.head_of(budget)] * tokens.batch_size
            outputs.append(self._output(features[length], tokens, heads, draws))
        return outputs

    def _nested_tokens(
        self,
        clips: Tensor,
        scoring_clips: Tensor | None,
        generators: Generators,
        budgets: Sequence[int],
    ) -> list[Packed]:
        """Embedded tokens of each budget; each is made of the largest one's, which are embedded once."""
        num_tokens = clip_grid(clips, *self._block).num_tokens
        counts = [min(budget, num_tokens) for budget in budgets]
        ranked = rank_tokens(
            self.encoder,
            self.selector,
            clips,
            scoring_clips,
            generators,
            fewest=counts[-1],
            most=counts[0],
        )
        return nested_tokens(self.encoder, ranked, counts)

    def kept(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None = None,
        generators: Generators = None,
    ) -> Packed:
        """The tokens of `clips` that the encoder sees, as patches or embedded; arguments as of `forward`."""
        return self._tokens(clips, scoring_clips, generators)[0]

    def frame_features(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None = None,
        generators: Generators = None,
    ) -> FrameFeatures:
        """What `forward` knows of `clips` after the spatial half of a factorised encoder; arguments as there."""
        assert isinstance(self.encoder, FactorisedEncoder)
        tokens, embedded = self._tokens(clips, scoring_clips, generators)
        generators = derived_generators(generators, "drop-path")
        return self.encoder.frame_features(tokens, generators, embedded=embedded)

    def _tokens(
        self,
        clips: Tensor | Packed,
        scoring_clips: Tensor | None,
        generators: Generators,
        budget: int = 0,
    ) -> tuple[Packed, bool]:
        """The kept tokens, and whether they are embedded already or still patches."""
        if isinstance(clips, Packed):
            return clips, False
        dense = dense_grid(self.frames, clip_grid(clips, *self._block))
        return chosen_tokens(
            self.encoder,
            at_budget(self.selector, budget, dense),
            self.frames,
            clips,
            scoring_clips,
            generators,
            draws=self.training,
        )

    @property
    def _block(self) -> tuple[int, int]:
        return self.encoder.tubelet_size, self.encoder.patch_size

    def macs(
        self,
        lengths: Sequence[int],
        grid: TubeletGrid | None = None,
        *,
        num_embedded: int | None = None,
    ) -> int:
        """Multiply-adds of the matrix products of a forward that keeps `lengths` tokens, head included.

        For clips of `grid` (None: the encoder's own), scored on themselves and without gradients, with which tokens
        selected by their embeddings are embedded once more; FLOPs are twice as many.
        `num_embedded`: patches embedded, where that is not what the selector asks for.
        """
        if num_embedded is None:
            dense = len(lengths) * (grid or self.encoder.grid).num_tokens
            num_embedded = dense if self.selector.needs_embeddings else sum(lengths)
        encoder, head = self.encoder, self.head_of(max(lengths)).macs(lengths)
        if isinstance(encoder, FactorisedEncoder):
            return head + encoder.macs(lengths, num_embedded, grid)
        return head + encoder.macs(lengths, num_embedded)

    def step_macs(
        self,
        lengths: Sequence[int],
        backward: int,
        grid: TubeletGrid | None = None,
        *,
        num_embedded: int | None = None,
        from_frames: bool = False,
    ) -> int:
        """Those of a training step: the forward, and `backward` times what of it has a backward pass.

        `from_frames`: clips are `FrameFeatures`, and `lengths` counts frames.
        """
        encoder, forward = self.encoder, self.macs(lengths, grid, num_embedded=num_embedded)
        if not (isinstance(encoder, FactorisedEncoder) and (encoder.frozen or from_frames)):
            return (1 + backward) * forward
        grid = grid or encoder.grid
        frames = [min(length, grid.gt) for length in lengths]
        num_tokens = len(lengths) * encoder.grid.num_tokens if from_frames else sum(lengths)
        head = self.head_of(max(lengths)).macs(lengths)
        trained = encoder.temporal_macs(frames, num_tokens) + head
        return backward * trained + (trained if from_frames else forward)

    def budget_macs(self, outputs: Sequence[Output], backward: int = 0) -> int:
        """Those of the `forward_budgets` that gave `outputs`, and `backward` times its backward pass."""
        counted: set[tuple[int, ...]] = set()
        total = 0
        for output in outputs:
            lengths = output.lengths
            if lengths in counted:
                total += (1 + backward) * self.head_of(max(lengths)).macs(lengths)
            else:
                embedded = 0 if counted else None
                total += self.step_macs(lengths, backward, output.grid, num_embedded=embedded)
            counted.add(lengths)
        return total

    def save_pretrained(
        self,
        folder: str | Path,
        class_names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write weights, configuration and card for `onereel.load(folder)`: see `pretrained.folder.write_folder`."""
        from onereel.models.pretrained.folder import write_folder

        return write_folder(folder, self, class_names, facts)

    def push_to_hub(
        self,
        name: str,
        class_names: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
        *,
        private: bool = True,
    ) -> str:
        """Upload the same as the model `owner/name` of the Hugging Face Hub: see `pretrained.folder.push_folder`."""
        from onereel.models.pretrained.folder import push_folder

        return push_folder(name, self, class_names, facts, private=private)
