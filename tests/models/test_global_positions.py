"""One table of positions for grids of any size: what it starts as, how it is interpolated, and what is kept of it."""

from __future__ import annotations

import pytest
import torch

from onereel.models.positions import GlobalPositions
from onereel.types import TubeletGrid

TABLE = TubeletGrid(6, 5, 5)
OTHER = TubeletGrid(3, 8, 4)


def positions() -> GlobalPositions:
    """With a factor and a shift that are not one and zero."""
    module = GlobalPositions(TABLE, 16)
    torch.nn.init.normal_(module.scale)
    torch.nn.init.normal_(module.shift)
    return module


def test_it_starts_with_the_class_token_nowhere() -> None:
    module = GlobalPositions(TABLE, 16)
    assert module.pos_embed.shape == (1 + 150, 16)
    assert not module.pos_embed[0].any()
    assert torch.equal(module(TABLE), module.pos_embed[1:])


def test_the_affine_map_may_come_before_or_after_interpolation() -> None:
    """The reference maps the table and then interpolates; weights of an interpolation sum to one."""
    module, mapped = positions(), GlobalPositions(TABLE, 16)
    with torch.no_grad():
        mapped.pos_embed[1:] = module.pos_embed[1:] * module.scale + module.shift
    assert torch.allclose(module(OTHER), mapped(OTHER), atol=1e-5)


def test_gradients_reach_the_table_its_factor_and_its_shift() -> None:
    module = positions()
    module(OTHER).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_tables_are_kept_while_the_weights_are_the_same() -> None:
    module = positions()
    with torch.no_grad():
        first = module(OTHER)
        assert module(OTHER) is first
        module(TABLE)
        assert module(OTHER) is first
        for parameter in module.parameters():
            parameter.add_(1)
            changed = module(OTHER)
            assert changed is not first
            assert torch.equal(changed, module._rows(OTHER))
            first = changed


@pytest.mark.parametrize("change", ["load", "optimiser", "data"])
def test_no_way_to_change_weights_leaves_an_old_table(change: str) -> None:
    module = positions()
    with torch.no_grad():
        module(OTHER)
    if change == "load":
        module.load_state_dict(GlobalPositions(TABLE, 16).state_dict())
    elif change == "data":
        module.pos_embed.data = torch.randn_like(module.pos_embed)
    else:
        optimiser = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
        module(OTHER).sum().backward()
        optimiser.step()
    with torch.no_grad():
        assert torch.equal(module(OTHER), module._rows(OTHER))


def test_training_keeps_nothing() -> None:
    module = positions()
    with torch.no_grad():
        module(OTHER)
    assert module(OTHER).requires_grad
    assert not module._kept


def test_autocast_does_not_coarsen_positions() -> None:
    module = positions()
    with torch.no_grad():
        exact = module(OTHER)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(module._rows(OTHER), exact)
