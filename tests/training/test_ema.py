"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onereel.training.ema import Ema


def test_it_is_the_average_of_the_formula():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, decay=0.75)
    expected = 0.0
    for value in (1.0, 5.0, -3.0):
        nn.init.constant_(model.weight, value)
        ema.update()
        expected = 0.75 * expected + 0.25 * value
    assert ema.state_dict()["weight"].item() == pytest.approx(expected)


def test_inside_the_block_the_model_has_the_averages_and_afterwards_its_weights():
    model = nn.Linear(3, 2)
    ema = Ema(model, decay=0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update()

    def fail_within():
        with ema.applied():
            torch.testing.assert_close(model.weight.detach(), start + 0.5)
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    torch.testing.assert_close(model.weight.detach(), start + 1.0)
    torch.testing.assert_close(ema.state_dict()["weight"], start + 0.5)


def test_frozen_parameters_have_no_average_and_state_round_trips():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    ema = Ema(model, 0.9)
    assert list(ema.state_dict()) == ["weight"]
    other = Ema(nn.Linear(3, 2), 0.9)
    other.load_state_dict({**ema.state_dict(), "bias": torch.ones(2)})
    assert torch.equal(other.state_dict()["weight"], ema.state_dict()["weight"])
