"""What a clip costs to read: process CPU milliseconds on one thread, ours against what people have.

All methods read the same frames and the same crop, one after another, clip by clip, in one process. A ratio is that of
the medians within one video, and a claim is the median of the videos' ratios. decord and torchcodec take part where
they import (`pip install decord torchcodec`; the latter needs FFmpeg's shared libraries on the loader's path).
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import torch
from pyarrow import parquet
from torch import Tensor
from torch.nn.functional import interpolate

from common import Claim, arguments, real_videos, report
from onereel.data.cropping import random_resized_box
from onereel.seeding import numpy_generator
from onereel.types import ClipSpec, CropBox
from onereel.video.decode import VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.index import build_packet_index
from onereel.video.prepare import PrepareReport, prepare
from onereel.video.spans import plan_spans
from onereel.video.store import ChunkStore

SIZE = 224
CHUNK_SECONDS = 15.0
NUM_ACTIONS = 3  # videos of actions5, besides all of `long`
NUM_720P = {"small": 2, "full": 7}
NUM_DRAWS = {"small": 10, "full": 60}
METHODS = {
    "a decord": "decord, 288 px default x264, float32 resize",
    "a PyAV": "PyAV, 288 px default x264, float32 resize",
    "a torchcodec": "torchcodec, 288 px default x264, float32 resize",
    "b torchcodec": "torchcodec on our store, uint8 resize",
    "c ours": "ours, 288 px default x264",
    "d ours": "ours, our store",
    "e bare": "bare decode of the frames that (d) must decode",
    "720p decord": "decord, 720p default x264, float32 resize",
    "720p PyAV": "PyAV, 720p default x264, float32 resize",
}
# name, numerator, denominator, goals for t4_1s and t16_s4 (None: no claim), whether the goal is an upper bound
CLAIMS = (
    ("decord on default x264 : ours on the store", "a decord", "d ours", (15.0, 9.0), False),
    ("PyAV on default x264 : ours on the store", "a PyAV", "d ours", (12.0, 6.5), False),
    (
        "torchcodec on default x264 : ours on the store",
        "a torchcodec",
        "d ours",
        (12.0, 6.5),
        False,
    ),
    ("torchcodec on the store : ours on the store", "b torchcodec", "d ours", (2.8, 2.2), False),
    ("ours on the store : bare decode", "d ours", "e bare", (1.25, 1.25), True),
    (
        "decord on 720p default x264 : ours on the store",
        "720p decord",
        "d ours",
        (None, 20.0),
        False,
    ),
    ("PyAV on 720p default x264 : ours on the store", "720p PyAV", "d ours", (None, 20.0), False),
)


@dataclass(frozen=True)
class Content:
    """One video in the forms that are compared.

    Attributes:
        name: its name in the store.
        chunk: its first chunk in the store, with packet index.
        default: the first seconds, short side 288 at most, x264 with its default settings.
        original: the same at 720p, or None.
        num_frames: frames that all forms have.
    """

    name: str
    chunk: VideoFile
    default: VideoFile
    original: str | None
    num_frames: int
    fps: float
    height: int
    width: int


def main() -> None:
    options = arguments(__doc__, devices=("cpu",))
    torch.set_num_threads(1)
    sources = sorted(real_videos("long").iterdir()) + _longest(real_videos("actions5"))
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(
            [str(path) for path in sources], Path(folder) / "store", num_workers=1, progress=False
        )
        store = ChunkStore(prepared.store)
        contents = _contents(sources, store, Path(folder), NUM_720P[options.size])
        times = measure(contents, store, NUM_DRAWS[options.size])
        sizes = _sizes(contents, prepared)
    rows = [_row(method, times) for method in METHODS if any(method in t for t in times.values())]
    report("CPU ms per clip, one thread (median)", rows + sizes, _claims(times), options.json)


Times = dict[tuple[str, str], dict[str, list[float]]]
"""(protocol, video) -> method -> milliseconds of each draw."""


def measure(contents: Sequence[Content], store: ChunkStore, num_draws: int) -> Times:
    """Read `num_draws` clips of each video in both protocols with all methods, clip by clip."""
    ours = FusedDecoder()
    times: Times = {}
    for content in contents:
        for protocol in ("t4_1s", "t16_s4"):
            cell: dict[str, list[float]] = {}
            for draw in range(-1, num_draws):  # the first draw warms caches and does not count
                frames, crop = _draw(content, protocol, draw)
                for method, read in _methods(content, store, ours, frames, crop).items():
                    start = time.process_time()
                    read()
                    elapsed = 1e3 * (time.process_time() - start)
                    if draw >= 0:
                        cell.setdefault(method, []).append(elapsed)
            times[protocol, content.name] = cell
    return times


def _draw(content: Content, protocol: str, draw: int) -> tuple[list[int], CropBox]:
    generator = numpy_generator(0, draw, content.name, protocol)
    if protocol == "t4_1s":
        window = min(content.num_frames, round(content.fps))
        start = generator.integers(content.num_frames - window + 1)
        frames = np.sort(start + generator.choice(window, 4, replace=False))
    else:
        start = generator.integers(content.num_frames - 60)
        frames = start + 4 * np.arange(16)
    crop = random_resized_box(content.height, content.width, generator)
    return frames.tolist(), crop


def _methods(
    content: Content, store: ChunkStore, ours: FusedDecoder, frames: list[int], crop: CropBox
) -> dict[str, Callable[[], object]]:
    """What to time. Whatever a data set would keep from epoch to epoch (packet indices) is made outside."""
    default, chunk = content.default, content.chunk
    spec = ClipSpec(content.name, tuple(frames), crop, (SIZE, SIZE))
    methods: dict[str, Callable[[], object]] = {}
    if find("decord"):
        methods["a decord"] = lambda: float_resize(decord_frames(default.path, frames), crop)
    methods["a PyAV"] = lambda: float_resize(pyav_frames(default.path, frames), crop)
    if find("torchcodec.decoders"):
        methods["a torchcodec"] = lambda: float_resize(
            torchcodec_frames(default.path, frames), crop
        )
        methods["b torchcodec"] = lambda: byte_resize(torchcodec_frames(chunk.path, frames), crop)
    methods["c ours"] = lambda: ours.read(default, frames, crop, (SIZE, SIZE))
    methods["d ours"] = lambda: store.read(spec)
    methods["e bare"] = bare_decode(chunk, frames)
    if (large := content.original) is not None:
        box = _scaled(crop, content)
        if find("decord"):
            methods["720p decord"] = lambda: float_resize(decord_frames(large, frames), box)
        methods["720p PyAV"] = lambda: float_resize(pyav_frames(large, frames), box)
    return methods


def find(module: str) -> Any | None:
    """The module, or None where it is not installed or its libraries are missing."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError):
        return None


def decord_frames(path: str, frames: list[int]) -> Tensor:
    """uint8 `(T, H, W, 3)`."""
    decord = importlib.import_module("decord")
    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    return torch.from_numpy(reader.get_batch(frames).asnumpy())


def pyav_frames(path: str, frames: list[int]) -> Tensor:
    """uint8 `(T, H, W, 3)`: seek to the key frame before, decode to the last wanted frame."""
    pictures = {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        ticks = 1 / (stream.average_rate * stream.time_base)
        container.seek(int(frames[0] * ticks), stream=stream)
        for frame in container.decode(stream):
            number = round(frame.pts / ticks)
            if number in frames:
                pictures[number] = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1))
            if number >= frames[-1]:
                break
    return torch.stack([pictures[number] for number in frames])


def torchcodec_frames(path: str, frames: list[int]) -> Tensor:
    """uint8 `(T, H, W, 3)`."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(
        path, num_ffmpeg_threads=1, seek_mode="exact", dimension_order="NHWC"
    )
    return decoder.get_frames_at(frames).data


def float_resize(frames: Tensor, crop: CropBox) -> Tensor:
    """What published video pipelines do: all frames to float32, crop, bilinear resize, flip."""
    values = frames.float().permute(0, 3, 1, 2)
    return _flipped(interpolate(_cropped(values, crop), (SIZE, SIZE), mode="bilinear"), crop)


def byte_resize(frames: Tensor, crop: CropBox) -> Tensor:
    """The fastest way within torch: crop first, resize uint8 with antialiasing."""
    values = _cropped(frames.permute(0, 3, 1, 2), crop)
    return _flipped(interpolate(values, (SIZE, SIZE), mode="bilinear", antialias=True), crop)


def _cropped(frames: Tensor, crop: CropBox) -> Tensor:
    rows = slice(crop.top, crop.top + crop.height)
    return frames[..., rows, crop.left : crop.left + crop.width]


def _flipped(frames: Tensor, crop: CropBox) -> Tensor:
    return frames.flip(-1) if crop.hflip else frames


def bare_decode(chunk: VideoFile, frames: list[int]) -> Callable[[], object]:
    """Nothing but the decoder, on packets that lie in memory, in a context that is open."""
    index = chunk.index or build_packet_index(chunk.path)
    data = Path(chunk.path).read_bytes()
    context = _context(index.codec, index.extradata)
    spans = []
    for span in plan_spans(index, frames):
        places = zip(index.position[span.rows].tolist(), index.size[span.rows].tolist())
        spans.append([av.Packet(data[start : start + size]) for start, size in places])

    def decode() -> None:
        for packets in spans:
            for packet in packets:
                context.decode(packet)
            context.decode(None)
            context.flush_buffers()

    return decode


_CONTEXTS: dict[bytes, Any] = {}


def _context(codec: str, extradata: bytes) -> Any:
    if extradata not in _CONTEXTS:
        context = av.CodecContext.create(codec, "r")
        context.extradata, context.thread_count, context.thread_type = extradata, 1, "NONE"
        _CONTEXTS[extradata] = context
    return _CONTEXTS[extradata]


def _longest(folder: Path) -> list[Path]:
    """The videos of actions5 with the most frames (t16_s4 needs 61)."""
    videos = sorted(folder.glob("*/*.mp4"))
    videos.sort(key=lambda path: build_packet_index(str(path)).num_frames, reverse=True)
    return videos[:NUM_ACTIONS]


def _contents(
    sources: Iterable[Path], store: ChunkStore, folder: Path, num_720p: int
) -> list[Content]:
    manifest = parquet.read_table(Path(store.path) / "manifest.parquet").to_pylist()
    first_chunks = {row["video"]: row["path"] for row in reversed(manifest)}
    contents = []
    for number, path in enumerate(sorted(sources, key=lambda path: -store.info(str(path)).height)):
        info = store.info(str(path))
        default = _indexed(
            _encoded(path, folder / f"{path.stem}_default.mp4", min(288, info.height))
        )
        chunk = _indexed(str(Path(store.path) / first_chunks[str(path)]))
        is_large = number < num_720p
        original = _encoded(path, folder / f"{path.stem}_720p.mp4", 720) if is_large else None
        frames = min(file.index.num_frames for file in (default, chunk) if file.index)
        contents.append(
            Content(str(path), chunk, default, original, frames, info.fps, info.height, info.width)
        )
    return contents


def _indexed(path: str) -> VideoFile:
    return VideoFile(path, build_packet_index(path))


def _encoded(source: Path, target: Path, short_side: int) -> str:
    """The first seconds of `source` as anyone would make them: x264, medium, CRF 23, key frames 250 apart."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        video = reader.streams.best("video")
        rate = video.average_rate
        stream = writer.add_stream("libx264", rate=rate, options={"preset": "medium", "crf": "23"})
        scale = short_side / min(video.width, video.height)
        stream.width, stream.height = (
            2 * round(side * scale / 2) for side in (video.width, video.height)
        )
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(reader.decode(video)):
            if number >= CHUNK_SECONDS * rate:
                break
            frame = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, 0
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return str(target)


def _scaled(crop: CropBox, content: Content) -> CropBox:
    """The same part of the picture at 720p."""
    scale = 720 / min(content.height, content.width)
    top, left, height, width = (
        2 * int(side * scale / 2) for side in (crop.top, crop.left, crop.height, crop.width)
    )
    return CropBox(top, left, height, width, crop.hflip)


def _row(method: str, times: Times) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "what": METHODS[method]}
    for protocol in ("t4_1s", "t16_s4"):
        cells = {
            video: cell for (p, video), cell in times.items() if p == protocol and method in cell
        }
        if not cells:
            continue
        row[f"{protocol} ms"] = median(median(cell[method]) for cell in cells.values())
        ratios = _ratios(times, protocol, method, "d ours")
        row[f"{protocol} : d"] = median(ratios)
        row[f"{protocol} : d, videos"] = f"{min(ratios):.1f} to {max(ratios):.1f}"
    return row


def _ratios(times: Times, protocol: str, above: str, below: str) -> list[float]:
    return [
        median(cell[above]) / median(cell[below])
        for (p, _), cell in times.items()
        if p == protocol and above in cell
    ]


def _claims(times: Times) -> list[Claim]:
    claims = []
    for name, above, below, goals, at_most in CLAIMS:
        for protocol, goal in zip(("t4_1s", "t16_s4"), goals):
            if goal is not None and (ratios := _ratios(times, protocol, above, below)):
                claims.append(Claim(f"{name}, {protocol}", median(ratios), goal, at_most))
    return claims


def _sizes(contents: Sequence[Content], prepared: PrepareReport) -> list[dict[str, Any]]:
    default = sum(content.default.index.file_size for content in contents)
    return [
        {
            "method": "prepare",
            "what": (
                f"{prepared.encoded_seconds:.0f} s of video in {prepared.wall_seconds:.0f} s "
                f"({prepared.speed:.1f}x real time, one process); {prepared.psnr:.1f} dB"
            ),
        },
        {
            "method": "store size",
            "what": (
                f"{prepared.store_bytes / 1e6:.1f} MB, {prepared.size_ratio:.2f}x the sources' "
                f"{prepared.source_bytes / 1e6:.1f} MB "
                f"(their first {CHUNK_SECONDS:.0f} s at 288 px, x264 default: {default / 1e6:.1f} MB)"
            ),
        },
    ]


if __name__ == "__main__":
    main()
