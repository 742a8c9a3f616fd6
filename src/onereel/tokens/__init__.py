"""Clips to tokens, and which of them: tubelets, positions, scores, budgets, selectors, packing."""

from onereel.tokens.budgets import (
    BatchCount,
    Budget,
    ClipCount,
    GroupCount,
    Quantile,
    Threshold,
    keep_first,
    rank,
)
from onereel.tokens.frames import FrameSelection
from onereel.tokens.group_dynamic import group_dynamic
from onereel.tokens.packing import pack, pack_all, pack_clips, segment_mean, unpack
from onereel.tokens.picking import PatchPicker
from onereel.tokens.positions import resize_positions, sincos_positions
from onereel.tokens.redundancy import redundancy
from onereel.tokens.run_length import RunLength
from onereel.tokens.runs import run_lengths
from onereel.tokens.scored import ScoredSelector, random_tokens
from onereel.tokens.scores import EmbeddingScore, PixelScore, RandomScore, Score
from onereel.tokens.selector import KeepAll, Selector, Tube
from onereel.tokens.tubelets import patchify, tubelet_grid, unpatchify

__all__ = [
    "BatchCount",
    "Budget",
    "ClipCount",
    "EmbeddingScore",
    "FrameSelection",
    "GroupCount",
    "KeepAll",
    "PatchPicker",
    "PixelScore",
    "Quantile",
    "RandomScore",
    "RunLength",
    "Score",
    "ScoredSelector",
    "Selector",
    "Threshold",
    "Tube",
    "group_dynamic",
    "keep_first",
    "pack",
    "pack_all",
    "pack_clips",
    "patchify",
    "random_tokens",
    "rank",
    "redundancy",
    "resize_positions",
    "run_lengths",
    "segment_mean",
    "sincos_positions",
    "tubelet_grid",
    "unpack",
    "unpatchify",
]
