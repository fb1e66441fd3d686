"""Tensors that no input reached beside others of their shape that were read: they go along with those."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from fairkern.prove import difference
from tests.axes.harness import randomised

X = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KINDS = torch.tensor([0, 0, 1, 1, 0])


class Attention(nn.Module):
    """Biases per head for content and, where kinds of tokens are given, for those: read beside each other or not."""

    def __init__(self, second: tuple[int, ...] = (4, 6)) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.q, self.k, self.v, self.out = (nn.Linear(24, 24) for _ in range(4))
        self.content, self.place = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
        self.of_kind, self.kinds = nn.Parameter(torch.randn(second)), nn.Parameter(torch.randn(2, 4, 6))

    def forward(self, x: Tensor, kinds: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (4, 6)) for part in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,bjhd->bhij", q + self.content, k) + torch.einsum(
            "bihd,bjhd->bhij", q + self.place, k
        )
        if kinds is not None:
            scores = scores + torch.einsum("bihd,jhd->bhij", q + self.of_kind, self.kinds[kinds])
        return x + self.out(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2))


def model(second: tuple[int, ...] = (4, 6)) -> nn.Module:
    torch.manual_seed(0)
    return randomised(Attention(second).double().eval())


def test_they_go_along_and_are_exact_where_they_are_read() -> None:
    net = model()
    units = fk.trace(net, X)
    assert [(g.units, g.frozen) for g in units.groups] == [(4, None)]
    assert any(n.startswith("kinds, of_kind, not reached by the example inputs: goes along") for n in units.notes)
    for fraction in (0.3, 0.5, 0.8):
        plan = fk.Plan(**vars(build(units, random_removal(units, fraction, seed=1))))
        small = fk.apply(net, plan)
        left = small.get_parameter("content").shape[0]
        assert small.get_parameter("kinds").shape == (2, left, 6)
        with plan.masked(net):
            assert difference(net, small, X) < 1e-9
            assert difference(net, small, (X, KINDS)) < 1e-9
            assert not torch.allclose(net(X, KINDS), net(X), atol=1e-3)


@pytest.mark.parametrize("second", [(6, 4), (6, 24)])
def test_another_shape_holds_what_it_may_read(second: tuple[int, ...]) -> None:
    with pytest.raises(fk.InputError, match="may be read by of_kind"):
        fk.trace(model(second), X)


def test_siblings_that_do_not_go_together_say_nothing() -> None:
    """Two matrices of one shape that read and make other units: which of them the third is like is not known."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Parameter(torch.randn(24, 16)) for _ in range(3))
            self.ends = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)])

        def forward(self, x: Tensor, other: bool = False) -> Tensor:
            second = self.three if other else self.two
            return self.ends[0]((x @ self.one).relu()) + self.ends[1]((x @ second).relu())

    with pytest.raises(fk.InputError, match="may be read by three"):
        fk.trace(Branches().double().eval(), X)
