"""Several budgets in one loss: its terms, who teaches whom, and what a process whose heads rest still does."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onereel.models.heads import BudgetHeads, ClassificationHead
from onereel.models.registry import create_encoder
from onereel.models.video_model import VideoModel
from onereel.objectives.base import draw_budgets
from onereel.objectives.multi_budget import MultiBudgetObjective, alignment_of
from onereel.tokens.group_dynamic import group_dynamic
from onereel.types import Batch, SampleKey

BUDGETS = (30, 20, 10)


def objective_of(**options: Any) -> MultiBudgetObjective:
    torch.manual_seed(0)
    encoder = create_encoder("vit_micro_patch16_48", num_frames=4, tubelet_size=1)
    heads = [ClassificationHead(96, 3, encoder.pool) for _ in BUDGETS]
    model = VideoModel(encoder, BudgetHeads(heads, BUDGETS), group_dynamic())
    return MultiBudgetObjective(model, BUDGETS, **options)


def batch_of(number: int = 0, **fields: Any) -> Batch:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(2, 4, 3, 48, 48, generator=generator)
    values = {"labels": torch.tensor([0, 2]), "num_clips": 2, "number": number} | fields
    return Batch(clips, [SampleKey(0, 5), SampleKey(0, 9)], **values)


def test_the_loss_is_the_cross_entropies_and_the_weighted_alignments() -> None:
    objective = objective_of(alignment=0.7, label_smoothing=0.1).eval()
    torch.nn.init.normal_(objective.aligners[1].weight, std=0.1)
    batch = batch_of()
    out = objective(batch)
    alone = [objective.model(batch.clips, budget=budget) for budget in BUDGETS]
    terms = [F.cross_entropy(o.logits, batch.labels, label_smoothing=0.1) for o in alone]
    directions = [
        F.normalize(aligner(o.pooled)) for aligner, o in zip(objective.aligners, alone[1:])
    ]
    teacher = F.normalize(alone[0].pooled)
    distances = [(2 - 2 * (teacher * own).sum(1)).mean() for own in directions]
    torch.testing.assert_close(out["loss"], sum(terms) + 0.7 * sum(distances))
    torch.testing.assert_close(out["alignment"], sum(distances).detach())
    hits = (alone[2].logits.argmax(1) == batch.labels).float().mean()
    assert out["top1_smallest"].item() == hits.item()


def test_the_teacher_learns_nothing_from_the_alignment() -> None:
    """What its features would change is cut off: only heads that classify, and the smaller budgets, get gradients."""
    objective = objective_of().eval()
    outputs = objective.model.forward_budgets(batch_of().clips, budgets=BUDGETS)
    for output in outputs:
        output.pooled.retain_grad()
    objective._alignment(BUDGETS, outputs).backward()
    assert outputs[0].pooled.grad is None
    assert all(output.pooled.grad is not None for output in outputs[1:])


@pytest.mark.parametrize("width", [768, 96])
def test_the_published_reduction_is_one_minus_cosine_over_the_width(width: int) -> None:
    student, teacher = torch.randn(2, 5, width, dtype=torch.float64)
    published = alignment_of(student, teacher, "smooth-l1")
    cosine = F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(published, (1 - cosine) / width)
    torch.testing.assert_close(alignment_of(student, teacher, "cosine"), 2 * width * published)


def test_the_published_loss_is_next_to_nothing() -> None:
    one, other = torch.eye(768)[:2, None]
    assert alignment_of(one, other, "smooth-l1").item() == pytest.approx(1 / 768)  # 0.0013
    random = torch.randn(1, 768)
    assert alignment_of(random, -random, "smooth-l1").item() == pytest.approx(2 / 768)  # 0.0026
    assert alignment_of(one, -one, "cosine").item() == pytest.approx(4)


def test_aligners_start_by_changing_nothing() -> None:
    features = torch.randn(3, 96)
    for aligner in objective_of().aligners:
        assert torch.equal(aligner(features), features)


def test_drawn_budgets_are_the_same_on_all_ranks_and_uniform() -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for number in range(600):
        batch = batch_of(number)
        drawn = draw_budgets(BUDGETS, 2, batch, seed=3)
        elsewhere = replace(batch, keys=[SampleKey(0, 77)], clips=batch.clips[:1])
        assert draw_budgets(BUDGETS, 2, elsewhere, seed=3) == drawn
        counts[drawn] += 1
    assert set(counts) == {(30, 20), (30, 10), (20, 10)}
    assert max(abs(count - 200) for count in counts.values()) < 4 * math.sqrt(200 * 2 / 3)
    numbers = range(50)
    others = [draw_budgets(BUDGETS, 2, batch_of(n), seed=4) for n in numbers]
    assert others != [draw_budgets(BUDGETS, 2, batch_of(n), seed=3) for n in numbers]


def gradients(objective: MultiBudgetObjective, batch: Batch) -> dict[str, Tensor | None]:
    objective.zero_grad(set_to_none=True)
    objective(batch)["loss"].backward()
    return {name: parameter.grad for name, parameter in objective.named_parameters()}


def test_heads_that_rest_have_a_gradient_of_zero() -> None:
    """Of two budgets drawn, the larger teaches; parameters of the third take part with zeros, as DDP needs."""
    objective = objective_of(budgets_per_step=2).train()
    seen = set()
    for number in range(12):
        batch = batch_of(number)
        drawn = draw_budgets(BUDGETS, 2, batch, seed=0)
        found = gradients(objective, batch)
        assert all(gradient is not None for gradient in found.values())
        for i, budget in enumerate(BUDGETS):
            rests = budget not in drawn
            assert (found[f"model.head.heads.{i}.fc.weight"].abs().max() == 0) == rests
            if i:
                learns = budget == drawn[1]
                assert (found[f"aligners.{i - 1}.weight"].abs().max() > 0) == learns
        seen.add(drawn)
    assert len(seen) == 3


def test_a_batch_without_clips_reaches_every_parameter_with_zero() -> None:
    objective = objective_of()
    out = objective(batch_of(num_clips=0))
    assert out["loss"].item() == 0
    assert set(out) == set(objective(batch_of()))
    found = gradients(objective, batch_of(num_clips=0))
    assert all(gradient is not None and not gradient.any() for gradient in found.values())


def test_stats_count_every_budget_and_one_embedding() -> None:
    objective = objective_of()
    counted = objective(batch_of())["stats"]
    assert (counted["num_tokens"], counted["num_tokens_dense"]) == (2 * 60, 2 * 36 * 3)
    encoder = objective.model.encoder
    blocks = sum(encoder.macs((k, k), 0) for k in BUDGETS)
    embedding = 2 * 36 * encoder.patch_values * 96
    assert counted["flops"] == 2 * 3 * (blocks + embedding + 3 * 2 * 96 * 3)


def test_one_budget_of_all_tokens_is_classification_bit_for_bit() -> None:
    from onereel.objectives.classification import ClassificationObjective
    from onereel.tokens.selector import KeepAll

    objective = objective_of().train()
    model = objective.model
    model.head = BudgetHeads([model.head.heads[0]], (36,))
    single = MultiBudgetObjective(model, (36,))
    loss = single(batch_of())["loss"]
    found = gradients(single, batch_of())
    plain = ClassificationObjective(VideoModel(model.encoder, model.head, KeepAll()))
    assert torch.equal(plain(batch_of())["loss"], loss)
    assert all(
        torch.equal(found[name], grad) for name, grad in gradients(plain, batch_of()).items()
    )
