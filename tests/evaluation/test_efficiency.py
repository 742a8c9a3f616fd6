"""Costs: exact counts, bounds that follow from them, and measurements that are plausible."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onereel.evaluation.efficiency import measure_inference, measure_training
from onereel.models.heads import ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.objectives import ClassificationObjective
from onereel.tokens.frames import FrameSelection
from onereel.tokens.redundancy import redundancy
from onereel.tokens.scored import random_tokens
from onereel.tokens.selector import KeepAll, Selector
from onereel.types import Batch, SampleKey


def make_model(name: str, num_frames: int, size: int, selector: Selector) -> VideoModel:
    encoder = create_encoder(name, num_frames=num_frames, size=size, tubelet_size=2)
    return VideoModel(encoder, ClassificationHead(encoder.embed_dim, 10, encoder.pool), selector)


@pytest.mark.parametrize(
    ("ratio", "gmacs", "bound"), [(0.8, 137.0, 1.32), (0.5, 78.8, 2.29), (0.2, 28.8, 6.27)]
)
def test_published_cost_of_vit_base(ratio: float, gmacs: float, bound: float) -> None:
    """VideoMAE ViT-B, 16 x 224 x 224, 1568 tokens: RLT's figures and what follows from them by token count."""
    with torch.device("meta"):
        model = make_model("vit_base_patch16_224", 16, 224, KeepAll())
    kept = int(1568 * ratio)
    assert model.macs((1568,)) / 1e9 == pytest.approx(180.3, abs=0.05)
    assert model.macs((kept,)) / 1e9 == pytest.approx(gmacs, abs=0.05)
    assert model.macs((1568,)) / model.macs((kept,)) == pytest.approx(bound, abs=0.01)


def test_the_bound_with_frame_selection_is_against_all_tokens_of_as_many_frames() -> None:
    """24 candidate frames, 16 chosen, EVEREST's 940 of their 1568 tokens: 98.0 GMACs, and the other candidates'
    embedding, against 180.3."""
    with torch.device("meta"):
        model = make_model("vit_base_patch16_224", 24, 224, redundancy())
    model.frames = FrameSelection(8)
    dense = model.frames.given_grid(model.encoder.grid)
    assert (dense.num_tokens, model.selector.num_kept(dense)) == (1568, 940)
    candidates = 784 * 1536 * 768 / 1e9
    assert model.macs((940,)) / 1e9 == pytest.approx(98.0 + candidates, abs=0.05)
    assert model.macs((1568,), num_embedded=1568) / 1e9 == pytest.approx(180.3, abs=0.05)


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randn(3, 4, 3, 32, 32)


def test_inference_is_measured_on_what_is_kept(clips: torch.Tensor) -> None:
    model = make_model("vit_tiny_patch16_224", 4, 32, random_tokens(0.5)).train()
    speed = measure_inference(model, clips, repeats=3)
    assert model.training
    assert speed.batch_size == 3
    assert speed.kept_ratio == 0.5
    assert speed.macs_per_clip == model.macs((4,))
    assert speed.clips_per_second == pytest.approx(3 / speed.latency_seconds)
    assert speed.peak_memory_bytes is None or speed.peak_memory_bytes >= 0


def labelled(clips: torch.Tensor) -> Batch:
    keys = [SampleKey(0, index) for index in range(len(clips))]
    labels = torch.zeros(len(clips), dtype=torch.long, device=clips.device)
    return Batch(clips, keys, labels=labels, num_clips=len(clips))


def test_training_is_measured_and_leaves_no_trace(clips: torch.Tensor) -> None:
    model = ClassificationObjective(make_model("vit_tiny_patch16_224", 4, 32, KeepAll())).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    speed = measure_training(model, labelled(clips), repeats=1)
    assert not model.training
    assert speed.kept_ratio == 1
    assert speed.flops_per_clip == 6 * model.model.macs((8,))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Compared(ClassificationObjective):
    """Counts its forwards with and without gradients; the second is given what came of the first."""

    def survey(self, batch: Batch) -> int:
        self.surveyed = getattr(self, "surveyed", 0) + 1
        assert not torch.is_grad_enabled()
        return self.surveyed

    def couple(self, surveys: list[int]) -> list[int]:
        return surveys

    def forward(self, batch: Batch, survey: int = 0) -> dict[str, Any]:
        assert torch.is_grad_enabled()
        self.given = survey
        return super().forward(batch)


def test_a_step_that_compares_its_micro_batches_runs_twice(clips: torch.Tensor) -> None:
    model = Compared(make_model("vit_tiny_patch16_224", 4, 32, KeepAll()))
    speed = measure_training(model, labelled(clips), twice=True, repeats=2, warmup=1)
    assert model.surveyed == model.given == 3
    assert speed.flops_per_clip == 6 * model.model.macs((8,))
    measure_training(model, labelled(clips), repeats=1)
    assert (model.surveyed, model.given) == (3, 0)


@pytest.mark.gpu
def test_on_cuda_the_peak_holds_the_weights(clips: torch.Tensor) -> None:
    model = ClassificationObjective(make_model("vit_tiny_patch16_224", 4, 32, KeepAll())).cuda()
    speed = measure_training(model, labelled(clips.cuda()), precision="bf16")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert speed.peak_memory_bytes is not None
    assert speed.peak_memory_bytes > weights
