"""Numbers that a module's code compares its input with, and that nothing but a proof can tell from others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal


class Up(nn.Module):
    """As many channels in as out, each counted by an attribute; `how` they are used."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.channels = self.out_channels = 8
        self.conv, self.how = nn.Conv2d(8, 8, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "assert":
            assert x.shape[1] == self.channels
        if self.how == "raise" and x.shape[1] != self.channels:
            raise ValueError("other channels")
        y = self.conv(x)
        if self.how == "assert":
            assert y.shape[1] == self.out_channels
        return y * self.channels if self.how == "scale" else y


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 8, 1), Up(how), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.stem(x).relu()).relu())


@pytest.mark.parametrize(
    ("how", "kept"), [("assert", (4, 6)), ("raise", (4, 8)), ("scale", (8, 8)), ("nothing", (8, 8))]
)
def test_a_number_follows_where_the_code_refuses_another(how: str, kept: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, x = Net(how).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    units = fk.trace(model, x)
    assert [(units.groups[g].name, units.groups[g].units) for g in units.prunable] == [("stem", 8), ("up.conv", 8)]
    removed = random_removal(units, 0.5, seed=0)
    plan = fk.Plan(**vars(build(units, [removed[0], removed[1][:2]])))
    small = fk.apply(model, plan)
    assert (small.up.channels, small.up.out_channels) == kept
    with plan.masked(model):
        assert torch.allclose(model(x), small(x), rtol=1e-12)
