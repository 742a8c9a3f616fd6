"""What a clip costs to read: process CPU milliseconds on one thread, ours against what people have.

All methods read the same frames and the same crop, in random order, clip by clip, in one process. A ratio is that of
the medians within one video, and a claim is the median of the videos' ratios. "288 px" is the whole video as anyone
would store it: short side 288 at most, x264 with its default settings (key frames up to 250 apart); "720p" likewise,
its first 15 s, scaled up where the source is smaller. decord and torchcodec take part where they import (`pip install
decord torchcodec`; the latter needs FFmpeg's shared libraries on the loader's path).

"d ours" gives finished RGB clips (data.scaling loader), "d coded" the same boxes as they were decoded, for the device
to scale and colour (data.scaling device): what a worker spends where there is a GPU. "finished here" adds what that
takes where there is none. Every claim is made for both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from pyarrow import parquet
from torch import Tensor

from baselines import (
    SIZE,
    byte_resize,
    decord_frames,
    find,
    float_resize,
    pyav_frames,
    torchcodec_frames,
)
from common import Claim, arguments, real_videos, report
from onereel.data.cropping import random_resized_box
from onereel.data.yuv import to_rgb
from onereel.seeding import numpy_generator
from onereel.types import ClipSpec, CropBox, VideoInfo
from onereel.video.decode import VideoFile
from onereel.video.fused import FusedDecoder
from onereel.video.index import build_packet_index
from onereel.video.prepare import PrepareReport, prepare
from onereel.video.spans import plan_spans
from onereel.video.store import ChunkStore

SECONDS_720P = 15.0
NUM_ACTIONS = 3  # videos of actions5, besides all of `long`
NUM_720P = {"small": 2, "full": 7}
NUM_DRAWS = {"small": 12, "full": 60}
METHODS = {
    "a decord": "decord, 288 px default x264, float32 resize",
    "a PyAV": "PyAV, 288 px default x264, float32 resize",
    "a torchcodec": "torchcodec, 288 px default x264, float32 resize",
    "b torchcodec": "torchcodec on our store, uint8 resize",
    "c ours": "ours, 288 px default x264",
    "d ours": "ours, our store",
    "d coded": "ours, our store, scaling left to the device",
    "finished here": "the same, and scaled by the device's code on this CPU",
    "e bare": "bare decode of the frames that (d) must decode",
    "720p decord": "decord, 720p default x264, float32 resize",
    "720p PyAV": "PyAV, 720p default x264, float32 resize",
    "720p torchcodec": "torchcodec, 720p default x264, float32 resize",
}
FORMS = {"d ours": "ours on the store", "d coded": "ours on the store, scaled on the device"}
# name, numerator, denominator ("": d), goals for t4_1s and t16_s4 (None: no claim), whether the goal is an upper bound
CLAIMS = (
    ("decord on default x264 : {}", "a decord", "", (15.0, 9.0), False),
    ("PyAV on default x264 : {}", "a PyAV", "", (12.0, 6.5), False),
    ("torchcodec on default x264 : {}", "a torchcodec", "", (12.0, 6.5), False),
    ("torchcodec on the store : {}", "b torchcodec", "", (2.8, 2.2), False),
    ("{} : bare decode", "", "e bare", (1.25, 1.25), True),
    ("decord on 720p default x264 : {}", "720p decord", "", (None, 20.0), False),
    ("PyAV on 720p default x264 : {}", "720p PyAV", "", (None, 20.0), False),
)


@dataclass(frozen=True)
class Content:
    """One video in the forms that are compared.

    Attributes:
        name: its name in the store.
        chunks: its files in the store, in order, with packet indices.
        default: the whole of it, short side 288 at most, x264 with its default settings.
        original: its first seconds at 720p, or None.
        info: of the video in the store.
    """

    name: str
    chunks: list[VideoFile]
    default: VideoFile
    original: str | None
    info: VideoInfo


class Draw(NamedTuple):
    """One clip: frames of a chunk, the same frames counted in the whole video, and the crop."""

    chunk: VideoFile
    local: list[int]
    frames: list[int]
    crop: CropBox


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
    rows += [_video_row(content, times) for content in contents]
    report("CPU ms per clip, one thread (median)", rows + sizes, _claims(times), options.json)


Times = dict[tuple[str, str], dict[str, list[float]]]
"""(protocol, video) -> method -> milliseconds of each draw."""


def measure(contents: Sequence[Content], store: ChunkStore, num_draws: int) -> Times:
    """Read `num_draws` clips of each video in both protocols with all methods, clip by clip, in random order.

    Each timed call follows an untimed one of the same method on the clip before: processor caches and allocator are
    then as in a worker that does nothing else, not as another method left them.
    """
    ours = FusedDecoder()
    times: Times = {}
    for content in contents:
        for protocol in ("t4_1s", "t16_s4"):
            cell: dict[str, list[float]] = {}
            draws = [_draw(content, protocol, number) for number in range(num_draws + 1)]
            for number, (before, draw) in enumerate(pairwise(draws)):
                warm_up = dict(_methods(content, store, ours, before))
                timed = list(_methods(content, store, ours, draw))
                for k in numpy_generator(0, number, content.name, "order").permutation(len(timed)):
                    method, read = timed[k]
                    warm_up[method]()
                    start = time.process_time()
                    read()
                    cell.setdefault(method, []).append(1e3 * (time.process_time() - start))
            times[protocol, content.name] = cell
    return times


def _draw(content: Content, protocol: str, number: int) -> Draw:
    """A random window inside a random chunk (the first, which the 720p form also has, where there is one)."""
    generator = numpy_generator(0, number, content.name, protocol)
    span = max(4, round(content.info.fps)) if protocol == "t4_1s" else 61
    lengths = [chunk.index.num_frames for chunk in content.chunks if chunk.index]
    fits = [k for k, length in enumerate(lengths) if length >= span]
    chunk = int(generator.choice(fits[:1] if content.original else fits))
    start = int(generator.integers(lengths[chunk] - span + 1))
    if protocol == "t4_1s":
        local = start + np.sort(generator.choice(span, 4, replace=False))
    else:
        local = start + 4 * np.arange(16)
    frames = chunk * lengths[0] + local
    if (
        content.default.index
    ):  # a variable rate was made constant: a few frames may be more or fewer
        frames -= max(0, int(frames[-1]) - content.default.index.num_frames + 1)
    crop = random_resized_box(content.info.height, content.info.width, generator)
    return Draw(content.chunks[chunk], local.tolist(), frames.tolist(), crop)


def _methods(
    content: Content, store: ChunkStore, ours: FusedDecoder, draw: Draw
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What to time. Whatever a data set keeps from epoch to epoch (packet indices) is made outside."""
    default, frames, crop = content.default, draw.frames, draw.crop
    spec = ClipSpec(content.name, tuple(frames), crop, (SIZE, SIZE))
    readers: dict[str, Callable[[str, list[int]], Tensor]] = {"PyAV": pyav_frames}
    if find("decord"):
        readers["decord"] = decord_frames
    if find("torchcodec.decoders"):
        readers["torchcodec"] = torchcodec_frames
    for name, read in readers.items():
        yield f"a {name}", lambda read=read: float_resize(read(default.path, frames), crop)
    if "torchcodec" in readers:
        yield (
            "b torchcodec",
            lambda: byte_resize(torchcodec_frames(draw.chunk.path, draw.local), crop),
        )
    yield "c ours", lambda: ours.read(default, frames, crop, (SIZE, SIZE))
    yield "d ours", lambda: store.read(spec)
    yield "d coded", lambda: store.read_yuv(spec)
    yield "finished here", lambda: to_rgb(store.read_yuv(spec))
    yield "e bare", bare_decode(draw.chunk, draw.local)
    if (large := content.original) is not None:
        box = _scaled(crop, content)
        for name, read in readers.items():
            yield f"720p {name}", lambda read=read: float_resize(read(large, frames), box)


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
    chunks: dict[str, list[VideoFile]] = {}
    for row in parquet.read_table(Path(store.path) / "manifest.parquet").to_pylist():
        chunks.setdefault(row["video"], []).append(_indexed(str(Path(store.path) / row["path"])))
    contents = []
    for number, path in enumerate(sorted(sources, key=lambda path: -store.info(str(path)).height)):
        name, info = str(path), store.info(str(path))
        default = _indexed(
            _encoded(path, folder / f"{path.stem}_default.mp4", min(288, info.height))
        )
        original = None
        if number < num_720p:
            original = _encoded(path, folder / f"{path.stem}_720p.mp4", 720, SECONDS_720P)
        contents.append(Content(name, chunks[name], default, original, info))
    return contents


def _indexed(path: str) -> VideoFile:
    return VideoFile(path, build_packet_index(path))


def _encoded(source: Path, target: Path, short_side: int, seconds: float = float("inf")) -> str:
    """`source` (its first seconds) as anyone would make them: x264, medium, CRF 23, key frames 250 apart."""
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
            if number >= seconds * rate:
                break
            frame = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base, frame.pict_type = number, 1 / rate, 0
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return str(target)


def _scaled(crop: CropBox, content: Content) -> CropBox:
    """The same part of the picture at 720p."""
    scale = 720 / min(content.info.height, content.info.width)
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


def _video_row(content: Content, times: Times) -> dict[str, Any]:
    """The same for one video: what `d` takes, and how many times that the other methods take."""
    info = content.info
    what = f"{Path(content.name).stem}: {info.fps:.3g} fps, {info.num_frames / info.fps:.0f} s"
    row: dict[str, Any] = {"method": "d ours", "what": what}
    for protocol in ("t4_1s", "t16_s4"):
        cell = {name: median(values) for name, values in times[protocol, content.name].items()}
        row[f"{protocol} ms"] = cell["d ours"]
        compared = ("a decord", "a PyAV", "b torchcodec", "d coded", "e bare")
        names = [name for name in compared if name in cell]
        ratios = [f"{name[0]} {name[2:]} {cell[name] / cell['d ours']:.2f}" for name in names]
        row[f"{protocol} : d, videos"] = ", ".join(ratios)
    return row


def _ratios(times: Times, protocol: str, above: str, below: str) -> list[float]:
    return [
        median(cell[above]) / median(cell[below])
        for (p, _), cell in times.items()
        if p == protocol and above in cell
    ]


def _claims(times: Times) -> list[Claim]:
    claims = []
    for form, called in FORMS.items():
        for name, above, below, goals, at_most in CLAIMS:
            for protocol, goal in zip(("t4_1s", "t16_s4"), goals):
                ratios = _ratios(times, protocol, above or form, below or form)
                if goal is not None and ratios:
                    title = f"{name.format(called)}, {protocol}"
                    claims.append(Claim(title, median(ratios), goal, at_most))
    return claims


def _sizes(contents: Sequence[Content], prepared: PrepareReport) -> list[dict[str, Any]]:
    default = sum(c.default.index.file_size for c in contents if c.default.index)
    cost = (
        f"{prepared.encoded_seconds:.0f} s of video in {prepared.wall_seconds:.0f} s "
        f"({prepared.speed:.1f}x real time, one process); {prepared.psnr:.1f} dB"
    )
    size = (
        f"{prepared.store_bytes / 1e6:.1f} MB, {prepared.size_ratio:.2f}x the sources' "
        f"{prepared.source_bytes / 1e6:.1f} MB, {prepared.store_bytes / default:.2f}x the 288 px form's"
    )
    return [{"method": "prepare", "what": cost}, {"method": "store size", "what": size}]


if __name__ == "__main__":
    main()
