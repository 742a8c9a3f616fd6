"""Clips to tubelets and back. Tensor letters: see `onereel.types`; t is tubelet_size, p is patch_size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from onereel.errors import ConfigError
from onereel.types import ClipShape, TubeletGrid


def tubelet_grid(
    num_frames: int, height: int, width: int, tubelet_size: int, patch_size: int
) -> TubeletGrid:
    """The grid of tubelets that cover a clip exactly; raises ConfigError where a side doesn't divide."""
    for side, count, block, name in (
        ("num_frames", num_frames, tubelet_size, "tubelet_size"),
        ("height", height, patch_size, "patch_size"),
        ("width", width, patch_size, "patch_size"),
    ):
        if block < 1:
            raise ConfigError(f"{name} is {block}; allowed: 1 or more")
        if count < block or count % block:
            below, above = count // block * block, -(-count // block) * block
            nearest = f"{below} or {above}" if below else f"{above}"
            raise ConfigError(
                f"{side} {count} is not a multiple of {name} {block}. Use {side} {nearest}, "
                f"or a {name} that divides {count}."
            )
    return TubeletGrid(num_frames // tubelet_size, height // patch_size, width // patch_size)


def shapes_in_window(
    frames: Sequence[int],
    sizes: Sequence[int],
    window: tuple[int, int],
    tubelet_size: int,
    patch_size: int,
) -> tuple[ClipShape, ...]:
    """The pairs of `frames` and `sizes` whose clips have `window` tokens, bounds included; (0, 0): all pairs.

    Flux draws from these (arXiv 2503.14237, table 14): 4, 6 ... 24 frames of 168, 196 ... 252 pixels within
    (2048, 4096) are 18 of 44 pairs. Raises ConfigError where none is left, or a side doesn't divide.
    """
    counts = {
        ClipShape(t, s): tubelet_grid(t, s, s, tubelet_size, patch_size).num_tokens
        for t in dict.fromkeys(frames)
        for s in dict.fromkeys(sizes)
    }
    low, high = window if any(window) else (0, max(counts.values()))
    inside = tuple(shape for shape, count in counts.items() if low <= count <= high)
    if not inside:
        raise ConfigError(
            f"data.token_window is {low} to {high} tokens, and the clips of data.num_frames_choices and size_choices "
            f"have {', '.join(map(str, sorted(set(counts.values()))))}; widen the window or add choices"
        )
    return inside


def clip_grid(clips: Tensor, tubelet_size: int, patch_size: int) -> TubeletGrid:
    """The grid of `clips (B,T,C,H,W)`; raises as `tubelet_grid` does."""
    if clips.ndim != 5:
        raise ConfigError(f"clips must be (B, T, C, H, W), not {tuple(clips.shape)}")
    _, num_frames, num_channels, height, width = clips.shape
    if num_frames == 3 < num_channels:  # pictures have three colours
        raise ConfigError(
            f"clips must be (B, T, C, H, W), and {tuple(clips.shape)} looks like (B, C, T, H, W): give "
            "clips.transpose(1, 2)"
        )
    return tubelet_grid(num_frames, height, width, tubelet_size, patch_size)


def patchify(clips: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """`clips (B,T,C,H,W)` to patches `(B,N,P)`: N in order (t,h,w), the P values of a patch in order (c,t,h,w)."""
    gt, gh, gw = clip_grid(clips, tubelet_size, patch_size)
    blocks = clips.unflatten(1, (gt, tubelet_size))
    blocks = blocks.unflatten(-1, (gw, patch_size)).unflatten(-3, (gh, patch_size))
    # (B, gt, t, C, gh, p, gw, p) -> (B, gt, gh, gw, C, t, p, p)
    blocks = blocks.permute(0, 1, 4, 6, 3, 2, 5, 7)
    return blocks.flatten(4).flatten(1, 3)


def unpatchify(patches: Tensor, grid: TubeletGrid, tubelet_size: int, patch_size: int) -> Tensor:
    """The inverse of `patchify`: `patches (B,N,P)` to clips `(B,T,C,H,W)`."""
    block = (-1, tubelet_size, patch_size, patch_size)
    blocks = patches.unflatten(1, tuple(grid)).unflatten(-1, block)
    # (B, gt, gh, gw, C, t, p, p) -> (B, gt, t, C, gh, p, gw, p)
    blocks = blocks.permute(0, 1, 5, 4, 2, 6, 3, 7)
    return blocks.flatten(6).flatten(4, 5).flatten(1, 2)
