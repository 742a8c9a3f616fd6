"""The gradient of a step is the big batch's, however it is cut; a loss that is not finite stops the run."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from onereel.training import NonFiniteError, compute_dtype
from onereel.training.interrupt import StopRequest
from onereel.training.meters import Meter
from onereel.training.plan import plan_steps
from onereel.training.state import TrainState
from onereel.training.step import TrainStep

CPU = torch.device("cpu")


def one_step(toy, loader, *, accum_steps, lr=0.1, objective=None, max_tokens=0, **optim):
    """Weights and result after the first step of SGD without momentum or decay."""
    objective = objective or toy.ToyObjective()
    config = toy.toy_config(
        train={
            "batch_size_per_device": loader.batch_size,
            "accum_steps": accum_steps,
            "max_tokens_per_device": max_tokens,
        },
        optim={"kind": "sgd", "momentum": 0.0, "weight_decay": 0.0, **optim},
    )
    optimizer = torch.optim.SGD(objective.parameters(), lr=lr)
    plan = plan_steps(config, loader.num_batches)
    state = TrainState(objective, optimizer, None, Meter(CPU, 1.0), plan)
    take_step = TrainStep(objective, optimizer, lambda step: lr, toy.normalise, config, CPU)
    result = take_step(state, plan.batches(loader, 0), StopRequest())
    return torch.cat([p.detach().flatten() for p in objective.parameters()]), result


def reference_step(toy, loader, num_clips, lr=0.1):
    """The same by hand: one batch, plain cross-entropy over the clips that can be read."""
    objective = toy.ToyObjective()
    big = toy.ToyLoader(num_clips, num_clips=len(loader.clips), broken=loader.broken)
    batch = toy.normalise(next(big.batches(0)), CPU)
    logits = objective.last(objective.first(batch.clips.flatten(1)).relu())
    loss = F.cross_entropy(logits, batch.labels)
    loss.backward()
    new = [p.detach() - lr * p.grad for p in objective.parameters()]
    return torch.cat([p.flatten() for p in new]), loss.item(), batch.num_clips


@pytest.mark.parametrize("accum_steps", [1, 2, 3, 6])
@pytest.mark.parametrize("num_broken", [0, 5])
def test_accumulation_is_exact(toy, accum_steps, num_broken):
    first_twelve = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:12].tolist()
    broken = frozenset(first_twelve[:num_broken])  # at 6 micro-steps of 2 clips, two have none
    loader = toy.ToyLoader(12 // accum_steps, broken=broken)
    weights, result = one_step(toy, loader, accum_steps=accum_steps)
    expected, loss, num_clips = reference_step(toy, loader, 12)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-7)
    values = result.read()
    assert values["num_clips"] == num_clips == 12 - num_broken
    assert values["num_failed"] == num_broken
    assert values["loss"] / num_clips == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("accum_steps", [1, 2])
@pytest.mark.parametrize("max_tokens", [6, 11, 1000])
def test_a_token_cap_bounds_micro_batches_and_leaves_the_gradient(toy, accum_steps, max_tokens):
    first_twelve = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:12].tolist()
    loader = toy.ToyLoader(12 // accum_steps, packed=True, broken=frozenset(first_twelve[:5]))
    whole, expected = one_step(toy, loader, accum_steps=accum_steps)
    seen = []

    class Watched(toy.ToyObjective):
        def forward(self, batch):
            seen.append(sum(batch.clips.lengths))
            return super().forward(batch)

    weights, result = one_step(
        toy, loader, accum_steps=accum_steps, objective=Watched(), max_tokens=max_tokens
    )
    torch.testing.assert_close(weights, whole, rtol=0, atol=1e-7)
    assert result.read() == pytest.approx(expected.read(), rel=0, abs=1e-6)
    assert max(seen) <= max_tokens
    assert (len(seen) == accum_steps) == (max_tokens == 1000)
    assert sum(len(keys) for keys in result.keys) == 12 - 5


def test_a_step_without_any_clip_changes_nothing(toy):
    loader = toy.ToyLoader(4, broken=frozenset(range(24)))
    weights, result = one_step(toy, loader, accum_steps=2)
    before = torch.cat([p.detach().flatten() for p in toy.ToyObjective().parameters()])
    assert torch.equal(weights, before)
    assert result.read()["num_clips"] == 0


def test_gradients_are_clipped_and_the_norm_is_that_before(toy):
    loader = toy.ToyLoader(4)
    before = torch.cat([p.detach().flatten() for p in toy.ToyObjective().parameters()])
    free, result = one_step(toy, loader, accum_steps=1)
    norm = result.read()["grad_norm"]
    assert (before - free).norm().item() == pytest.approx(0.1 * norm, rel=1e-5)
    clipped, result = one_step(toy, loader, accum_steps=1, clip_grad_norm=norm / 4)
    assert result.read()["grad_norm"] == pytest.approx(norm)
    assert (before - clipped).norm().item() == pytest.approx(0.1 * norm / 4, rel=1e-4)


def test_dropout_is_a_function_of_seed_and_step(toy):
    loader = toy.ToyLoader(4)
    one, _ = one_step(toy, loader, accum_steps=2, objective=toy.ToyObjective(0.5))
    torch.rand(17)  # history must not matter
    two, _ = one_step(toy, loader, accum_steps=2, objective=toy.ToyObjective(0.5))
    assert torch.equal(one, two)


def test_a_loss_that_is_not_finite_names_step_epoch_and_the_samples_of_its_micro_batch(toy):
    class Poisoned(toy.ToyLoader):
        def batches(self, epoch, start=0):
            for j, batch in enumerate(super().batches(epoch, start)):
                batch.clips = batch.clips.float() * (float("inf") if j == 1 else 1)
                yield batch

    loader = Poisoned(2)
    keys = [list(batch.keys) for batch in toy.ToyLoader(2).batches(0)]
    _, result = one_step(toy, loader, accum_steps=3)
    with pytest.raises(NonFiniteError) as caught:
        result.read()
    message = str(caught.value)
    assert "step 1, epoch 0" in message
    assert all(str(key) in message for key in keys[1])
    assert not any(str(key) in message for key in keys[0] + keys[2])


def test_a_gradient_that_is_not_finite_names_all_samples_of_the_step(toy):
    loader = toy.ToyLoader(2)
    keys = [key for batch in list(loader.batches(0))[:2] for key in batch.keys]
    objective = toy.ToyObjective()
    objective.first.weight.register_hook(lambda gradient: gradient * float("nan"))
    _, result = one_step(toy, loader, accum_steps=2, objective=objective)
    with pytest.raises(NonFiniteError) as caught:
        result.read()
    assert all(str(key) in str(caught.value) for key in keys)


def test_bf16_keeps_weights_in_float32_and_is_close(toy):
    objective = toy.ToyObjective()
    config = toy.toy_config(train={"precision": "bf16"})
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    loader = toy.ToyLoader(4)
    plan = plan_steps(config, loader.num_batches)
    state = TrainState(objective, optimizer, None, Meter(CPU, 1.0), plan)
    take_step = TrainStep(objective, optimizer, lambda step: 0.1, toy.normalise, config, CPU)
    values = take_step(state, plan.batches(loader, 0), StopRequest()).read()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in objective.parameters())
    _, exact = one_step(toy, loader, accum_steps=1)
    assert values["loss"] == pytest.approx(exact.read()["loss"], rel=2e-2)


def test_auto_precision_follows_the_device():
    assert compute_dtype("auto", CPU) == torch.float32
    assert compute_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert compute_dtype("float32", torch.device("cuda")) == torch.float32
    assert compute_dtype("bf16", CPU) == torch.bfloat16
