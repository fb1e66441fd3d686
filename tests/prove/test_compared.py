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


class Slopes(nn.Module):
    """A bias that grows with the distance, for heads that have a slope; zeros for others up to a number."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.total_heads = heads
        self.register_buffer("slopes", torch.linspace(0.1, 0.4, 4)[:, None, None], persistent=False)

    def forward(self, n: int) -> Tensor:
        places = torch.arange(n)
        bias = -(places[:, None] - places).abs() * self.slopes
        return nn.functional.pad(bias, (0, 0, 0, 0, 0, self.total_heads - bias.shape[0]))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.bias = nn.LayerNorm(24), Slopes(4)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, 6)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-2, -1) + self.bias(x.shape[1])).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


def test_a_number_follows_to_which_the_module_fills_up_its_own_tensor() -> None:
    torch.manual_seed(0)
    model, x = Attention().double().eval(), torch.randn(2, 5, 24, dtype=torch.float64)
    units = fk.trace(model, x)
    assert [(g.units, g.frozen) for g in units.groups] == [(4, None)]
    for fraction in (0.3, 0.5, 0.8):
        plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=0))))
        small = fk.apply(model, plan)
        assert small.bias.total_heads == len(small.bias.slopes) < 4
        with plan.masked(model):
            assert torch.allclose(model(x), small(x), rtol=1e-12)
