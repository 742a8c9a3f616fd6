"""Clips to tubelets and back. Tensor letters: see `onereel.types`; t is tubelet_size, p is patch_size."""

from __future__ import annotations

from torch import Tensor

from onereel.errors import ConfigError
from onereel.types import TubeletGrid


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


def clip_grid(clips: Tensor, tubelet_size: int, patch_size: int) -> TubeletGrid:
    """The grid of `clips (B,T,C,H,W)`; raises as `tubelet_grid` does."""
    if clips.ndim != 5:
        raise ConfigError(f"clips must be (B, T, C, H, W), not {tuple(clips.shape)}")
    _, num_frames, _, height, width = clips.shape
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
