"""The loop with what it was made for: videos, augmentation, run-length tokens, a transformer with drop path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onereel.config import RunConfig, from_dict
from onereel.data.annotations import read_annotations
from onereel.data.augment import BatchAugment
from onereel.data.dataset import ClipDataset
from onereel.data.loader import ClipLoader
from onereel.models.heads import ClassificationHead
from onereel.models.video_model import VideoModel
from onereel.models.vit import VisionTransformer
from onereel.objectives import ClassificationObjective
from onereel.tokens.run_length import RunLength
from onereel.tokens.selector import KeepAll
from onereel.training import create_optimizer, create_run, create_schedule, fit, plan_steps
from onereel.training.checkpoint import resume_state
from onereel.types import TubeletGrid
from onereel.video.library import open_library

CPU = torch.device("cpu")
LEARNED = ("step", "epoch", "loss", "top1", "grad_norm", "num_failed", "kept_ratio")
CONFIG = from_dict(
    RunConfig,
    {
        "seed": 5,
        "data": {"num_frames": 4, "size": 32, "crop_scale": [0.5, 1.0], "max_bad_ratio": 0.5},
        "augment": {"mixup_alpha": 0.8, "erase_prob": 0.5},
        "objective": {"label_smoothing": 0.1},
        "optim": {
            "lr": 0.003,
            "lr_batch_size": 0,
            "warmup_epochs": 1,
            "layer_decay": 0.8,
            "clip_grad_norm": 1.0,
            "ema_decay": 0.9,
        },
        "train": {
            "epochs": 3,
            "batch_size_per_device": 4,
            "accum_steps": 2,
            "log_every": 1,
            "save_every": 2,
        },
    },
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video):
    """Sixteen short videos of two classes; one file is broken."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["path,label"]
    for i in range(16):
        if i == 11:
            (folder / f"{i}.mp4").write_bytes(b"no video")
        else:
            make_video(folder / f"{i}.mp4", num_frames=6 + i, height=48, width=64)
        rows.append(f"{i}.mp4,{'even' if i % 2 == 0 else 'odd'}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def run_videos(videos, run, config=CONFIG, *, resume=False, on_step=lambda step: None):
    """What `build` and `api` do with a configuration, for a model of two blocks; True where all went through."""
    annotations = read_annotations(str(videos / "train.csv"))
    data = config.data
    dataset = ClipDataset(
        annotations,
        open_library(root=annotations.root),
        num_frames=data.num_frames,
        sampling=data.sampling,
        sampling_rate=data.sampling_rate,
        size=data.size,
        crop=data.crop,
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        seed=config.seed,
        training=True,
        label_names=annotations.label_names(),
    )
    loader = ClipLoader(
        dataset,
        batch_size=config.train.batch_size_per_device,
        seed=config.seed,
        shuffle=True,
        drop_last=True,
        max_bad_ratio=data.max_bad_ratio,
        quarantine=run / "quarantine.csv",
    )
    torch.manual_seed(config.seed)
    encoder = VisionTransformer(
        TubeletGrid(2, 2, 2),
        tubelet_size=2,
        patch_size=16,
        embed_dim=24,
        depth=2,
        num_heads=2,
        drop_path_rate=0.2,
        length_embedding=True,
    )
    head = ClassificationHead(24, 2, "mean", dropout=0.3)
    selector = RunLength(0.3) if config.tokens.kind == "run-length" else KeepAll()
    objective = ClassificationObjective(VideoModel(encoder, head, selector), 0.1, config.seed)
    plan = plan_steps(config, loader.num_batches)
    schedule = create_schedule(config.optim, plan)

    def lr_at(step):
        on_step(step)
        return schedule(step)

    create_run(run, config, resume=resume)
    fit(
        objective,
        loader,
        BatchAugment(config.augment, 2, config.seed, training=True),
        create_optimizer(objective, config.optim),
        lr_at,
        config=config,
        run=run,
        device=CPU,
        class_names=annotations.label_names(),
        resume=resume_state(run) if resume else None,
    )
    return objective


def curve(toy, run):
    return [{k: record[k] for k in LEARNED} for record in toy.read_metrics(run)]


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("kind", ["all", "run-length"])
def test_a_run_on_videos_resumes_bit_for_bit(toy, videos, tmp_path, kind):
    config = replace(CONFIG, tokens=replace(CONFIG.tokens, kind=kind))
    unbroken = run_videos(videos, tmp_path / "unbroken", config)
    expected = curve(toy, tmp_path / "unbroken")
    assert len(expected) == 6
    assert sum(record["num_failed"] for record in expected) == 3  # the broken file, once an epoch
    assert all((r["kept_ratio"] < 1) == (kind == "run-length") for r in expected)

    def cut(step):
        if step == 5:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run_videos(videos, tmp_path / "broken", config, on_step=cut)
    resumed = run_videos(videos, tmp_path / "broken", config, resume=True)
    # kept_ratio is a rate of the process, and equal too: each line is one step here.
    assert curve(toy, tmp_path / "broken") == expected
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_accumulation_over_videos_is_the_big_batch(toy, videos, tmp_path):
    """Dropout and drop path included: a clip draws from its own generator. Mixing depends on the micro-batch: off."""
    config = replace(CONFIG, augment=replace(CONFIG.augment, mixup_alpha=0.0))
    big = replace(config, train=replace(config.train, batch_size_per_device=8, accum_steps=1))
    small = replace(config, train=replace(config.train, batch_size_per_device=2, accum_steps=4))
    for name, which in (("big", big), ("small", small)):
        run_videos(videos, tmp_path / name, which)
    losses = [[r["loss"] for r in toy.read_metrics(tmp_path / name)] for name in ("big", "small")]
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=2e-5)


def test_layer_decay_and_weight_decay_reach_the_transformer(videos, tmp_path):
    config = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    objective = run_videos(videos, tmp_path, config)
    groups = create_optimizer(objective, config.optim).param_groups
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert scale["model.encoder.patch_embed.weight"] == pytest.approx(0.8**3)
    assert scale["model.encoder.blocks.0.fc1.weight"] == pytest.approx(0.8**2)
    assert scale["model.encoder.blocks.1.fc1.weight"] == pytest.approx(0.8)
    assert scale["model.encoder.norm.weight"] == scale["model.head.fc.weight"] == 1.0
    assert decay["model.encoder.length_embed"] == decay["model.encoder.norm.weight"] == 0.0
    assert decay["model.head.fc.weight"] == 0.05
