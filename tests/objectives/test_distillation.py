"""The loss in plain words, whom it teaches, and which tokens the student sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from onereel import build
from onereel.config import (
    DataConfig,
    DistillConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    TokensConfig,
)
from onereel.errors import ConfigError
from onereel.models.student import attention_order
from onereel.models.teachers import OwnTeacher, View
from onereel.objectives.distillation import DistillationObjective, spread_layers
from onereel.seeding import clip_generators
from onereel.tokens.packing import kept_tokens
from onereel.tokens.positions import sincos_positions
from onereel.training.optim import create_optimizer
from onereel.types import Batch, SampleKey

CONFIG = RunConfig(
    data=DataConfig(num_frames=4, size=32),
    model=ModelConfig(name="vit_micro_patch8_32"),
    objective=ObjectiveConfig(kind="distillation"),
    distill=DistillConfig(num_layers=2),
)
NESTED = replace(
    CONFIG,
    tokens=TokensConfig(kind="group-dynamic"),
    objective=ObjectiveConfig(kind="distillation", budgets=(20, 12, 5)),
)


def a_teacher(name: str = "vit_tiny_patch8_32", pool: Any = "cls", frames: int = 4) -> OwnTeacher:
    config = RunConfig(
        seed=9,
        data=DataConfig(num_frames=frames, size=32),
        model=ModelConfig(name=name, pool=pool),
    )
    model = build.build_model(config, 3)
    return OwnTeacher(model.encoder, model.head, View(num_frames=frames, size=32))


def objective(
    config: RunConfig = CONFIG, teacher: OwnTeacher | None = None
) -> DistillationObjective:
    teacher = teacher or a_teacher()
    built = build.build_objective(config, build.build_trainee(config, 0), teacher)
    assert isinstance(built, DistillationObjective)
    return built.train()


def batch(size: int = 2, **fields: Any) -> Batch:
    clips = torch.randn(size, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(clips, [SampleKey(0, i) for i in range(size)], **{"num_clips": size, **fields})


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.double()
    return float(2 - 2 * (a @ b) / (a.norm() * b.norm()))


@pytest.mark.parametrize("patch", [8, 16])
def test_the_loss_is_that_of_the_papers_written_out(patch: int) -> None:
    """Also where the teacher's grid is another; with three budgets it is the mean of theirs."""
    teacher = a_teacher(f"vit_tiny_patch{patch}_32")
    tested, given = objective(NESTED, teacher), batch()
    found = tested(given)
    assert isinstance(given.clips, Tensor)
    said = teacher(given.clips, tested.alignment.teacher_layers)
    side = 32 // patch
    student = tested.model
    generators = clip_generators(0, given.keys)
    shown = student.show(given.clips, None, generators, student.budgets)
    layer_losses, final_losses = [], []
    places = sincos_positions(student.encoder.grid, 96)
    for tokens in student.tokens(shown, None, generators):
        features, between = student.encoder.forward_layers(tokens, None, (2, 3), embedded=True)
        clips, start = [], 0
        for b, length in enumerate(tokens.lengths):
            mine = []
            for row in range(start, start + length):
                t, h, w = tokens.coordinates[row].tolist()
                place = places[(t * 4 + h) * 4 + w]
                for pair, project in enumerate(tested.projections):
                    volume = said.layers[pair][b].unflatten(0, (2, side, side))[t]
                    target = volume[h, w] if patch == 8 else bilinear(volume, h, w)
                    mine.append(distance(project(between[pair][row] + place), target))
            clips.append(sum(mine) / len(mine))
            assert tested.final is not None
            pooled = features.values[start : start + length].mean(0)
            final_losses.append(distance(tested.final(pooled), said.final[b]))
            start += length
        layer_losses.append(sum(clips) / 2)
    assert found["layer_loss"].item() == pytest.approx(sum(layer_losses) / 3, abs=1e-5)
    assert found["final_loss"].item() == pytest.approx(sum(final_losses) / 6, abs=1e-5)
    total = (sum(layer_losses) / 3) + (sum(final_losses) / 6)
    assert found["loss"].item() == pytest.approx(total, abs=1e-5)


def bilinear(volume: Tensor, h: int, w: int) -> Tensor:
    """A 2 x 2 grid at the centre of place (h, w) of a 4 x 4 one."""
    share = (0.0, 0.25, 0.75, 1.0)
    rows = volume[0].lerp(volume[1], share[h])
    return rows[0].lerp(rows[1], share[w])


def test_weights_scale_the_two_losses_and_nothing_makes_no_module() -> None:
    both = objective()(batch())
    for weights, name in (((2.0, 0.0), "layer_loss"), ((0.0, 2.0), "final_loss")):
        distill = replace(CONFIG.distill, layer_weight=weights[0], final_weight=weights[1])
        tested = objective(replace(CONFIG, distill=distill))
        found = tested(batch())
        torch.testing.assert_close(found["loss"], 2 * both[name], check_dtype=False)
        assert set(found) == {"loss", name, "stats"}
        found["loss"].backward()
        unused = [n for n, p in tested.named_parameters() if p.grad is None]
        assert not unused, "DDP would wait for them"
    with pytest.raises(ConfigError, match="nothing is to be learned"):
        objective(replace(CONFIG, distill=DistillConfig(num_layers=0, final_weight=0.0)))


def test_layers_are_spread_as_in_internvideo2() -> None:
    assert spread_layers(6, 12, 40) == (39, 36, 33, 29, 26, 23)
    assert spread_layers(4, 4, 4) == (3, 2, 1, 0)
    assert spread_layers(3, 12, 3) == (2, 2, 2)
    assert objective(teacher=a_teacher()).alignment.teacher_layers == (8, 11)
    assert objective().alignment.student_layers == (2, 3)
    chosen = replace(CONFIG, distill=DistillConfig(teacher_layers=(11, 4, 0)))
    assert objective(chosen).alignment.teacher_layers == (0, 4, 11)
    assert objective(chosen).alignment.student_layers == (1, 2, 3)


def test_the_teacher_stays_as_it_was_and_the_student_learns() -> None:
    teacher = a_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    tested = objective(NESTED, teacher)
    optimizer = create_optimizer(tested, OptimConfig())
    student = [parameter.detach().clone() for parameter in tested.parameters()]
    tested(batch())["loss"].backward()
    optimizer.step()
    assert not teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    changed = [
        not torch.equal(old, new) for old, new in zip(student, tested.parameters(), strict=True)
    ]
    assert all(changed)


def test_the_teacher_is_no_part_of_what_is_trained_saved_or_exchanged() -> None:
    teacher = a_teacher()
    tested = objective(teacher=teacher)
    theirs = {id(parameter) for parameter in teacher.parameters()}
    assert not theirs & {id(parameter) for parameter in tested.parameters()}
    assert not any("teacher" in name for name, _ in tested.named_modules())
    names = [name for name in tested.state_dict() if "teacher" in name]
    assert names == ["teacher_hash"]
    assert bytes(tested.teacher_hash.tolist()).hex() == teacher.fingerprint()


def test_it_moves_with_the_objective() -> None:
    tested = objective()
    tested.to(torch.float64)
    assert tested.teacher.encoder.norm.weight.dtype == torch.float64


def test_another_teacher_cannot_take_over() -> None:
    state = objective().state_dict()
    objective().load_state_dict(state)
    other = a_teacher()
    with torch.no_grad():
        other.encoder.norm.weight[0] += 1
    with pytest.raises(ConfigError, match="teacher's weights"):
        objective(teacher=other).load_state_dict(state)


def test_an_empty_batch_reaches_every_parameter_with_zero() -> None:
    tested = objective(NESTED)
    found = tested(batch(1, num_clips=0))
    found["loss"].backward()
    assert found["loss"].item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in tested.parameters())
    assert found["stats"] == {"num_tokens": 0, "num_tokens_dense": 0, "flops": 0.0}


def test_clips_do_not_depend_on_their_company() -> None:
    config = replace(NESTED, distill=replace(NESTED.distill, pool_budget=24, choose="attention"))
    tested, pair = objective(config), batch()
    assert isinstance(pair.clips, Tensor)
    alone = [
        tested(Batch(pair.clips[i : i + 1], pair.keys[i : i + 1], num_clips=1))["loss"]
        for i in range(2)
    ]
    torch.testing.assert_close(torch.stack(alone).mean(), tested(pair)["loss"])


def masks(config: RunConfig, given: Batch) -> tuple[Tensor | None, list[Tensor]]:
    """The pool, and the tokens of each budget, bool `(B, N)`."""
    tested = objective(config)
    student, generators = tested.model, clip_generators(0, given.keys)
    assert isinstance(given.clips, Tensor)
    shown = student.show(given.clips, None, generators, student.budgets)
    attention = None
    if student.by_attention:
        attention = tested.teacher(given.clips, (), shown.pool, attention=True).attention
    parts = student.tokens(shown, attention, generators)
    pool = None if shown.pool is None else shown.pool.keep_mask
    return pool, [kept_tokens(part) for part in parts]


@pytest.mark.parametrize("choose", ["ranking", "attention"])
def test_budgets_lie_within_one_another_and_within_the_pool(choose: Any) -> None:
    distill = replace(CONFIG.distill, pool_budget=24, choose=choose)
    pool, (large, middle, small) = masks(replace(NESTED, distill=distill), batch(3))
    assert pool is not None
    for inner, outer, count in ((small, middle, 5), (middle, large, 12), (large, pool, 20)):
        assert (inner <= outer).all()
        assert (inner.sum(1) == count).all()
    assert (pool.sum(1) == 24).all()


def test_without_a_pool_attention_chooses_among_all_tokens() -> None:
    config = replace(
        NESTED,
        tokens=TokensConfig(),
        distill=replace(CONFIG.distill, choose="attention"),
    )
    pool, (large, _, _) = masks(config, batch(64))
    assert pool is None
    assert large.float().mean(0).min() > 0, "any token may be drawn"


def test_tokens_are_drawn_by_attention_without_replacement() -> None:
    """First places come in proportion to attention; second ones in proportion among the others (multinomial)."""
    attention = torch.tensor([0.5, 0.3, 0.2, 0.0]).expand(4000, -1)
    generators = [torch.Generator().manual_seed(i) for i in range(4000)]
    order = attention_order(attention, None, generators)
    first, second = order[:, 0], order[:, 1]
    for token, share in enumerate((0.5, 0.3, 0.2, 0.0)):
        assert (first == token).float().mean().item() == pytest.approx(share, abs=0.03)
    expected = 0.3 * 0.5 / 0.7 + 0.2 * 0.5 / 0.8
    assert (second == 0).float().mean().item() == pytest.approx(expected, abs=0.03)
    assert (order[:, 3] == 3).all()
    pool = torch.tensor([False, True, True, True]).expand(4000, -1)
    assert (attention_order(attention, pool, generators)[:, 3] == 0).all()


def test_a_teacher_with_the_students_tubelets_is_shown_the_pool_alone() -> None:
    config = replace(NESTED, distill=replace(CONFIG.distill, pool_budget=24))
    for name, is_shown_part in (("vit_tiny_patch8_32", True), ("vit_tiny_patch16_32", False)):
        tested = objective(config, a_teacher(name))
        seen: list[Any] = []
        tested.teacher.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[2]))
        dense = objective(replace(config, distill=CONFIG.distill), a_teacher(name))
        tokens = tested(batch())["stats"], dense(batch())["stats"]
        assert (seen[0] is not None) == is_shown_part
        assert (tokens[0]["flops"] < tokens[1]["flops"]) == is_shown_part


def test_any_selector_without_budgets() -> None:
    for tokens in (
        TokensConfig(kind="run-length", threshold=0.9),
        TokensConfig(kind="random"),
        TokensConfig(kind="redundancy"),
        TokensConfig(frame_selection=2.0),
    ):
        config = replace(CONFIG, tokens=tokens, data=replace(CONFIG.data, num_frames=2))
        if tokens.frame_selection == 0:
            config = replace(config, data=CONFIG.data)
        found = objective(config)(batch())
        assert 0 < found["loss"].item() < 8


def test_two_of_three_budgets_are_drawn_in_training_only() -> None:
    config = replace(NESTED, objective=replace(NESTED.objective, budgets_per_step=2))
    tested = objective(config)
    counts = {
        int(tested(replace(batch(), number=number))["stats"]["num_tokens"]) for number in range(12)
    }
    assert counts == {2 * (20 + 12), 2 * (20 + 5), 2 * (12 + 5)}
    assert tested.eval()(batch())["stats"]["num_tokens"] == 2 * 37


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill": DistillConfig(num_layers=5)}, "has 4 blocks; allowed: 0 to 4"),
        ({"distill": DistillConfig(teacher_layers=(12,))}, "has 12 blocks, from 0 on"),
        (
            {"tokens": TokensConfig(), "objective": replace(NESTED.objective)},
            "this tokens.kind doesn't rank",
        ),
    ],
)
def test_what_cannot_be_aligned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(replace(NESTED if "tokens" in changes else CONFIG, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": TokensConfig(where="loader")}, "a teacher sees whole"),
        ({"distill": DistillConfig(pool_budget=8)}, r"give objective\.budgets"),
        ({"distill": DistillConfig(choose="attention")}, r"give objective\.budgets"),
        (
            {"objective": NESTED.objective, "distill": DistillConfig(pool_budget=10)},
            "begin with 20 tokens",
        ),
        (
            {
                "objective": NESTED.objective,
                "tokens": NESTED.tokens,
                "distill": DistillConfig(choose="attention"),
            },
            r"set tokens\.kind to all",
        ),
    ],
)
def test_options_that_contradict_one_another_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.gpu
def test_on_cuda_it_is_what_it_is_on_the_cpu_and_bf16_is_near() -> None:
    config = replace(NESTED, distill=replace(NESTED.distill, pool_budget=24, choose="attention"))
    expected = objective(config)(batch())["loss"].item()
    tested, given = objective(config).to("cuda"), batch()
    assert isinstance(given.clips, Tensor)
    given.clips = given.clips.to("cuda")
    found = tested(given)["loss"]
    assert found.item() == pytest.approx(expected, abs=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        half = tested(given)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected, abs=0.1)
    half.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tested.parameters())
