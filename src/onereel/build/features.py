"""The feature cache of a run with frozen weights: what its features depend on, and who makes them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from onereel.build.data import num_workers
from onereel.build.selection import build_picker, frames_read
from onereel.config import RunConfig, TokensConfig, to_dict
from onereel.data.annotations import Annotations
from onereel.data.augment import BatchAugment
from onereel.data.dataset import ClipDataset
from onereel.data.feature_augment import FeatureAugment
from onereel.data.features import QUARANTINE, FeatureCache, Key
from onereel.data.loader import ClipLoader
from onereel.models.factorised import FactorisedEncoder
from onereel.models.registry import patch_size_of
from onereel.objectives.distillation import DistillationObjective
from onereel.training import World, compute_dtype
from onereel.types import TubeletGrid
from onereel.video.marker import read_marker

# What a frame's features don't depend on. Whatever isn't named here is part of the key, new settings too.
WITHOUT_EFFECT = {
    "data": (
        *("train", "val", "root", "store", "captions", "repeats", "num_workers", "prefetch"),
        *("max_bad_ratio", "timeout_seconds", "cache_views", "cache"),
    ),
    "augment": ("mixup_alpha", "cutmix_alpha", "mix_prob"),
    "model": (
        *(
            "temporal_depth",
            "frozen",
            "adapter",
            "frames_at_once",
            "drop_path_rate",
            "head_dropout",
        ),
        *("checkpointing", "pretrained", "inflation", "image_class_token", "keep_head", "backbone"),
        *("temporal_init", "temporal_blocks", "fc_norm", "position_std"),
    ),
}
"""Weights have a hash of their own, wherever they came from; the length of a list has one with the list."""
SPATIAL_WEIGHTS = "weights of the spatial half"
SPAN = ("path", "start", "end")


def build_feature_key(
    config: RunConfig, encoder: FactorisedEncoder, annotations: Annotations, device: torch.device
) -> Key:
    """What the features of a run depend on: two runs of one key may share them."""
    sections = to_dict(config)
    if config.tokens.kind == "all":
        kept = TokensConfig(frame_selection=config.tokens.frame_selection)
        sections["tokens"] = to_dict(kept)
    return {
        SPATIAL_WEIGHTS: hash_weights(encoder.spatial),
        "layers of it": encoder.num_layers,
        **_clip_key(config, annotations, device),
        **_settings(sections, "data", "augment", "tokens", "model"),
    }


def build_lesson_key(
    config: RunConfig,
    objective: DistillationObjective,
    annotations: Annotations,
    device: torch.device,
) -> Key:
    """What a teacher's features depend on; which student learns from them is no part of it, but how deep it learns."""
    return {
        "teacher": objective.teacher.fingerprint(),
        "layers": objective.alignment.teacher_layers,
        "attention": objective.model.by_attention,
        "frames": frames_read(config),
        **_clip_key(config, annotations, device),
        **_settings(to_dict(config), "data", "augment"),
    }


def _clip_key(config: RunConfig, annotations: Annotations, device: torch.device) -> Key:
    return {
        "list": _hash_spans(annotations),
        "store": _hash_chunks(config.data.store, annotations),
        "seed": config.seed,
        "precision": str(compute_dtype(config.train.precision, device)).removeprefix("torch."),
    }


def _settings(sections: Mapping[str, Mapping[str, Any]], *names: str) -> Key:
    return {
        f"{section}.{name}": value
        for section in names
        for name, value in sections[section].items()
        if name not in WITHOUT_EFFECT.get(section, ())
    }


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of a module's tensors with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_spans(annotations: Annotations) -> str:
    """Which seconds of which videos, in their order; labels and captions are not part of it."""
    table = annotations.table.select([n for n in SPAN if n in annotations.table.column_names])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None).combine_chunks())
    digest = hashlib.sha256(sink.getvalue()).hexdigest()
    return f"{len(annotations)} records, {digest}"


def _hash_chunks(store: str, annotations: Annotations) -> str:
    """Which chunks hold the list's videos, wherever they lie now; others of the store are no part of it."""
    if not store:
        return "raw files"
    root: str = read_marker(Path(store))["settings"]["root"]
    rows = pq.read_table(Path(store, "manifest.parquet"), columns=["video", "chunk", "checksum"])

    def found(names: pa.ChunkedArray) -> dict[str, str]:
        return {os.path.normpath(os.path.join(root, n)): n for n in names.unique().to_pylist()}

    held, wanted = found(rows["video"]), found(annotations.table["path"])
    # A video may be found by a link too: all of the store is hashed then, so that no change goes unnoticed.
    if wanted.keys() <= held.keys():
        rows = rows.filter(pc.is_in(rows["video"], pa.array([held[name] for name in wanted])))
    digest = hashlib.sha256()
    for batch in rows.to_batches():
        cells = zip(*(batch[name].to_pylist() for name in ("video", "chunk", "checksum")))
        digest.update("".join(f"{cell!r};" for cell in cells).encode(errors="backslashreplace"))
    return f"{rows.num_rows} chunks, {digest.hexdigest()}"


def views_read(config: RunConfig) -> int:
    """Views of each sample that a run with a cache reads: `data.cache_views`, or one per epoch where it has fewer."""
    return min(config.data.cache_views, config.train.epochs)


def build_feature_cache(
    config: RunConfig, encoder: FactorisedEncoder, num_samples: int, folder: Path
) -> FeatureCache:
    """The cache in `folder`, which must have been claimed."""
    return FeatureCache(
        folder,
        num_samples=num_samples,
        num_views=views_read(config),
        grid=TubeletGrid(encoder.grid.gt, 1, 1),
        embed_dim=encoder.num_layers * encoder.embed_dim,
        dtype=config.data.cache_dtype,
    )


def build_encoding_loader(
    config: RunConfig, dataset: ClipDataset, *, world: World, folder: Path
) -> ClipLoader:
    """The clips that training without a cache would see in its first epochs, batch by batch, and none left out.

    In the same batches, since matrix products may round otherwise in others.
    """
    return ClipLoader(
        dataset,
        batch_size=config.train.batch_size_per_device,
        seed=config.seed,
        shuffle=True,
        drop_last=False,
        rank=world.rank,
        world_size=world.world_size,
        num_workers=num_workers(config, world.world_size),
        prefetch=config.data.prefetch,
        max_bad_ratio=config.data.max_bad_ratio,
        quarantine=folder / QUARANTINE,
        pin_memory=world.device.type == "cuda",
        pick=build_picker(config, training=True),
        hflip_prob=config.augment.hflip_prob,
    )


def build_encoding_augment(config: RunConfig) -> BatchAugment:
    """All of training's augmentation that changes the pixels of one clip; it becomes part of the view."""
    alone = dataclasses.replace(config.augment, mixup_alpha=0.0, cutmix_alpha=0.0)
    in_loader = config.tokens.where == "loader"
    patch_size = patch_size_of(config.model.name) if in_loader else None
    return BatchAugment(alone, None, config.seed, training=True, patch_size=patch_size)


def build_feature_augment(config: RunConfig, num_classes: int | None) -> FeatureAugment:
    """What is left to do with features."""
    return FeatureAugment(config.augment, num_classes, config.seed)
