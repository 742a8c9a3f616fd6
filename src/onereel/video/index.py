"""The packet index: one row per packet of a video stream, enough to decode any frame without a demuxer."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
import numpy as np

from onereel.errors import DecodeError
from onereel.types import VideoInfo
from onereel.video.opening import open_video

# Codecs whose decoders need nothing from the container but the stream header (`extradata`).
HEADER_ONLY_CODECS = frozenset(
    {"h264", "hevc", "mpeg4", "mjpeg", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video"}
)
# Codecs in which every packet shows exactly one frame, at its pts. Others are decoded once to learn the order.
ONE_FRAME_PER_PACKET = frozenset({"h264", "hevc", "av1", "libdav1d", "vp9", "mjpeg"})
TAGGED_CODECS = frozenset({"mpeg4"})
COLOR_SPACES = {0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m"}
COLOR_SPACES |= {9: "bt2020nc", 10: "bt2020c"}
COLOR_RANGES = {1: "limited", 2: "full"}
NO_TIME = int(np.iinfo(np.int64).min)
# Of those, the codecs that reorder, and the containers that store no pts: theirs are decoding times, or guesses.
REORDERING_CODECS = frozenset({"h264", "hevc"})
CONTAINERS_WITHOUT_PTS = frozenset({"avi"})
ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC: a cover image, not a video


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """Where each packet of a video stream lies and which frame it shows. Rows are in decode order.

    Attributes:
        codec: FFmpeg's decoder name, as `h264`.
        extradata: the stream header.
        width: coded pixels, before rotation.
        height: likewise.
        rotation: clockwise turn that displays a frame upright: 0, 90, 180 or 270 degrees (mirroring is ignored).
        pixel_format: FFmpeg's name, as `yuv420p`.
        color_space: `bt709`, `smpte170m`, ... or `unspecified` (then read as BT.601, as FFmpeg does).
        color_range: `limited`, `full` or `unspecified` (then limited, except for `yuvj` formats).
        time_base: seconds of one pts unit.
        stream: number of the stream in its file.
        position: int64 `(P,)`, first byte of the packet in the file (-1 where unknown).
        size: int32 `(P,)`, bytes.
        rank: int32 `(P,)`, place in display order, or -1 for a packet that is decoded but never shown.
        key: bool `(P,)`, whether decoding can start here.
        reference: bool `(P,)`, False where no other frame needs this one (H.264 `nal_ref_idc == 0`).
        pts: int64 `(P,)`, presentation time in `time_base`; `NO_TIME` in all rows where the container has none.
        frame_times: float64 `(F,)`, seconds from the first shown frame, in display order.
        constant_rate: whether frame i is shown at `i / fps`, to one tick of `time_base`.
        fps: frames per second; the average where the rate varies.
        addressable: whether bytes `[position, position + size)` of the file are exactly the packet.
        file_size: bytes of the file when it was indexed.
        mtime_ns: its modification time then; 0 means "do not compare" (a store that may be copied).
        codec_tag: the container's four characters for the codec, as `XVID`, by which the MPEG-4 decoder knows an
            encoder's habits; empty where nothing depends on it.
    """

    codec: str
    extradata: bytes
    width: int
    height: int
    rotation: int
    pixel_format: str
    color_space: str
    color_range: str
    time_base: Fraction
    stream: int
    position: np.ndarray
    size: np.ndarray
    rank: np.ndarray
    key: np.ndarray
    reference: np.ndarray
    pts: np.ndarray
    frame_times: np.ndarray
    constant_rate: bool
    fps: float
    addressable: bool
    file_size: int
    mtime_ns: int
    codec_tag: str = ""

    @property
    def num_frames(self) -> int:
        return len(self.frame_times)

    @property
    def num_packets(self) -> int:
        return len(self.position)

    def info(self) -> VideoInfo:
        """What sampling must know; height and width are those of the displayed frame."""
        height, width = self.height, self.width
        if self.rotation in (90, 270):
            height, width = width, height
        times = None if self.constant_rate else self.frame_times
        return VideoInfo(self.num_frames, self.fps, height, width, times)

    @cached_property
    def packet_of_frame(self) -> np.ndarray:
        """int64 `(F,)`: the packet that shows each frame."""
        shown = np.flatnonzero(self.rank >= 0)
        packets = np.empty(len(shown), np.int64)
        packets[self.rank[shown]] = shown
        return packets

    @cached_property
    def start_of_frame(self) -> np.ndarray:
        """int64 `(F,)`: the packet from which decoding must start for each frame.

        That is the last key packet before it that is also not displayed after it: a frame of an open GOP that is
        shown before its key frame needs the GOP before.
        """
        keys = np.flatnonzero(self.key)
        if not len(keys) or keys[0] != 0:
            keys = np.concatenate([[0], keys])
        packets = self.packet_of_frame
        slot = np.searchsorted(keys, packets, side="right") - 1
        key_ranks = self.rank[keys]
        late = np.flatnonzero(key_ranks[slot] > np.arange(len(packets)))
        while len(late):
            slot[late] -= 1
            late = late[(slot[late] > 0) & (key_ranks[slot[late]] > late)]
        return keys[np.maximum(slot, 0)]

    @cached_property
    def row_at_place(self) -> dict[tuple[int, int], int]:
        """Packet number by (position, size); shorter than the index where two packets share a place."""
        places = zip(self.position.tolist(), self.size.tolist())
        return {place: row for row, place in enumerate(places)}


def build_packet_index(path: str, stream: int | None = None) -> PacketIndex:
    """Index the best video stream of `path`, or the stream with the number `stream`.

    Raises:
        DecodeError: the file is missing, empty, truncated, no video, audio only, or shows no frame.
    """
    path = os.fspath(path)
    status = _regular_file(path)
    try:
        return _build(path, stream, status)
    except (av.FFmpegError, ValueError, OSError) as error:
        # OSError: a bad sector, a server that is gone.
        detail = getattr(error, "strerror", None) or error
        raise DecodeError(path, f"not a readable video, or truncated ({detail})") from error


def _build(path: str, stream: int | None, status: os.stat_result) -> PacketIndex:
    with open_video(path) as container:
        number = _video_stream(path, container, stream)
        probe = _first_frame(path, container, container.streams[number])
    with open_video(path) as container:
        video = container.streams[number]
        header = _header(video, probe)
        average_rate = float(video.average_rate or 0)
        is_progressive = int(video.codec_context.field_order) <= 1  # or not stated
        may_lack_pts = _may_lack_pts(container, video)
        rows = list(_rows(path, container, video, header, status.st_size))
    if not rows:
        raise DecodeError(path, "has a video stream with zero frames")
    columns = {name: np.array(column) for name, column in zip(_ROW, zip(*rows))}
    one_each = is_progressive and header["codec"] in ONE_FRAME_PER_PACKET
    if may_lack_pts and (np.diff(columns["pts"]) > 0).all():
        one_each = (
            False  # in the order of decoding: either no frame is reordered, or these are no pts
        )
    rank, pts = _display_order(path, number, columns, one_each)
    # A packet that shows nothing, though no edit list hides it, is a place holder: decoding cannot start there.
    key = columns["key"].astype(bool) & ((rank >= 0) | columns["discard"].astype(bool))
    # AVI does not know which packets of H.263 are key frames, and calls all of them so.
    if header["codec"] == "h263" and key.all():
        key[1:] = False
    times, constant, fps = _timing(pts, rank, header["time_base"], average_rate)
    return PacketIndex(
        **header,
        stream=number,
        position=columns["position"].astype(np.int64),
        size=columns["size"].astype(np.int32),
        rank=rank,
        key=key,
        reference=columns["reference"].astype(bool),
        pts=pts,
        frame_times=times,
        constant_rate=constant,
        fps=fps,
        addressable=header["codec"] in HEADER_ONLY_CODECS and bool(columns["exact"].all()),
        file_size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _regular_file(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DecodeError(path, f"cannot be opened ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "is not a regular file")
    if status.st_size == 0:
        raise DecodeError(path, "is empty")
    return status


def _video_stream(path: str, container: Any, stream: int | None) -> int:
    """The number of the stream to read: `stream` if given, else FFmpeg's best."""
    films = [s for s in container.streams.video if not s.disposition & ATTACHED_PICTURE]
    if not films:
        raise DecodeError(path, "has no video stream (audio only)")
    videos = [s.index for s in films if s.codec_context is not None]
    if not videos:
        raise DecodeError(path, "has a video stream whose codec is unknown; re-encode it")
    if stream is not None:
        if stream not in videos:
            raise DecodeError(path, f"stream {stream} is no video stream; video streams: {videos}")
        return stream
    best = container.streams.best("video")
    return best.index if best is not None and best.index in videos else videos[0]


def _may_lack_pts(container: Any, video: Any) -> bool:
    """Whether frames may be shown in another order than the container's times say (AVI, VfW in Matroska)."""
    context = video.codec_context
    if context.name not in REORDERING_CODECS:
        return False
    return container.format.name in CONTAINERS_WITHOUT_PTS or bool(context.has_b_frames)


def _first_frame(path: str, container: Any, video: Any) -> Any:
    """The first frame that decodes: it knows rotation and colour better than the container's header."""
    video.codec_context.thread_count = 1
    reason = "has a video stream with zero frames"
    for packet in container.demux(video):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            reason = f"no frame can be decoded ({error.strerror})"
            continue
        if frames:
            return frames[0]
    raise DecodeError(path, reason)


def _header(video: Any, frame: Any) -> dict[str, Any]:
    context = video.codec_context
    return {
        "codec": context.name,
        "extradata": bytes(context.extradata or b""),
        "width": frame.width,
        "height": frame.height,
        "rotation": _clockwise_turn(frame),
        "pixel_format": frame.format.name,
        "color_space": COLOR_SPACES.get(int(frame.colorspace), "unspecified"),
        "color_range": COLOR_RANGES.get(int(frame.color_range), "unspecified"),
        "time_base": Fraction(video.time_base),
        "codec_tag": _codec_tag(context),
    }


def _codec_tag(context: Any) -> str:
    if context.name not in TAGGED_CODECS:
        return ""
    try:
        return str(context.codec_tag)
    except UnicodeDecodeError:
        return ""  # no encoder with habits of its own has such a tag


def _clockwise_turn(frame: Any) -> int:
    """Degrees, a multiple of 90, out of the frame's display matrix. A mirror image stays mirrored, but upright."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    angle = math.atan2(b, a if a * d - b * c > 0 else -a)
    return round(math.degrees(angle) / 90) * 90 % 360


_ROW = ("position", "size", "pts", "key", "discard", "reference", "exact")


def _rows(
    path: str, container: Any, video: Any, header: dict[str, Any], file_size: int
) -> Iterator[tuple[Any, ...]]:
    is_h264 = header["codec"] == "h264"
    length_bytes = nal_length_bytes(header["extradata"]) if is_h264 else 0
    with open(path, "rb", buffering=0) as file:
        for packet in container.demux(video):
            if not packet.size:
                continue  # the demuxer's end-of-stream mark
            data = bytes(packet)
            position = -1 if packet.pos is None else packet.pos
            if packet.is_corrupt and position + packet.size > file_size - 8:
                raise DecodeError(path, f"truncated: its last packet, at byte {position}, is cut")
            exact = position >= 0 and os.pread(file.fileno(), len(data), position) == data
            yield (
                position,
                len(data),
                NO_TIME if packet.pts is None else packet.pts,
                packet.is_keyframe,
                packet.is_discard,
                is_reference(data, length_bytes) if is_h264 else True,
                exact,
            )


def nal_length_bytes(extradata: bytes) -> int:
    """Bytes of the length before each H.264 NAL unit (avcC, ISO 14496-15 5.2.4.1), or 0 for Annex B start codes."""
    return (extradata[4] & 3) + 1 if len(extradata) > 6 and extradata[0] == 1 else 0


def is_reference(packet: bytes, length_bytes: int) -> bool:
    """Whether other frames may need this H.264 packet: `nal_ref_idc` of its first slice (ITU-T H.264 7.4.1)."""
    for start in _nal_starts(packet, length_bytes):
        if start < len(packet) and 1 <= packet[start] & 31 <= 5:
            return packet[start] & 0x60 != 0
    return True


def _nal_starts(packet: bytes, length_bytes: int) -> Iterator[int]:
    if length_bytes:
        start = 0
        while start + length_bytes < len(packet):
            yield start + length_bytes
            start += length_bytes + int.from_bytes(packet[start : start + length_bytes], "big")
        return
    start = packet.find(b"\0\0\1")
    while start >= 0:
        yield start + 3
        start = packet.find(b"\0\0\1", start + 3)


def _display_order(
    path: str, stream: int, columns: dict[str, np.ndarray], one_frame_per_packet: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(rank int32 `(P,)`, pts int64 `(P,)`) of every packet, from the pts where these can be trusted."""
    pts, shown = columns["pts"].astype(np.int64), ~columns["discard"].astype(bool)
    known = bool((pts != NO_TIME).all()) and len(np.unique(pts)) == len(pts)
    starts_clean = bool(columns["key"][0]) and pts[0] == pts.min()
    rank = np.full(len(pts), -1, np.int32)
    if known and starts_clean and one_frame_per_packet:
        order = np.flatnonzero(shown)[np.argsort(pts[shown], kind="stable")]
    else:
        order = _order_by_decoding(path, stream)
    if not len(order):
        raise DecodeError(path, "has a video stream with zero frames")
    rank[order] = np.arange(len(order))
    if not known or (np.diff(pts[order]) <= 0).any():
        pts = NO_TIME + np.zeros_like(pts)
    return rank, pts


def _order_by_decoding(path: str, stream: int) -> np.ndarray:
    """Packet numbers in the order in which a full sequential decode shows them."""
    order: list[int] = []
    with open_video(path) as container:
        video = container.streams[stream]
        video.codec_context.thread_count = 1
        for number, packet in enumerate(container.demux(video)):
            packet.pts = number if packet.size else None  # a decoder returns the pts it was given
            try:
                order.extend(int(frame.pts) for frame in packet.decode())
            except av.FFmpegError:
                continue  # a damaged packet shows no frame; whoever asks for a frame gets those that exist
    if len(set(order)) != len(order):
        raise DecodeError(path, "a packet shows more than one frame; re-encode it")
    return np.array(order, np.int64)


def _timing(
    pts: np.ndarray, rank: np.ndarray, time_base: Fraction, average_rate: float
) -> tuple[np.ndarray, bool, float]:
    """(frame_times, constant_rate, fps) of the shown frames."""
    num_frames = int(rank.max()) + 1
    rate = average_rate or 25.0
    if pts[0] == NO_TIME or num_frames == 1:
        return np.arange(num_frames) / rate, True, rate
    shown = np.sort(pts[rank >= 0])
    times = (shown - shown[0]) * float(time_base)
    measured = (num_frames - 1) / times[-1]
    for fps in (rate, measured):
        if np.abs(times - np.arange(num_frames) / fps).max() <= 1.01 * float(time_base):
            return times, True, fps
    return times, False, measured
