"""Whole experts that are modules of a list: found where they can go, kept where they cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from bench.zoo.mixtures import Dense, Likeliest, Mixture, OneHot
from fairkern.types import Silence
from tests.axes.harness import Net
from tests.listed import X, every_mixture, experts_of, net


@every_mixture
def test_experts_are_found(mixture: type[nn.Module]) -> None:
    units = fk.trace(net(mixture), X)
    found = [units.groups[g] for g in experts_of(units)]
    assert [group.name for group in found] == ["layers.0.experts", "layers.1.experts"]
    assert all(group.units == 4 and group.least == (1 if mixture is Likeliest else 2) for group in found)
    assert all(sum(a.silence is Silence.MINUS_INFINITY for a in group.axes) == 1 for group in found)
    assert "expert" in units.explain()


class Averaged(Mixture):
    """The gates are held against their mean: an expert that is gone counts there."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        weights, index = logits.softmax(-1).topk(self.top_k, -1)
        weights = weights * logits.softmax(-1).std(-1, keepdim=True)
        onto = torch.zeros_like(logits).scatter(-1, index, weights)
        return torch.stack([e(x) * onto[..., i : i + 1] for i, e in enumerate(self.experts)]).sum(0)


class FixedNumber(Mixture):
    """There are four experts, whatever there are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.chosen(x)
        onto = torch.zeros((*x.shape[:-1], 4)).to(x).scatter(-1, index, weights.to(x))
        return sum(self.experts[e](x) * onto[..., e : e + 1] for e in range(4))  # type: ignore[return-value]


class Twice(Mixture):
    """Its experts run two times."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = Dense.forward(self, x)  # type: ignore[arg-type]
        return x


class Shared(Dense):
    """Another list has the same experts."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.again = nn.ModuleList(self.experts)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.again[0](x)


class LogitsOut(nn.Module):
    """The router's logits are part of what the model returns."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.mixture = Dense(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mixture(x), self.mixture.router(x)


@pytest.mark.parametrize("kind", [Averaged, FixedNumber, Twice, Shared], ids=lambda k: k.__name__)
def test_experts_that_cannot_go_stay(kind: type[nn.Module]) -> None:
    model = net(kind)
    units = fk.trace(model, X)
    assert not experts_of(units)
    routers = [f for f in units.frozen if f.axis.tensor == "layers.0.router.weight" and f.axis.dim == 0]
    reasons = [g.frozen for g in units.groups if g.kind == "expert"] + [f.reason for f in routers]
    assert reasons
    assert all(reasons)


def test_experts_whose_logits_are_returned_stay() -> None:
    torch.manual_seed(0)
    units = fk.trace(LogitsOut().eval(), torch.randn(6, 5, 8))
    assert not experts_of(units)
    reasons = {f.reason for f in units.frozen if f.axis.tensor == "mixture.router.weight" and f.axis.dim == 0}
    assert reasons == {"is a dimension of the model's output"}


def test_without_a_proof_they_stay() -> None:
    units = fk.trace(net(OneHot), X, verify=False)
    assert not units.lists
    assert not experts_of(units)


def test_a_list_with_an_empty_place_is_none_of_experts() -> None:
    def picked(m: Net, x: Tensor) -> Tensor:
        chosen = m.gate(x).topk(2, -1).values.sum(-1, keepdim=True)
        return m.last(m.parts[1](m.parts[0](x).relu()) * chosen)

    parts = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
    parts.append(None)  # type: ignore[arg-type]
    model = Net(picked, gate=nn.Linear(4, 3), parts=parts, last=nn.Linear(4, 2))
    units = fk.trace(model, torch.randn(5, 4))
    assert [units.groups[g].name for g in units.prunable] == ["parts.0", "parts.1"]
