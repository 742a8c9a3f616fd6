"""What goes in: which clips, how they are changed, and which of their tubelets the model sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onereel.config.checks import require
from onereel.errors import ConfigError


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are read."""

    train: str = ""
    """Training list: a CSV with path,label or path,caption[,start,end], a "path label" list, a folder per class, or a
    data set's own file (docs/data.md); a CSV with path alone where no label is learned."""
    val: str = ""
    """Validation list, in any of the same forms."""
    hold_out_ratio: float = 0.0
    """Share of the training list's videos that is kept out of training, for `onereel tune-budget` to choose on."""
    root: str = ""
    """Folder that relative paths start from; empty: the folder of the list."""
    store: str = ""
    """Chunk store made by `onereel prepare`; empty: read the raw files."""
    captions: Literal["each", "paragraph"] = "each"
    """each: every caption at its own time. paragraph: all captions of a video, by time, as one about all of it."""
    num_frames: int = 16
    """Frames of a clip that the model gets (T); frame selection reads more and chooses these."""
    sampling: Literal["segment", "dense"] = "segment"
    """segment: T equal parts of the video, one frame of each. dense: T frames, sampling_rate apart."""
    sampling_rate: int = 4
    """Source frames between two frames of a dense clip."""
    size: int = 224
    """Height and width of the clip in pixels."""
    scaling: Literal["loader", "device"] = "loader"
    """loader: workers crop, scale and colour. device: clips travel as decoded (4:2:0, in fewer bytes), and the device
    scales and colours them: about a third of what a clip costs the workers; for a GPU that waits for them."""
    num_frames_choices: tuple[int, ...] = ()
    """Flexible sampling: each training batch draws its num_frames from these; empty: num_frames, as in evaluation."""
    size_choices: tuple[int, ...] = ()
    """Flexible sampling: each training batch draws its size from these; empty: size, as in evaluation."""
    token_window: tuple[int, int] = (0, 0)
    """Flexible sampling: fewest and most tubelets of a clip; pairs outside are never drawn. 0 0: no bounds."""
    crop: Literal["random-resized", "multi-scale", "center"] = "random-resized"
    """Training crop; evaluation uses centre or three-crop (eval.num_crops)."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that a random resized crop takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a random resized crop."""
    cache_views: int = 0
    """Random views of each sample (K) whose features are made once, where the spatial half is frozen, or by the teacher
    of a distillation: epoch e then trains on view e mod K, without decoding or encoding a frame, or without asking
    the teacher. 0: off."""
    cache: str = ""
    """Folder of these features; runs with the same frozen half or teacher, list and views share it. Empty:
    RUN/features."""
    cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of these features; float32: training is, bit for bit, that without a cache, up to epoch K."""
    repeats: int = 1
    """Views of one decoded video per sample (repeated augmentation); each counts as a clip of the batch."""
    num_workers: int = -1
    """Decoding processes per device; -1: one per core left over, 0: in the training process."""
    prefetch: int = 2
    """Batches that each worker reads ahead."""
    max_bad_ratio: float = 0.01
    """Share of samples that may fail to decode before the run stops."""
    timeout_seconds: float = 30.0
    """Processor time that one clip's decode may take before it counts as failed."""

    def __post_init__(self) -> None:
        require(self.num_frames >= 1, "data.num_frames", self.num_frames, "1 or more")
        require(self.sampling_rate >= 1, "data.sampling_rate", self.sampling_rate, "1 or more")
        require(_is_size(self.size), "data.size", self.size, "even, 16 or more")
        self._check_flexible()
        require(self.cache_views >= 0, "data.cache_views", self.cache_views, "0 or more")
        require(self.repeats >= 1, "data.repeats", self.repeats, "1 or more")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, "data.crop_scale", self.crop_scale, "0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, "data.crop_ratio", self.crop_ratio, "0 < low <= high")
        held = self.hold_out_ratio
        require(0 <= held < 1, "data.hold_out_ratio", held, "0 or more, below 1")
        require(0 <= self.max_bad_ratio <= 1, "data.max_bad_ratio", self.max_bad_ratio, "0 to 1")
        require(self.num_workers >= -1, "data.num_workers", self.num_workers, "-1 or more")
        require(self.prefetch >= 1, "data.prefetch", self.prefetch, "1 or more")
        require(self.timeout_seconds > 0, "data.timeout_seconds", self.timeout_seconds, "above 0")

    def _check_flexible(self) -> None:
        frames, sizes, (low, high) = self.num_frames_choices, self.size_choices, self.token_window
        require(min(frames, default=1) >= 1, "data.num_frames_choices", frames, "each 1 or more")
        require(all(map(_is_size, sizes)), "data.size_choices", sizes, "each even, 16 or more")
        require(
            0 <= low <= high, "data.token_window", self.token_window, "0 <= fewest <= most tokens"
        )
        if high and not self.is_flexible:
            raise ConfigError(
                f"data.token_window is {self.token_window}, but there is nothing to draw: give data.num_frames_choices "
                "or data.size_choices, or set it to 0 0"
            )

    @property
    def is_flexible(self) -> bool:
        """Whether training batches differ in frames or size."""
        return bool(self.num_frames_choices or self.size_choices)


def _is_size(pixels: int) -> bool:
    return pixels >= 16 and pixels % 2 == 0


@dataclass(frozen=True)
class AugmentConfig:
    """Batch augmentation on the device, in training only: one draw per clip, the same for its frames."""

    hflip_prob: float = 0.5
    """Probability of mirroring a clip; 0 where left and right differ in meaning (SSv2, gestures)."""
    randaugment_num_ops: int = 0
    """RandAugment operations per clip; 0: off."""
    randaugment_magnitude: float = 7.0
    """Strength of RandAugment, 0 to 10."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    erase_prob: float = 0.0
    """Probability of erasing a box, the same box in all frames."""
    mixup_alpha: float = 0.0
    """Beta parameter of mixup; 0: off."""
    cutmix_alpha: float = 0.0
    """Beta parameter of cutmix; 0: off."""
    mix_prob: float = 1.0
    """Probability that a clip is mixed at all, where mixup or cutmix is on."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of R, G, B in 0..1 (ImageNet)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B in 0..1 (ImageNet)."""

    def __post_init__(self) -> None:
        for name in ("hflip_prob", "erase_prob", "mix_prob"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name}", getattr(self, name), "0 to 1")
        for name in ("randaugment_num_ops", "mixup_alpha", "cutmix_alpha"):
            require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "0 or more")
        require(min(self.std) > 0, "augment.std", self.std, "above 0")


@dataclass(frozen=True)
class TokensConfig:
    """Which tubelets the model sees."""

    kind: str = "all"
    """Selector: all, random, tube, run-length (RLT), redundancy (EVEREST), group-dynamic (Flux)."""
    budget: Literal["auto", "threshold", "quantile", "clip", "group", "batch"] = "auto"
    """What bounds the tokens: a score; or an exact count per clip, per group in time, or on average over the batch;
    quantile: at most that count, ties left out. auto: run-length threshold, group-dynamic group, others clip."""
    threshold: float = 0.1
    """budget threshold: score above which a tubelet is kept; for run-length the mean absolute difference of normalised
    pixels (RLT section 3)."""
    keep_ratio: float = 0.0
    """Share of tubelets kept, rounded down; 0: the selector's own (redundancy 0.6, others 0.5)."""
    token_budget: int = 0
    """Tokens kept per clip, exactly, in place of keep_ratio; 0: keep_ratio."""
    groups: int = 0
    """group-dynamic, budget group: parts of a clip in time that are ranked apart; 0: Flux's rule (4, or 2)."""
    reference: Literal["adjacent", "anchor"] = "adjacent"
    """run-length: compare with the neighbouring tubelet (as published) or with the head of the run."""
    noise_cell: int = 1
    """run-length: average cells of so many pixels squared before comparing; 2 makes sensor noise half as loud."""
    follow_camera: bool = False
    """run-length: don't count as new what only moved with the camera (by a threshold: half a patch at most); for
    hand-held video."""
    min_per_tubelet: int = 0
    """budget clip, group: tokens that every tubelet in time keeps at least."""
    cap_cuts: bool = False
    """run-length with a count, redundancy, group-dynamic: let a scene cut claim half of its tubelet, not all."""
    length_embedding: bool = False
    """Add a learned embedding of each token's run length (zero-initialised)."""
    where: Literal["device", "loader"] = "device"
    """device: the model selects. loader: the workers do, and only kept patches travel to the device."""
    frame_selection: float = 0.0
    """Frames read per frame of the clip, which is chosen among them by kept tokens (EVEREST: 1.5); 0 or 1: off."""

    def __post_init__(self) -> None:
        require(
            self.frame_selection == 0 or 1 <= self.frame_selection < math.inf,
            "tokens.frame_selection",
            self.frame_selection,
            "0, or 1 or more",
        )
        require(0 <= self.threshold < math.inf, "tokens.threshold", self.threshold, "0 or more")
        require(0 <= self.keep_ratio <= 1, "tokens.keep_ratio", self.keep_ratio, "0 to 1")
        require(self.noise_cell >= 1, "tokens.noise_cell", self.noise_cell, "1 or more")
        for name in ("token_budget", "groups", "min_per_tubelet"):
            require(getattr(self, name) >= 0, f"tokens.{name}", getattr(self, name), "0 or more")
