"""One embedding per video of a list, over views and ranks, in the order of the list."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.errors import OnereelError
from onereel.evaluation.ranks import gather
from onereel.evaluation.scores import ViewSums
from onereel.types import Batch

if TYPE_CHECKING:
    from onereel.data.loader import ClipLoader


def embed_videos(
    encode: Callable[[Batch], Tensor],
    loader: ClipLoader,
    *,
    num_views: int = 1,
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """float32 `(V, D)` of unit length on the CPU: the mean over a video's views of their normalised embeddings.

    Under torch.distributed every rank brings its share and every rank gets them all; what one rank raises is raised
    on all. The result does not depend on the number of ranks or the size of batches, where `encode` does not.

    Args:
        encode: embeddings `(B, D)` of a uint8 batch from the loader, without gradients.
        loader: strict, in order, nothing dropped.
        num_views: views that every video must have.
        on_batch: called with (batches done, batches of this rank).

    Raises:
        DataError: a video lacks a view or has one twice.
        DecodeError: a sample cannot be read.
        OnereelError: an embedding is not finite.
    """
    sums, failure = ViewSums(), None
    try:
        for number, batch in enumerate(loader.batches(epoch=0), 1):
            if batch.num_clips:
                sums.add(batch.keys, _unit(encode(batch), batch))
            if on_batch is not None:
                on_batch(number, loader.num_batches)
    except OnereelError as error:
        failure = error
    total = ViewSums()
    for part in gather(sums, failure):
        total.merge(part)
    return F.normalize(total.mean(num_views).probabilities, dim=-1)


def _unit(embeddings: Tensor, batch: Batch) -> Tensor:
    finite = embeddings.isfinite().all(dim=-1).cpu()
    if not finite.all():
        key = batch.keys[int(finite.int().argmin())]
        raise OnereelError(
            f"the embedding of sample {key.index}, view {key.view} is not finite: the weights are broken; "
            "use an earlier checkpoint, or precision float32"
        )
    return F.normalize(embeddings.detach().to(torch.float32), dim=-1)
