"""Weights for a factorised encoder: of one like it, or of a transformer over space and time for one of its halves."""

from __future__ import annotations

import math
import re
from typing import Literal

from onereel.errors import ConfigError
from onereel.models.factorised import FactorisedEncoder
from onereel.models.pretrained.convert import Converted
from onereel.models.vit import VisionTransformer
from onereel.tokens.positions import resize_positions
from onereel.types import TubeletGrid

ENCODER = "encoder."
SPATIAL, TEMPORAL = f"{ENCODER}spatial.", f"{ENCODER}temporal."
NOT_OF_FRAMES = {
    "temporal_embed": "places in time; the temporal half has its own",
    "length_embed": "lengths of runs, which a frame has not",
}
Choice = Literal["even", "first"]


def into_halves(
    found: Converted, encoder: FactorisedEncoder, num_times: int = 1, prefix: str = ""
) -> None:
    """Put what is not of a factorised encoder into the spatial half, and fit both tables of positions; in place.

    Args:
        found: under our names, those of a factorised encoder or of a joint one (`encoder.…`).
        num_times: times in the joint encoder's learned table of positions; a place gets the mean of its own.
        prefix: in front of these names ("video." in a dual encoder).
    """
    joint, places = f"{prefix}{ENCODER}", f"{prefix}{SPATIAL}pos_embed"
    if not is_factorised(found, prefix):
        for name in [name for name in found.tensors if name.startswith(joint)]:
            part = name.removeprefix(joint)
            if part in NOT_OF_FRAMES:
                del found.tensors[name]
                found.left_out[found.origins.pop(name)] = NOT_OF_FRAMES[part]
            else:
                _rename(found, name, f"{prefix}{SPATIAL}{part}")
    if places in found.tensors and num_times > 1:
        found.tensors[places] = found.tensors[places].unflatten(0, (num_times, -1)).mean(dim=0)
        found.changes[places] = f"the mean of {num_times} times"
    fit_tables(found, encoder, prefix)


def fit_tables(found: Converted, encoder: FactorisedEncoder, prefix: str = "") -> None:
    """Fit a factorised encoder's learned tables of places and times to other sizes and lengths of clip; in place."""
    places, times = (f"{prefix}{half}pos_embed" for half in (SPATIAL, TEMPORAL))
    if places in found.tensors:
        side = math.isqrt(len(found.tensors[places]))
        _fit(found, places, TubeletGrid(1, side, side), encoder.spatial.grid)
    if times in found.tensors:
        length = len(found.tensors[times])
        _fit(found, times, TubeletGrid(length, 1, 1), encoder.temporal.grid)


def check_frozen(found: Converted, encoder: FactorisedEncoder, source: str) -> None:
    """Raise ConfigError where a frozen spatial half would keep a class token that was drawn at random."""
    spatial = encoder.spatial
    if not encoder.frozen or not isinstance(spatial, VisionTransformer) or spatial.pool != "cls":
        return
    if not any(name.endswith(f"{SPATIAL}cls_token") for name in found.tensors):
        raise ConfigError(
            f"model.frozen is spatial and model.pool cls, but {source} has no class token, and a random one would "
            "never learn; set model.pool to mean, or model.frozen to none"
        )


def start_temporal(
    found: Converted, source: Converted | None, encoder: FactorisedEncoder, choice: Choice
) -> None:
    """Let the temporal half start from `source` (None: at random) in place of what `found` has for it.

    Of a joint transformer, over images or space and time, it takes blocks and the last norm: the first blocks, or as
    many evenly spread from the first to the last; positions and class token start fresh.
    """
    for name in [name for name in found.tensors if name.startswith(TEMPORAL)]:
        del found.tensors[name]
        found.changes.pop(name, None)
        found.left_out[found.origins.pop(name)] = "model.temporal_init says where it starts"
    if source is None:
        return
    names = (
        {name: name for name in source.tensors if name.startswith(TEMPORAL)}
        if is_factorised(source)
        else _blocks_for_temporal(source, encoder.temporal_depth, choice)
    )
    for ours, theirs in names.items():
        found.tensors[ours] = source.tensors[theirs]
        found.origins[ours] = source.origins[theirs]
        found.changes[ours] = "from model.temporal_init"
    table = f"{TEMPORAL}pos_embed"
    if table in names:
        old = TubeletGrid(len(found.tensors[table]), 1, 1)
        _fit(found, table, old, encoder.temporal.grid)


def is_factorised(found: Converted, prefix: str = "") -> bool:
    """Whether these are weights of a factorised encoder."""
    return any(name.startswith(f"{prefix}{SPATIAL}") for name in found.tensors)


def chosen_blocks(depth: int, wanted: int, choice: Choice) -> list[int]:
    """Which of `depth` blocks become `wanted` temporal ones."""
    if choice == "first" or wanted == 1:
        return list(range(wanted))
    return [round(i * (depth - 1) / (wanted - 1)) for i in range(wanted)]


def _blocks_for_temporal(source: Converted, wanted: int, choice: Choice) -> dict[str, str]:
    """Name in the temporal half -> name in a joint encoder."""
    pattern = re.compile(rf"{re.escape(ENCODER)}blocks\.(\d+)\.(.+)")
    blocks = [match for match in map(pattern.fullmatch, source.tensors) if match]
    depth = 1 + max((int(match[1]) for match in blocks), default=-1)
    places = {block: i for i, block in enumerate(chosen_blocks(depth, wanted, choice))}
    names = {
        f"{TEMPORAL}blocks.{places[int(match[1])]}.{match[2]}": match[0]
        for match in blocks
        if int(match[1]) in places
    }
    norms = {f"{TEMPORAL}norm.{kind}": f"{ENCODER}norm.{kind}" for kind in ("weight", "bias")}
    return names | {ours: theirs for ours, theirs in norms.items() if theirs in source.tensors}


def _rename(found: Converted, old: str, new: str) -> None:
    found.tensors[new] = found.tensors.pop(old)
    found.origins[new] = found.origins.pop(old)
    if old in found.changes:
        found.changes[new] = found.changes.pop(old)


def _fit(found: Converted, name: str, old: TubeletGrid, new: TubeletGrid) -> None:
    """As Scenic: linearly, corners aligned; our class tokens hold their own positions, so these stay apart."""
    if old != new:
        found.tensors[name] = resize_positions(found.tensors[name], old, new, align_corners=True)
        found.changes[name] = f"interpolated from {old.num_tokens} to {new.num_tokens}"
