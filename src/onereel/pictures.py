"""The pictures of a run's report: clips with what the model sees of them, and what it makes of the rest."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from onereel import build
from onereel.config import RunConfig
from onereel.data.dataset import ClipDataset, Sample
from onereel.data.yuv import stacked, to_rgb
from onereel.errors import DecodeError, OnereelError
from onereel.evaluation.inference import autocast, evaluating
from onereel.models.dual_encoder import video_of
from onereel.models.video_model import VideoModel
from onereel.objectives import AnyObjective, DistillationObjective, MaskedObjective
from onereel.report.examples import Reconstructed, write_examples, write_reconstructions
from onereel.report.run_report import write_report
from onereel.seeding import clip_generators
from onereel.tokens.packing import kept_tokens
from onereel.types import Batch, SampleKey, TubeletGrid, YuvClips

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 6
EXAMPLES_SEARCHED = 64
"""Clips shown in the report, of different classes or videos, and how many to look through for them."""


def try_report(
    run: Path,
    config: RunConfig,
    objective: AnyObjective,
    dataset: ClipDataset,
) -> None:
    """Write the report of a run that is done and saved: that it cannot be written is no reason to fail."""
    try:
        _write_pictures(run, config, objective, dataset)
        write_report(run)
    except (OSError, OnereelError) as error:
        logger.warning("the report could not be written (%s); try `onereel report %s`", error, run)


def _write_pictures(
    run: Path,
    config: RunConfig,
    objective: AnyObjective,
    dataset: ClipDataset,
) -> None:
    samples = _example_samples(dataset)
    if not samples:
        return
    read = stacked([sample.clip for sample in samples])
    clips = list(to_rgb(read) if isinstance(read, YuvClips) else read)
    batch = Batch(read, [sample.key for sample in samples], num_clips=len(samples))
    normalise = build.build_augment(config, None, training=False)
    batch = normalise(batch, next(objective.parameters()).device)
    captions = [_caption(dataset, sample) for sample in samples]
    model = objective.model
    encoder = video_of(model).encoder
    sizes = {"tubelet_size": encoder.tubelet_size, "patch_size": encoder.patch_size}
    if isinstance(objective, MaskedObjective):
        shown, grid = _reconstructed(config, objective, batch)
        write_reconstructions(run, clips, shown, captions, grid=grid, **sizes)
        return
    if isinstance(objective, DistillationObjective):
        with evaluating(objective), autocast(batch.clips.device, config.train.precision):
            tokens = objective.shown(batch)
        write_examples(run, clips, list(kept_tokens(tokens)), captions, grid=tokens.grid, **sizes)
        return
    video = video_of(model)
    assert isinstance(video, VideoModel)
    assert not isinstance(batch.clips, YuvClips)  # augmentation has made pictures of them
    with evaluating(model), autocast(batch.clips.device, config.train.precision):
        kept = video.kept(batch.clips, generators=clip_generators(0, batch.keys))
    write_examples(run, clips, list(kept_tokens(kept)), captions, grid=kept.grid, **sizes)


def _reconstructed(
    config: RunConfig, objective: MaskedObjective, batch: Batch
) -> tuple[list[Reconstructed], TubeletGrid]:
    """What the report shows of each clip of a normalised batch."""
    with evaluating(objective), autocast(batch.clips.device, config.train.precision):
        found = objective.reconstruct(batch)
    mean, std = (
        torch.tensor(values, device=found.clips.device).view(3, 1, 1)
        for values in (config.augment.mean, config.augment.std)
    )
    pixels = ((found.clips * std + mean) * 255).round_().clamp_(0, 255).byte()
    parts = zip(pixels.cpu(), found.visible.cpu(), found.targets.cpu())
    return [Reconstructed(*part) for part in parts], found.grid


def _example_samples(dataset: ClipDataset) -> list[Sample]:
    """The first readable clips of different classes; where there are none, clips of videos from all over the list."""
    found: dict[int | str, Sample] = {}
    step = 1 if dataset.label_names else max(1, len(dataset) // NUM_EXAMPLES)
    for index in range(0, len(dataset), step)[:EXAMPLES_SEARCHED]:
        try:
            sample = dataset[SampleKey(0, index)]
        except DecodeError:
            continue  # counted, named and quarantined where it was trained on
        path = dataset.annotations.record(index).path
        found.setdefault(path if sample.label is None else sample.label, sample)
        if len(found) == NUM_EXAMPLES:
            break
    return list(found.values())


def _caption(dataset: ClipDataset, sample: Sample) -> str:
    record = dataset.annotations.record(sample.key.index)
    return ": ".join(filter(None, (record.label, record.caption))) or record.path
