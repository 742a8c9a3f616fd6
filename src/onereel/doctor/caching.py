"""Whether a cache of the frozen half's features pays, and what it takes."""

from __future__ import annotations

import shutil
from pathlib import Path

from onereel import build
from onereel.config import RunConfig
from onereel.models.factorised import FactorisedEncoder

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
EXAMPLE_VIEWS = 4


def cache_bytes(
    num_samples: int, num_frames: int, width: int, *, num_views: int = 1, dtype: str = "float16"
) -> int:
    """Bytes of the features of `num_views` views: a vector of `width` values per sample and tubelet in time.

    Args:
        num_frames: tubelets in time of a clip.
        dtype: a name of data.cache_dtype.
    """
    return num_samples * num_frames * width * num_views * BYTES[dtype]


def caching_advice(config: RunConfig, encoder: object, num_samples: int) -> str:
    """What to know of data.cache_views for a run over `num_samples` clips; empty where nothing is frozen.

    Without a cache, each epoch decodes and encodes every clip; with K views that is done K times in all, or once per
    epoch where these are fewer.
    """
    if config.model.frozen != "spatial" or not isinstance(encoder, FactorisedEncoder):
        return ""
    num_frames = config.data.num_frames // encoder.tubelet_size
    width = encoder.num_layers * encoder.embed_dim
    size = cache_bytes(num_samples, num_frames, width, dtype=config.data.cache_dtype)
    epochs, views = config.train.epochs, build.views_read(config)
    what = f"cache: {num_samples} clips x {num_frames} frames x {width} values in {config.data.cache_dtype} are "
    if not views:
        example = min(EXAMPLE_VIEWS, epochs)
        return (
            f"{what}{_gigabytes(size)} per view. With --data.cache_views K clips are decoded, and seen by the frozen "
            f"half, K times and not {epochs} times: it pays for K < {epochs} (K = {example}: {example / epochs:.0%} "
            f"of that work, {_gigabytes(example * size)})"
        )
    takes = f"{what}{_gigabytes(size)} per view, {_gigabytes(views * size)} for {views}"
    free = _free_bytes(config.data.cache)
    if free is not None and free < views * size:
        takes += f", and {_gigabytes(free)} are free"
    if views < epochs:
        return f"{takes}; it pays: decoding and the frozen half do {views / epochs:.0%} of the work of {epochs} epochs"
    return f"{takes}; it doesn't pay: {epochs} epochs read no view twice. Set data.cache_views lower, or to 0"


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"


def _free_bytes(folder: str) -> int | None:
    """Of the disk that `folder` will lie on; None where the run's own folder, unknown yet, is meant."""
    if not folder:
        return None
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(there).free
