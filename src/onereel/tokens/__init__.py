"""Clips to tokens, and which of them: tubelets, positions, selectors, packing."""

from onereel.tokens.packing import pack, pack_all, pack_clips, segment_mean, unpack
from onereel.tokens.positions import resize_positions, sincos_positions
from onereel.tokens.run_length import RunLength, run_lengths
from onereel.tokens.selector import KeepAll, RandomTokens, Selector, Tube
from onereel.tokens.tubelets import patchify, tubelet_grid, unpatchify

__all__ = [
    "KeepAll",
    "RandomTokens",
    "RunLength",
    "Selector",
    "Tube",
    "pack",
    "pack_all",
    "pack_clips",
    "patchify",
    "resize_positions",
    "run_lengths",
    "segment_mean",
    "sincos_positions",
    "tubelet_grid",
    "unpack",
    "unpatchify",
]
