"""Masked video pre-training: predict the pixels of hidden tubelets (VideoMAE, arXiv 2203.12602, section 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from onereel.objectives.base import (
    BACKWARD_FLOPS,
    layer_of_vit,
    one_budget,
    stats,
    undecayed_of_vit,
)
from onereel.seeding import clip_generators
from onereel.tokens.packing import kept_tokens, segment_mean, unpack
from onereel.tokens.tubelets import patchify, unpatchify
from onereel.types import Batch, TubeletGrid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onereel.models.masked_autoencoder import MaskedAutoencoder, Reconstruction

PIXEL_EPS = 1e-6
"""Added to a patch's standard deviation, of pixels in 0..1 (VideoMAE's and MAE's code)."""
COLORS = 3


class Reconstructions(NamedTuple):
    """Clips `(B, T, C, H, W)` with predicted targets; `visible` and `targets` are bool `(B, N)`, True = is one."""

    clips: Tensor
    visible: Tensor
    targets: Tensor
    grid: TubeletGrid


class MaskedObjective(nn.Module):
    """Mean squared error of the pixels of hidden tubelets, each patch and colour in units of its own deviation.

    Args:
        model: `model(clips, scoring_clips=, generators=)` gives a `Reconstruction`.
        std: of R, G, B in 0..1, by which the clips were divided.
        seed: of the run; masks, selectors and drop path draw from (seed, epoch, index, view).
        budgets: tokens kept of a clip in training, one number drawn for each micro-batch; empty: the selector's own.
    """

    eps: Tensor

    def __init__(
        self,
        model: MaskedAutoencoder,
        std: Sequence[float],
        seed: int = 0,
        budgets: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.seed, self.budgets = seed, budgets
        self.num_layers = model.encoder.depth + 2
        eps = PIXEL_EPS / torch.tensor(std, dtype=torch.float32)
        self.register_buffer("eps", eps[:, None], persistent=False)

    def forward(self, batch: Batch) -> dict[str, Any]:
        """`loss`, float32: the mean over clips of the mean over each clip's targets; and `stats`."""
        output = self._output(batch)
        if batch.num_clips == 0:
            return {"loss": output.predicted.float().sum() * 0.0, "stats": stats(0, 0, 0.0)}
        visible, targets = output.visible, output.targets
        expected, _, _ = normalised_patches(targets.values, self.eps)
        errors = pixel_error(output.predicted, expected)
        loss = segment_mean(errors[:, None], targets.lengths, targets.cu_seqlens).mean()
        macs = self.model.macs(visible.lengths, targets.lengths) * (1 + BACKWARD_FLOPS)
        macs += self.model.scoring_macs(len(visible.lengths), visible.grid)
        num_tokens = sum(visible.lengths) + sum(targets.lengths)
        num_dense = output.num_dense_tokens * len(visible.lengths)
        return {"loss": loss, "stats": stats(num_tokens, num_dense, 2.0 * macs)}

    def reconstruct(self, batch: Batch) -> Reconstructions:
        """The clips (no patches) of `batch` with the targets' pixels as predicted.

        Mean and deviation of a patch are its true ones: the loss doesn't teach them (MAE, arXiv 2111.06377, shows
        pictures so).
        """
        assert isinstance(batch.clips, Tensor)  # the loader's selection has no part in this
        output, model = self._output(batch), self.model
        block = (model.encoder.tubelet_size, model.encoder.patch_size)
        _, mean, scale = normalised_patches(output.targets.values, self.eps)
        predicted = output.predicted.float().unflatten(1, (COLORS, -1)) * scale + mean
        targets = kept_tokens(output.targets)
        dense = unpack(replace(output.targets, values=predicted.flatten(1)))
        patches = torch.where(targets[..., None], dense, patchify(batch.clips, *block))
        grid = output.targets.grid
        clips = unpatchify(patches, grid, *block)
        return Reconstructions(clips, kept_tokens(output.visible), targets, grid)

    def _output(self, batch: Batch) -> Reconstruction:
        return self.model(
            batch.clips,
            scoring_clips=batch.scoring_clips,
            generators=clip_generators(self.seed, batch.keys),
            budget=one_budget(self, batch),
        )

    def layer_of(self, name: str) -> int:
        """As for classification; the decoder learns with the last layer."""
        if ".decoder." in f".{name}":
            return self.num_layers - 1
        return layer_of_vit(name, self.num_layers - 2)

    def no_weight_decay(self) -> set[str]:
        return undecayed_of_vit(name for name, _ in self.named_parameters())


def normalised_patches(patches: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches `(M, P)` less the mean of each colour, over its standard deviation plus `eps (3, 1)`.

    The variance is unbiased (over P / 3 pixels less one), as published. On pixels that were divided by a colour's
    `std` this is what the published rule, `1e-6` on pixels in 0..1, gives with `eps = 1e-6 / std`.

    Returns:
        float32 `(M, P)`; mean and divisor `(M, 3, 1)`, which bring a prediction back to pixels.
    """
    colors = patches.float().unflatten(1, (COLORS, -1))
    variance, mean = torch.var_mean(colors, dim=-1, keepdim=True)
    scale = variance.sqrt_().add_(eps)
    return (colors - mean).div_(scale).flatten(1), mean, scale


def pixel_error(predicted: Tensor, expected: Tensor) -> Tensor:
    """Mean squared difference of each row of `(M, P)`, in float32: `(M,)`."""
    return (predicted.float() - expected).square().mean(dim=1)
