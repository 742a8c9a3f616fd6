"""The frozen dataclasses that cross from one room to another. They validate themselves, and do
little else.

Tensor letters, here and everywhere: B batch, T frames, C channels, H W pixels, N tubelets of a clip, M tokens of a
packed batch, P values of a patch, D width, h heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class CropBox:
    """Which pixels of the displayed frame (after rotation) a clip takes, in source pixels.

    All four numbers are even: 4:2:0 video stores colour at half resolution, and a box that starts or ends between
    two colour samples moves the colours by half a pixel against the brightness.
    """

    top: int
    left: int
    height: int
    width: int
    hflip: bool = False

    def __post_init__(self) -> None:
        numbers = (self.top, self.left, self.height, self.width)
        if any(n % 2 for n in numbers) or min(numbers) < 0 or min(self.height, self.width) < 2:
            raise ValueError(
                f"{self}: top, left, height and width must be even, the last two at least 2"
            )


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What sampling must know of a video.

    Attributes:
        num_frames: frames that can be read, in display order.
        fps: frames per second; the average where the rate varies.
        height: pixels of the displayed frame, after rotation.
        width: likewise.
        frame_times: `(num_frames,)` float64 seconds of each frame from the first, or None where the rate is
            constant (frame i is then shown at `i / fps`).
    """

    num_frames: int
    fps: float
    height: int
    width: int
    frame_times: np.ndarray | None = None

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.fps


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """One clip, said in integers: enough to read the same pixels again anywhere.

    Attributes:
        video: name of the video in its library.
        frame_indices: frames in the order the model sees them (display order, from 0; repeats allowed).
        crop: the box that all frames share.
        size: (height, width) of the pixels that come out.
    """

    video: str
    frame_indices: tuple[int, ...]
    crop: CropBox
    size: tuple[int, int]


class ClipShape(NamedTuple):
    """Frames of a clip, and pixels of its height and width."""

    num_frames: int
    size: int


class SampleKey(NamedTuple):
    """Which sample of which epoch, and which of its views (repeated augmentation, multi-view test)."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which a key has no use for
    view: int = 0

    def drawn(self, num_epochs: int) -> SampleKey:
        """The key that this one's clip is drawn by, where epochs repeat after `num_epochs`; 0: they never do."""
        return self._replace(epoch=self.epoch % num_epochs) if num_epochs else self


class YuvLayout(NamedTuple):
    """How the pixels of a 4:2:0 clip lie, and what makes a picture of them.

    Attributes:
        height, width: of the box as coded (before rotation), both even.
        color_space: AVColorSpace number; all but 1, 4, 7, 9, 10 count as BT.601.
        full_range: whether values use all of 0..255.
        rotation: clockwise turn that displays a frame upright: 0, 90, 180 or 270 degrees.
        hflip: whether the upright picture is mirrored.
    """

    height: int
    width: int
    color_space: int
    full_range: bool
    rotation: int
    hflip: bool

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width * 3 // 2

    def planes(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the pixels of F frames: brightness `(F, h, w)`, blue and red difference `(F, h/2, w/2)`."""
        pixels, half = self.height * self.width, (self.height // 2, self.width // 2)
        frames = values.view(-1, self.frame_bytes)
        y, u, v = frames.split((pixels, pixels // 4, pixels // 4), dim=1)
        return y.unflatten(1, (self.height, self.width)), u.unflatten(1, half), v.unflatten(1, half)


@dataclass(frozen=True, slots=True)
class YuvClips:
    """Clips as they were decoded, to be coloured and scaled on the device (`data/yuv.py`).

    Attributes:
        values: uint8, clip after clip, frame after frame; of a frame brightness (h, w), then blue and red difference
            (h/2, w/2) each (I420).
        layouts: one per clip.
        num_frames: T.
        size: (height, width) that the clips will have.
    """

    values: Tensor
    layouts: tuple[YuvLayout, ...]
    num_frames: int
    size: tuple[int, int]

    def __post_init__(self) -> None:
        needed = self.num_frames * sum(layout.frame_bytes for layout in self.layouts)
        if self.values.ndim != 1 or self.values.numel() != needed:
            raise ValueError(f"values must be uint8 ({needed},), not {tuple(self.values.shape)}")

    @property
    def device(self) -> torch.device:
        return self.values.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> YuvClips:
        """The same on `device`."""
        return replace(self, values=self.values.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> YuvClips:
        """The same in page-locked memory; PyTorch's loader calls it."""
        return replace(self, values=self.values.pin_memory())


@dataclass(slots=True)
class Batch:
    """What the loader hands to the objective. Not frozen: the device step replaces `clips`.

    Attributes:
        clips: uint8 `(B, T, C, H, W)` RGB from the loader; normalised float of the same shape after augmentation.
            Where the loader selects tokens: the kept patches of these clips, uint8 and float likewise. Where clips
            are scaled on the device: YuvClips from the loader.
        keys: one SampleKey per clip; randomness for a clip derives from it.
        labels: int64 `(B,)` class indices, or None.
        soft_labels: float32 `(B, num_classes)` after mixing, or None.
        captions: one text per clip, or None.
        scoring_clips: what token selection looks at where it must not see `clips` (erased pixels), else None.
        num_failed: samples of this batch that could not be read; they are absent from the tensors.
        num_clips: clips that count. 0 with one blank clip in `clips` when every sample of the batch failed, so
            that a rank without data still takes part in the step.
        number: of the micro-batch in its epoch, the same on all ranks; what a whole micro-batch shares is drawn by it.
    """

    clips: Tensor | Packed | YuvClips
    keys: list[SampleKey]
    labels: Tensor | None = None
    soft_labels: Tensor | None = None
    captions: list[str] | None = None
    scoring_clips: Tensor | None = None
    num_failed: int = 0
    num_clips: int = field(kw_only=True)
    number: int = 0


class TubeletGrid(NamedTuple):
    """Tubelets along time, height and width; tokens are in order (t, h, w), t slowest."""

    gt: int
    gh: int
    gw: int

    @property
    def num_tokens(self) -> int:
        return self.gt * self.gh * self.gw


@dataclass(frozen=True, slots=True)
class TokenSelection:
    """Which tubelets survive.

    Attributes:
        keep_mask: bool `(B, N)`, True = kept.
        run_lengths: int64 `(B, N)`, tubelets that a kept token stands for (undefined where dropped), or None for
            selectors without runs.
        num_kept: tokens that each clip keeps, where the budget fixes it: packing then need not ask the device.
        num_kept_per_frame: tokens that each clip keeps at each tubelet in time, where the budget fixes that too.
    """

    keep_mask: Tensor
    run_lengths: Tensor | None = None
    num_kept: int | None = None
    num_kept_per_frame: int | None = None

    def __post_init__(self) -> None:
        if self.keep_mask.ndim != 2 or str(self.keep_mask.dtype) != "torch.bool":
            raise ValueError(
                f"keep_mask must be bool (B, N), not {self.keep_mask.dtype} {tuple(self.keep_mask.shape)}"
            )


@dataclass(frozen=True, slots=True)
class Packed:
    """All kept tokens of a batch, back to back, clip after clip.

    Attributes:
        values: `(M, P)` patches or `(M, D)` features.
        lengths: tokens of each clip, on the host (no device synchronisation).
        cu_seqlens: int32 `(B + 1,)` on the device of `values`: clip b is `values[cu_seqlens[b]:cu_seqlens[b + 1]]`.
        coordinates: int64 `(M, 3)` (t, h, w) of each token in the grid.
        grid: the grid that the coordinates index.
        run_lengths: int64 `(M,)`, or None.
        frame_lengths: tokens of each clip at each tubelet in time, `B * gt` numbers on the host, where they are known
            without asking the device, else None.
    """

    values: Tensor
    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    coordinates: Tensor
    grid: TubeletGrid
    run_lengths: Tensor | None = None
    frame_lengths: tuple[int, ...] | None = None

    @property
    def batch_size(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.values.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Packed:
        """The same on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Packed:
        """The same in page-locked memory; PyTorch's loader calls it."""
        # Made contiguous, since a copy to the device of anything else goes by way of memory that isn't pinned.
        return self._each(lambda tensor: tensor.contiguous().pin_memory())

    def part(self, first: int, stop: int) -> Packed:
        """Clips `first` to `stop` (excluded), as views."""
        before = sum(self.lengths[:first])
        tokens = slice(before, before + sum(self.lengths[first:stop]))
        frames = slice(first * self.grid.gt, stop * self.grid.gt)
        return replace(
            self,
            values=self.values[tokens],
            lengths=self.lengths[first:stop],
            cu_seqlens=self.cu_seqlens[first : stop + 1] - before,
            coordinates=self.coordinates[tokens],
            run_lengths=None if self.run_lengths is None else self.run_lengths[tokens],
            frame_lengths=None if self.frame_lengths is None else self.frame_lengths[frames],
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> Packed:
        return replace(
            self,
            values=change(self.values),
            cu_seqlens=change(self.cu_seqlens),
            coordinates=change(self.coordinates),
            run_lengths=None if self.run_lengths is None else change(self.run_lengths),
        )

    @property
    def is_uniform(self) -> bool:
        """Whether every clip has the same number of tokens (attention is then one batched call)."""
        return len(set(self.lengths)) <= 1

    def __repr__(self) -> str:
        shape, grid = tuple(self.values.shape), tuple(self.grid)
        return f"{type(self).__name__}(values={shape}, lengths={self.lengths}, grid={grid})"


@dataclass(frozen=True, slots=True)
class FrameFeatures(Packed):
    """What the spatial half of a factorised encoder says of each clip: one row per tubelet in time that kept a token.

    `grid` is (gt, 1, 1) and a row's coordinates are (t, 0, 0), its true time. `values (M, W)` begin with the frame's
    vector, normalised; with the adapter "fusion" those of the layers below follow, nearest first, not normalised.

    Attributes:
        tokens: the features `(N, D)` of all tokens of each frame, one segment per row of `values`, where an adapter
            attends to them; else None.
    """

    tokens: Packed | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer for one video: class names with probabilities, most probable first.

    Attributes:
        seconds: part of the video that it is about; None: all of it.
        index_ms: where it was timed: how long it took to learn where the video's packets lie (short where a file is
            indexed already), by `efficiency.own_clock`.
        answer_ms: reading, selection and forward pass of all views after that, likewise.
        wall_ms: both, by the wall clock.
    """

    video: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    seconds: tuple[float, float] | None = None
    index_ms: float | None = field(default=None, compare=False)
    answer_ms: float | None = field(default=None, compare=False)
    wall_ms: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Quarantined:
    """One sample or file that could not be used, and why."""

    path: str
    reason: str
    frame: int | None = None
    where: str = field(default="")
