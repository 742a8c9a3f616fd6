"""Packets by number: from one read of the file where the index can address them, else from a demuxer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from operator import add
from typing import Any

import av

from onereel.errors import DecodeError
from onereel.video.index import NO_TIME, PacketIndex, nal_length_bytes

_PADDING = (
    64  # libavcodec/defs.h, AV_INPUT_BUFFER_PADDING_SIZE: decoders may read this far past a packet
)
_LARGEST_GAP = 4  # read packet by packet where a span is this much longer than the packets in it
_SMALL = 1 << 16  # ... and longer than this many bytes

NumberedPackets = Iterator[tuple[int, Any]]


def check_unchanged(path: str, index: PacketIndex, status: os.stat_result) -> None:
    """Refuse a file that is not the one that was indexed.

    Raises:
        DecodeError: size or time of modification differ.
    """
    if status.st_size != index.file_size:
        reason = f"changed behind its index: {status.st_size} bytes, not {index.file_size}"
        raise DecodeError(path, reason)
    if index.mtime_ns and status.st_mtime_ns != index.mtime_ns:
        raise DecodeError(path, "changed behind its index: it was modified since")


def addressed_packets(path: str, file: int, index: PacketIndex, rows: list[int]) -> NumberedPackets:
    """Packets cut out of one read, without a copy. Raises DecodeError where the bytes are not those indexed."""
    first = rows[0]
    between = slice(first, rows[-1] + 1)
    positions, all_sizes = index.position[between].tolist(), index.size[between].tolist()
    starts = [positions[row - first] for row in rows]
    sizes = [all_sizes[row - first] for row in rows]
    begin = min(starts)
    length = max(map(add, starts, sizes)) - begin
    pieces: list[Any]  # PyAV takes any buffer, though its types say bytes
    if length > _SMALL and length > _LARGEST_GAP * sum(all_sizes):
        pieces = [_read(path, file, start, size)[:size] for start, size in zip(starts, sizes)]
    else:
        span = _read(path, file, begin, length)
        pieces = [span[start - begin : start - begin + size] for start, size in zip(starts, sizes)]
    if index.codec == "h264" and not _holds_whole_units(pieces[0], index.extradata):
        raise DecodeError(path, f"changed behind its index: byte {starts[0]} starts no packet")
    for row, piece in zip(rows, pieces):
        packet = av.Packet(piece)
        packet.pts = row  # a decoder gives a frame the pts of its packet
        yield row, packet


def _read(path: str, file: int, begin: int, length: int) -> memoryview:
    try:
        data = os.pread(file, length + _PADDING, begin)
    except OSError as error:  # a bad sector, a server that is gone
        raise DecodeError(path, f"cannot be read at byte {begin} ({error.strerror})") from error
    if len(data) < length:
        raise DecodeError(path, f"truncated: it ends before byte {begin + length}")
    if len(data) < length + _PADDING:
        data += bytes(_PADDING)
    return memoryview(data)


def _holds_whole_units(packet: memoryview, extradata: bytes) -> bool:
    """Whether the lengths before an H.264 packet's units add up to the packet (true of Annex B, which has none)."""
    length_bytes = nal_length_bytes(extradata)
    start = 0 if length_bytes else len(packet)
    while start < len(packet):
        start += length_bytes + int.from_bytes(packet[start : start + length_bytes], "big")
    return start == len(packet)


def demuxed_packets(
    path: str, container: Any, index: PacketIndex, rows: list[int]
) -> NumberedPackets:
    """The same through a demuxer, for files whose packets are not stored in one piece (MPEG-TS, Matroska)."""
    needed, last = set(rows), rows[-1]
    for row, packet in _from(container, index, rows[0]):
        if row >= index.num_packets or packet.size != index.size[row]:
            raise DecodeError(path, f"changed behind its index: packet {row} is not as it was")
        if row in needed:
            packet.pts = row
            yield row, packet
        if row >= last:
            return


def _from(container: Any, index: PacketIndex, start: int) -> NumberedPackets:
    """Packets with their numbers, from `start` or earlier: after a seek that can be placed, else from the first."""
    video = container.streams[index.stream]
    time = int(index.pts[start])
    if start and time != NO_TIME and len(index.row_at_place) == index.num_packets:
        container.seek(time, stream=video)
        packets = (packet for packet in container.demux(video) if packet.size)
        for packet in packets:
            row = index.row_at_place.get((packet.pos, packet.size), index.num_packets)
            if row <= start:
                return enumerate(chain([packet], packets), row)
            if row < index.num_packets:
                break
        container.seek(0)
    return enumerate(packet for packet in container.demux(video) if packet.size)
