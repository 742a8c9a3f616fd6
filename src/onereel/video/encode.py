"""How a chunk is encoded: the four profiles, the store's one colour space, and the file that comes out.

Every chunk is H.264 in MP4, 4:2:0, limited-range BT.601, closed GOPs, one constant frame rate, no sound. BT.601
rather than BT.709, because it is what every reader assumes that ignores the tag (a chunk has the height of
standard-definition video): the tag and the default then agree. Only the matrix and the range are converted; RGB
keeps the meaning it had in the source (no gamut or tone mapping).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

PIXEL_FORMAT = "yuv420p"
COLOR_SPACE_CODE = 6
"""AVCOL_SPC_SMPTE170M, the BT.601 matrix, as H.264 tags it."""
SCALE_FLAGS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT

# AVColorSpace of a frame -> the matrix that swscale is told. Unspecified (2) counts as BT.601, as in FFmpeg itself.
_SOURCE_MATRIX = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


@dataclass(frozen=True)
class Profile:
    """One way to encode: what it is for, x264's options, and the default quality.

    Attributes:
        description: one line for `--help`: structure, read cost, size and quality (see `PROFILES`).
        options: x264 options by FFmpeg's names.
        crf: constant rate factor where none is given (lower is better; 18 to 28 is usual).
    """

    description: str
    options: dict[str, str]
    crf: float = 23.0


# What every reader of a clip must decode and nobody sees: GOPs of 32 with fixed B-frames, CAVLC, no deblocking.
# Without psychovisual tuning the same PSNR takes a tenth fewer bytes, and parsing them is two fifths of the time.
_CHEAP_TO_READ = {
    "g": "32",
    "b_strategy": "0",
    "sc_threshold": "0",
    "coder": "0",
    "deblock": "no",
    "psy": "0",
    "aq-strength": "0.5",
}

PROFILES: dict[str, Profile] = {
    "fast": Profile(
        "15 B-frames that refer to key and P-frames only, CAVLC: 3.2 / 8.6 ms to read; 274 kb/s, 42.7 dB",
        _CHEAP_TO_READ
        | {"bf": "15", "b-pyramid": "none", "refs": "1", "weightp": "none", "weightb": "0"},
    ),
    "balanced": Profile(
        "7 B-frames in a fixed pyramid, CAVLC: 4.3 / 11.1 ms to read; 247 kb/s, 43.6 dB",
        _CHEAP_TO_READ | {"bf": "7", "b-pyramid": "normal"},
    ),
    "small": Profile(
        "GOP 30, x264's own B-frames, CABAC: 8.3 / 23.5 ms to read; 265 kb/s, 44.2 dB",
        {"g": "30"},
    ),
    "intra": Profile(
        "every frame a key frame: 2.6 / 9.1 ms to read; 1089 kb/s, 40.3 dB",
        {"g": "1", "bf": "0", "tune": "fastdecode"},
    ),
}
"""The figures, printed by `benchmarks/profiles.py`: seven real videos (316 s, 10 to 30 frames a second) at 288
pixels and CRF 23; one core's CPU time to read 4 frames of a random second / 16 frames 4 apart, cropped and scaled to
224; bit rate; luma PSNR. Profiles differ in quality at one CRF, so rates alone understate how small `small` is."""


def fitted_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """`(height, width)`, both even, of a picture scaled down to `short_side`; never larger than it was."""
    scale = min(1.0, short_side / min(height, width))
    return tuple(max(2, 2 * round(side * scale / 2 - 0.25)) for side in (height, width))  # type: ignore[return-value]


class FrameScaler:
    """Scales, turns and recolours decoded frames to what the store holds, also where their size changes in mid-stream.

    Args:
        height: of the result, even; of the displayed picture, after rotation.
        width: likewise.
        rotation: clockwise turn in degrees that displays the source upright (0, 90, 180, 270).
    """

    def __init__(self, height: int, width: int, rotation: int) -> None:
        self.rotation = rotation
        self.reformatter = VideoReformatter()
        self.coded_size = (width, height) if rotation in (90, 270) else (height, width)

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame as yuv420p, BT.601, limited range, in one pass of swscale."""
        height, width = self.coded_size
        is_rgb = frame.format.is_rgb
        full = is_rgb or frame.color_range == ColorRange.JPEG or "yuvj" in frame.format.name
        matrix = None if is_rgb else _SOURCE_MATRIX.get(frame.colorspace, Colorspace.ITU601)
        scaled = self.reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=PIXEL_FORMAT,
            src_colorspace=matrix,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=SCALE_FLAGS,
            threads=1,
        )
        return _turned(scaled, self.rotation) if self.rotation else scaled


def _turned(frame: av.VideoFrame, rotation: int) -> av.VideoFrame:
    planes = np.split(
        frame.to_ndarray().reshape(-1),
        np.cumsum([frame.width * frame.height, frame.width * frame.height // 4]),
    )
    shapes = [(frame.height >> shift, frame.width >> shift) for shift in (0, 1, 1)]
    turned = [np.rot90(p.reshape(s), -rotation // 90) for p, s in zip(planes, shapes)]
    flat = np.concatenate([p.reshape(-1) for p in turned])
    return av.VideoFrame.from_ndarray(flat.reshape(-1, turned[0].shape[1]), format=PIXEL_FORMAT)


def write_chunk(
    path: str, frames: Iterable[av.VideoFrame], fps: Fraction, profile: str, crf: float
) -> int:
    """Encode scaled `frames` at a constant rate into the MP4 file `path`; returns how many there were.

    The encoder runs on one thread: parallelism comes from chunks, and its output then depends on nothing else.
    """
    options = {**PROFILES[profile].options, "preset": "medium", "crf": f"{crf:g}"}
    options |= {"flags": "+cgop"} | _reproducible()
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        count = 0
        for count, frame in enumerate(frames, start=1):
            if count == 1:
                _describe(stream.codec_context, frame)
            plain = _restamped(frame, count - 1, fps)
            container.mux(stream.encode(plain))
        container.mux(stream.encode(None))
    return count


@functools.cache
def _reproducible() -> dict[str, str]:
    """x264's AVX-512 code gives different bytes from run to run (in MB-tree, small or odd sizes); AVX2 is as fast."""
    with contextlib.suppress(OSError):
        if "avx512" in Path("/proc/cpuinfo").read_text():
            return {"x264-params": "asm=AVX2"}
    return {}


def _describe(context: av.VideoCodecContext, frame: av.VideoFrame) -> None:
    context.width, context.height, context.pix_fmt = frame.width, frame.height, PIXEL_FORMAT
    context.colorspace, context.color_range = COLOR_SPACE_CODE, ColorRange.MPEG
    context.thread_count = 1


def _restamped(frame: av.VideoFrame, number: int, fps: Fraction) -> av.VideoFrame:
    """The frame at tick `number`, its type (key or not) left to the encoder."""
    frame.pts, frame.time_base = number, 1 / fps
    frame.pict_type = 0
    return frame


def luma(frame: av.VideoFrame) -> np.ndarray:
    """The brightness plane, uint8 `(height, width)`, copied."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return rows[:, : frame.width].copy()


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of 8-bit samples in dB; identical pictures count as 100 dB."""
    return 100.0 if mean_squared_error == 0 else 10 * float(np.log10(255**2 / mean_squared_error))
