"""FluxViT's recipes: the published figures, and a step of a small one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from onereel import build
from onereel.config import ModelConfig
from onereel.models.dual_encoder import DualEncoder
from onereel.models.heads import BudgetHeads
from onereel.recipes import RECIPES, load_recipe
from onereel.tokens.tubelets import tubelet_grid
from onereel.training import on_devices
from onereel.training.plan import scaled_lr
from onereel.types import Batch, SampleKey

NAMES = [name for name, where in RECIPES.items() if ".fluxvit:" in where]
# facts/flux.md section 6: clips and learning rate of a step, epochs
PUBLISHED = {
    "flux_k710_vits": (2048, 1.6e-3, 35),
    "flux_k710_vitb": (2048, 1.6e-3, 20),
    "flux_k400_vits": (1024, 8e-4, 5),
    "flux_k400_vitb": (1024, 8e-4, 3),
    "flux_k400_vits_single": (1024, 8e-4, 5),
    "flux_k400_vitb_single": (1024, 8e-4, 5),
    "flux_ssv2_vits": (1024, 2e-3, 30),
    "flux_ssv2_vitb": (1024, 2e-3, 30),
    "flux_coin_vits": (1024, 2e-3, 40),
    "flux_coin_vitb": (1024, 2e-3, 25),
    "flux_clip_vits": (4096, 4e-4, 3),
    "flux_clip_vits_finetune": (4096, 2e-5, 1),
}


def test_every_recipe_is_here() -> None:
    assert set(NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("name", NAMES)
def test_steps_and_rates_are_those_published(name: str) -> None:
    config = load_recipe(name)
    clips, lr, epochs = PUBLISHED[name]
    for num_devices in (1, 8, 64):
        train = on_devices(config.train, num_devices)
        assert train.batch_size_per_device * train.accum_steps * num_devices == clips
    assert scaled_lr(config.optim, clips) == pytest.approx(lr)
    assert config.train.epochs == epochs


@pytest.mark.parametrize("name", NAMES)
def test_models_are_fluxvits_and_clips_of_the_window(name: str) -> None:
    config = load_recipe(name)
    with torch.device("meta"):
        encoder = build.build_encoder(config)
    assert (encoder.positions, encoder.pool) == ("global", "attention")
    assert encoder.embed_dim == (768 if "vitb" in name else 384)
    assert encoder.grid.num_tokens == 2048
    data = config.data
    counts = [
        tubelet_grid(frames, size, size, 1, 14).num_tokens
        for frames in data.num_frames_choices
        for size in data.size_choices
    ]
    low, high = data.token_window
    # facts: 18 of 44 pairs of the paper's ranges
    assert (len(counts), sum(low <= count <= high for count in counts)) == (44, 18)


@pytest.mark.parametrize("name", ["flux_k400_vits", "flux_k400_vits_single"])
def test_a_small_one_makes_a_step(name: str) -> None:
    """With clips, sizes and budgets a hundredth as large; every weight is reached."""
    config = load_recipe(name)
    budgets = (24, 16, 8) if config.objective.budgets else ()
    config = replace(
        config,
        data=replace(
            config.data,
            num_frames=4,
            size=28,
            num_frames_choices=(4, 6),
            size_choices=(28, 42),
            token_window=(16, 54),
        ),
        tokens=replace(config.tokens, token_budget=16),
        model=ModelConfig.named("fluxvit_micro_patch14_28"),
        objective=replace(config.objective, budgets=budgets),
    )
    model = build.build_model(config, 3)
    assert isinstance(model.head, BudgetHeads) == bool(budgets)
    objective = build.build_objective(config, model)
    objective.train()
    batch = Batch(
        clips=torch.randn(2, 6, 3, 42, 42),
        keys=[SampleKey(0, 0), SampleKey(0, 1)],
        labels=torch.tensor([0, 2]),
        num_clips=2,
    )
    given = objective(batch)
    given["loss"].backward()
    assert given["loss"].isfinite()
    still = [n for n, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    # A softmax does not see a bias that all keys share.
    assert not [name for name in still if not name.endswith("pooler.k.bias")]


def test_video_and_text_share_a_space() -> None:
    config = load_recipe("flux_clip_vits")
    config = replace(
        config,
        text=replace(config.text, size="micro", embed_dim=8, vocab_size=260, context_length=8),
        model=ModelConfig.named("fluxvit_micro_patch14_28"),
        data=replace(config.data, num_frames=2, size=28),
        tokens=replace(config.tokens, token_budget=6),
    )
    tokenizer = pytest.importorskip("onereel.models.text").Tokenizer.train(
        ["a cat", "a dog"], 260, 8
    )
    model = build.build_dual_encoder(config, tokenizer).eval()
    assert isinstance(model, DualEncoder)
    with torch.no_grad():
        features, output = model.encode_video(torch.randn(2, 4, 3, 28, 28))
    assert features.shape == (2, 8)
    assert output.lengths == (6, 6)
