"""Who decays, and how fast each layer learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onereel.config import OptimConfig
from onereel.training.optim import create_optimizer, parameter_groups, set_lr


class Layered(nn.Module):
    num_layers = 4

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 5)

    def layer_of(self, name):
        if name == "table":
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3

    def no_weight_decay(self):
        return {"table"}


def test_each_trainable_parameter_is_in_one_group():
    model = Layered()
    model.blocks[0].weight.requires_grad_(False)
    names = [n for g in parameter_groups(model, OptimConfig(layer_decay=0.5)) for n in g["names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters() if n != "blocks.0.weight")


def test_biases_norms_and_named_tables_do_not_decay():
    groups = parameter_groups(Layered(), OptimConfig(weight_decay=0.1))
    decayed = [n for g in groups if g["weight_decay"] == 0.1 for n in g["names"]]
    assert sorted(decayed) == ["blocks.0.weight", "blocks.1.weight", "head.weight"]
    assert {g["weight_decay"] for g in groups} == {0.1, 0.0}


def test_each_layer_learns_layer_decay_times_as_fast_as_the_one_above():
    groups = parameter_groups(Layered(), OptimConfig(layer_decay=0.5))
    scale = {n: g["lr_scale"] for g in groups for n in g["names"]}
    assert scale["table"] == 0.125
    assert scale["blocks.0.weight"] == scale["blocks.0.bias"] == 0.25
    assert scale["blocks.1.weight"] == 0.5
    assert scale["norm.weight"] == scale["head.weight"] == scale["head.bias"] == 1.0


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_rates_reach_the_weights(kind):
    model = Layered()
    optimizer = create_optimizer(
        model, OptimConfig(kind=kind, layer_decay=0.5, weight_decay=0.0, momentum=0.0)
    )
    set_lr(optimizer, 0.01)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {n: (before[n] - p).abs().mean().item() for n, p in model.named_parameters()}
    assert moved["head.weight"] == pytest.approx(0.01, rel=1e-4)
    assert moved["blocks.0.weight"] == pytest.approx(0.0025, rel=1e-3)
    assert moved["table"] == pytest.approx(0.00125, rel=1e-3)


def test_fused_adamw_is_the_published_update():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    model = Layered()
    model.table = weight
    config = OptimConfig(lr=0.1, betas=(0.8, 0.9), weight_decay=0.0)
    optimizer = create_optimizer(model, config)
    mean = square = torch.zeros(1, 2)
    expected = weight.detach().clone()
    for step in range(1, 4):
        gradient = torch.tensor([[0.5, -0.25]]) * step
        weight.grad = gradient
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        expected -= 0.1 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)
