"""What each guard of token selection does, on real clips and on real still frames that are panned or made noisy.

Shares are of the 1568 tokens of 16x224x224, tubelet 2, patch 16; the first tubelet alone is 0.125. Run-length tokens
keep by RLT's threshold, 0.1. Cuts join two real clips; they and the floor stand under EVEREST's rule with 470 tokens,
by embeddings of a random projection, as those of a model that has learned nothing yet.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common import Claim, arguments, real_videos, report
from onereel.config import AugmentConfig
from onereel.data.cropping import center_box
from onereel.data.sampling import dense_frames
from onereel.tokens.budgets import ClipCount
from onereel.tokens.guards import find_cuts
from onereel.tokens.pixels import STD
from onereel.tokens.redundancy import redundancy
from onereel.tokens.run_length import RunLength
from onereel.tokens.selector import Selector
from onereel.tokens.tubelets import patchify
from onereel.types import ClipSpec, TubeletGrid
from onereel.video.library import open_library

NUM_FRAMES, SIZE, TUBELET, PATCH = 16, 224, 2, 16
GRID = TubeletGrid(8, 14, 14)
RUN_LENGTH = {
    "as published": RunLength(),
    "noise_cell 2": RunLength(noise_cell=2),
    "noise_cell 4": RunLength(noise_cell=4),
    "follow_camera": RunLength(follow_camera=True),
    "both": RunLength(noise_cell=2, follow_camera=True),
}
BUDGET = ClipCount(0.3)
REDUNDANCY = {
    "as published": redundancy(BUDGET),
    "cap_cuts": redundancy(BUDGET, cap_cuts=True),
    "floor of 20": redundancy(BUDGET, min_per_tubelet=20),
}
SPEEDS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
SIGMAS = (3, 6, 9, 12)
SAMPLING_RATES = (1, 4)
NUM_WINDOWS = {"small": 3, "full": 12}
FIXED = ("bgs_highway", "intel_cars", "intel_onebyone")
Row = dict[str, Any]


def normalised(clips: Tensor) -> Tensor:
    """uint8 `(B, T, C, H, W)` as a model sees them."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (AugmentConfig.mean, STD))
    return (clips.float() / 255 - mean) / std


def read_windows(path: Path, sampling_rate: int, num_windows: int) -> Tensor:
    """Clips spread evenly over a video: uint8 `(num_windows, T, C, H, W)`."""
    library = open_library("", str(path.parent))
    info = library.info(path.name)
    box = center_box(info.height, info.width)
    clips = []
    for number in range(num_windows):
        frames = dense_frames(
            0, info.num_frames, NUM_FRAMES, sampling_rate, clip=number, num_clips=num_windows
        )
        clips.append(library.read(ClipSpec(path.name, frames, box, (SIZE, SIZE))))
    return torch.stack([torch.as_tensor(clip) for clip in clips])


def pan(clip: Tensor, speed: float) -> Tensor:
    """The clip's middle frame, magnified, seen through a window that moves right by `speed` pixels a frame."""
    side = SIZE + 64
    picture = F.interpolate(clip[NUM_FRAMES // 2][None].float(), size=(side, side), mode="bicubic")
    rows = torch.arange(SIZE) + 0.5 + 32
    frames = []
    for t in range(NUM_FRAMES):
        where = torch.meshgrid(rows + speed * (t - NUM_FRAMES / 2 + 0.5), rows, indexing="xy")
        grid = torch.stack(where, dim=-1)[None] / side * 2 - 1
        frames.append(F.grid_sample(picture, grid, mode="bicubic", align_corners=False)[0])
    return torch.stack(frames).round().clamp(0, 255).to(torch.uint8)


def noisy(clip: Tensor, sigma: float) -> Tensor:
    """The clip's middle frame at all times, with independent Gaussian noise of `sigma` grey levels."""
    still = clip[NUM_FRAMES // 2].float().expand(NUM_FRAMES, -1, -1, -1)
    noise = torch.randn(still.shape, generator=torch.Generator().manual_seed(0))
    return (still + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def kept(selector: Selector, clips: Tensor) -> Tensor:
    """bool `(B, N)`: what it keeps of uint8 clips, seen as the model does."""
    seen = normalised(clips)
    embeddings = None
    if selector.needs_embeddings:
        patches = patchify(seen, TUBELET, PATCH)
        weight = torch.randn(patches.shape[-1], 64, generator=torch.Generator().manual_seed(0))
        embeddings = patches @ weight
    return selector.select(seen, embeddings, GRID, None).keep_mask


def share_row(what: str, clips: Tensor) -> Row:
    row: Row = {"clips": what}
    for name, selector in RUN_LENGTH.items():
        row[name] = kept(selector, clips).float().mean().item()
    return row


def recall_row(what: str, clips: Tensor) -> Row:
    """Of the tokens kept as published, how many each guard keeps too; the first tubelet left out."""
    plain = kept(RUN_LENGTH["as published"], clips)[:, GRID.gh * GRID.gw :]
    row: Row = {"clips": what}
    for name, selector in RUN_LENGTH.items():
        both = kept(selector, clips)[:, GRID.gh * GRID.gw :] & plain
        row[name] = (both.sum() / plain.sum()).item()
    return row


def cut_rows(windows: Sequence[Tensor]) -> list[Row]:
    """Joins of the first halves of one video's clips and the second halves of another's."""
    half = NUM_FRAMES // 2
    joined = torch.cat(
        [
            torch.cat([a[:, :half], b[:, half:]], dim=1)
            for a, b in itertools.pairwise([*windows, windows[0]])
        ]
    )
    after_cut = half // TUBELET
    shares: Row = {"clips": "share of 470 tokens in the tubelet after a cut"}
    fewest: Row = {"clips": "fewest tokens of a tubelet, of 470"}
    uncut = torch.cat(list(windows))
    for name, selector in REDUNDANCY.items():
        counts = kept(selector, joined).unflatten(1, (GRID.gt, -1)).sum(2)
        shares[name] = (counts[:, after_cut] / counts.sum(1)).mean().item()
        counts = kept(selector, uncut).unflatten(1, (GRID.gt, -1)).sum(2)
        fewest[name] = counts.min(1).values.float().mean().item()
    cuts = find_cuts(joined, GRID)
    found: Row = {
        "clips": "cuts found where there is one",
        "cap_cuts": cuts[:, after_cut - 1].float().mean().item(),
    }
    alarms: Row = {
        "clips": "tubelets of uncut clips taken for cuts",
        "cap_cuts": find_cuts(uncut, GRID).float().mean().item(),
    }
    return [shares, found, alarms, fewest]


def mixing_rows(windows: Sequence[Tensor]) -> list[Row]:
    """What mixup and cutmix, half and half with another video's clip, make of the tokens."""
    ours = torch.cat(list(windows))
    theirs = torch.cat([*windows[1:], windows[0]])
    blended = ((ours.float() + theirs.float()) / 2).round().to(torch.uint8)
    pasted = torch.cat([ours[..., : SIZE // 2], theirs[..., SIZE // 2 :]], dim=-1)
    rows = [share_row("each of the clips to mix", ours), share_row("mixup, half and half", blended)]
    for rule, selector in (
        ("run-length", RUN_LENGTH["as published"]),
        ("redundancy, 470", REDUNDANCY["as published"]),
    ):
        counts = kept(selector, pasted).unflatten(1, tuple(GRID)).float()
        share = counts[..., GRID.gw // 2 :].sum((1, 2, 3)) / counts.sum((1, 2, 3))
        what = f"cutmix of halves, {rule}: mean distance of a half's tokens from .5"
        rows.append({"clips": what, "as published": (share - 0.5).abs().mean().item()})
    return rows


def cost_row(clips: Tensor) -> Row:
    """CPU milliseconds per clip, normalised floats, one thread."""
    row: Row = {"clips": "CPU ms per clip"}
    seen = normalised(clips)
    for name, selector in RUN_LENGTH.items():
        select = partial(selector.select, seen, None, GRID, None)
        row[name] = 1e3 * min(cpu_seconds(select) for _ in range(3)) / len(clips)
    return row


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def claims_of(rows: Sequence[Row]) -> list[Claim]:
    by_clips = {row["clips"]: row for row in rows}
    pan_row, noise_row = by_clips["pan, 1 px a frame"], by_clips["still, noise of 6 levels"]
    cut_row = by_clips["share of 470 tokens in the tubelet after a cut"]
    fixed = [row for row in rows if row["clips"].startswith(FIXED)]
    change = max(row["as published"] - row["follow_camera"] for row in fixed)
    return [
        Claim("pan of 1 px a frame, follow_camera", pan_row["follow_camera"], 0.25, at_most=True),
        Claim("still with noise of 6 levels, noise_cell 2", noise_row["noise_cell 2"], 0.13, True),
        Claim("share of 470 after a cut, cap_cuts", cut_row["cap_cuts"], 0.3, at_most=True),
        Claim("what follow_camera drops of fixed cameras", change, 0.01, at_most=True),
    ]


def main() -> None:
    options = arguments(__doc__, devices=("cpu",))
    torch.set_num_threads(1)
    videos = sorted(path for path in real_videos("long").iterdir() if path.is_file())
    count = NUM_WINDOWS[options.size]
    windows = {
        (video.stem, rate): read_windows(video, rate, count)
        for video in videos
        for rate in SAMPLING_RATES
    }
    stills = [clips[count // 2] for (_, rate), clips in windows.items() if rate == 1]
    rows = [
        share_row(f"pan, {speed:g} px a frame", torch.stack([pan(clip, speed) for clip in stills]))
        for speed in SPEEDS
    ]
    rows += [
        share_row(
            f"still, noise of {sigma} levels", torch.stack([noisy(clip, sigma) for clip in stills])
        )
        for sigma in SIGMAS
    ]
    rows += [share_row(f"{name}, 16x{rate}", clips) for (name, rate), clips in windows.items()]
    for rate in SAMPLING_RATES:
        clips = torch.cat([clips for (_, other), clips in windows.items() if other == rate])
        rows.append(recall_row(f"of what is kept as published, 16x{rate}", clips))
    slow = [clips for (_, rate), clips in windows.items() if rate == 1]
    rows += [*mixing_rows(slow), *cut_rows(slow)]
    rows.append(cost_row(torch.stack(stills)))
    report("Guards of token selection", rows, claims_of(rows), options.json)


if __name__ == "__main__":
    main()
