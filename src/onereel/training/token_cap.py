"""Micro-batches filled up to a number of tokens in place of a number of clips."""

from __future__ import annotations

from dataclasses import replace

from onereel.errors import ConfigError
from onereel.types import Batch, Packed


def cut(batch: Batch, max_tokens: int) -> list[Batch]:
    """The clips of `batch`, in their order, in parts of at most `max_tokens` tokens; 0: one part, `batch` itself.

    A part takes the next clip for as long as it fits. The first part carries the failures of the batch. Raises
    ConfigError where the tokens of a clip are not known yet, or are too many.
    """
    clips = batch.clips
    if not max_tokens or batch.num_clips == 0:
        return [batch]
    if not isinstance(clips, Packed):
        raise ConfigError(
            "train.max_tokens_per_device needs the tokens of each clip from the loader; set tokens.where to 'loader'"
        )
    starts, filled = [0], 0
    for i, length in enumerate(clips.lengths):
        if length > max_tokens:
            raise ConfigError(
                f"{batch.keys[i]} keeps {length} tokens, more than train.max_tokens_per_device = {max_tokens}"
            )
        if filled + length > max_tokens:
            starts.append(i)
            filled = 0
        filled += length
    bounds = zip(starts, [*starts[1:], batch.num_clips])
    return [_part(batch, clips, first, stop) for first, stop in bounds]


def _part(batch: Batch, clips: Packed, first: int, stop: int) -> Batch:
    return replace(
        batch,
        clips=clips.part(first, stop),
        keys=batch.keys[first:stop],
        labels=None if batch.labels is None else batch.labels[first:stop],
        captions=None if batch.captions is None else batch.captions[first:stop],
        num_failed=batch.num_failed if first == 0 else 0,
        num_clips=stop - first,
    )
