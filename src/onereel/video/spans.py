"""Which packets must be decoded for which frames: integers only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from onereel.video.index import PacketIndex


class Span(NamedTuple):
    """Packets to decode without a break.

    Attributes:
        rows: packets to feed, ascending; decoding starts clean at the first.
        wanted: packet -> places in the clip that its frame takes.
        trusted: packets before this one only prepare the decoder; errors in them do not count.
    """

    rows: list[int]
    wanted: dict[int, list[int]]
    trusted: int


def plan_spans(index: PacketIndex, frame_indices: Sequence[int]) -> list[Span]:
    """The fewest packets that give these frames: from each key frame to the last wanted packet, without those that
    nobody wants and nobody refers to. Dropping the latter changes no bit of the others."""
    # Few numbers each: plain integers are quicker than arrays, above all between two decodes, when caches are cold.
    packet_of, start_of = index.packet_of_frame, index.start_of_frame
    packets = [packet_of.item(frame) for frame in frame_indices]
    starts = {packet: start_of.item(frame) for packet, frame in zip(packets, frame_indices)}
    places: dict[int, list[int]] = {}
    for place, packet in enumerate(packets):
        places.setdefault(packet, []).append(place)
    groups: list[tuple[int, list[int]]] = []
    for packet in sorted(places, key=lambda p: (starts[p], p)):
        start = starts[packet]
        if groups and start <= groups[-1][1][-1]:
            groups[-1][1].append(
                packet
            )  # overlaps the span before (same group of pictures, or an open one)
        else:
            groups.append((start, [packet]))
    return [
        _span(index, start, {p: places[p] for p in packets}, start) for start, packets in groups
    ]


def widen_span(index: PacketIndex, span: Span, missing: Iterable[int]) -> Span:
    """The span that gives the `missing` packets' frames from one key frame earlier (or from the first packet).

    For streams whose key frames do not start clean: open groups whose P-frames manage pictures of the group before,
    and periodic intra refresh.
    """
    keys = np.flatnonzero(index.key[: span.rows[0]])
    start = int(keys[-1]) if len(keys) else 0
    return _span(index, start, {row: span.wanted[row] for row in missing}, span.rows[0])


def _span(index: PacketIndex, start: int, wanted: dict[int, list[int]], trusted: int) -> Span:
    needed = index.reference[start : max(wanted) + 1].tolist()
    needed[0] = True
    rows = [row for row, is_needed in enumerate(needed, start) if is_needed or row in wanted]
    return Span(rows, wanted, trusted)
