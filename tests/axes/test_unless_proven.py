"""Slices and splits by listed sizes: the trace alone keeps them, the proof lets those go that follow the cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from bench.zoo.mixtures import Mixture
from fairkern.plans.removals import random_removal
from tests.axes.harness import Net, assert_exact, unit_map

X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def listed(m: Net, x: Tensor) -> Tensor:
    first, second = m.a(x).split([12, 4], dim=-1)
    return m.b(first.relu()) + m.c(second.sigmoid())


def held(m: Net, x: Tensor) -> Tensor:
    first, second = m.a(x).split(m.sizes, dim=-1)
    return m.b(first.relu()) + m.c(second.sigmoid())


def three(m: Net, x: Tensor) -> Tensor:
    first, second, third = torch.split(m.a(x), (8, 4, 4), -1)
    return m.b(first * torch.cat([second, third.relu()], -1)) + m.c(third)


def zeroed_third(m: Net, x: Tensor) -> Tensor:
    bias = m.a.bias.clone()
    length = len(bias) // 4
    bias[length : 2 * length].zero_()
    return m.b(F.linear(x, m.a.weight, bias)) + m.c(x[:, :4])


def net(run: Callable[[Net, Tensor], Tensor], b: int, c: int) -> Net:
    torch.manual_seed(0)
    made = Net(run, a=nn.Linear(5, 16), b=nn.Linear(b, 3), c=nn.Linear(c, 3)).double().eval()
    made.sizes, made.n, made.other = [12, 4], 8, nn.Linear(5, 16).double()
    return made


def gated_by_the_last(m: Net, x: Tensor) -> Tensor:
    made = m.a(x)
    gate = made[:, -1].sigmoid()
    return m.b(made.relu() * gate[:, None])


def picked_last(m: Net, x: Tensor) -> Tensor:
    made = m.a(x)
    return m.b(made.relu() * made[:, [-1]].sigmoid())


def halves(first: slice, second: slice) -> Callable[[Net, Tensor], Tensor]:
    def run(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(x[..., first] * x[..., second].sigmoid()) + m.c(x[:, :8])

    return run


def narrowed(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(x.narrow(-1, 0, 8) * torch.narrow(x, 1, 8, 8).sigmoid()) + m.c(x.narrow(1, -8, 8))


def twice(m: Net, x: Tensor) -> Tensor:
    """One attribute counts two groups."""
    first, second = m.a(x), m.other(x)
    return m.b(first[:, : m.n] * first[:, m.n :].sigmoid()) + m.c(second[:, : m.n] * second[:, m.n :].sigmoid())


def unequal(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.b(x[:, :10].relu()) + m.c(x[:, 10:].sigmoid())


def parted(m: Net, x: Tensor) -> Tensor:
    first, second = torch.tensor_split(m.a(x), (10,), dim=-1)
    return m.b(first.relu()) + m.c(second.sigmoid())


def assigned(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    joined = torch.zeros_like(x)
    joined[:, :8] = x[:, :8].relu()
    joined[:, 8:] = x[:, 8:].sigmoid()
    return m.b(joined) + m.c(x[:, :8])


def fixed_bias(m: Net, x: Tensor) -> Tensor:
    bias = m.a.bias.clone()
    bias[4:8].zero_()
    return m.b(F.linear(x, m.a.weight, bias)) + m.c(x[:, :4])


def recurrent() -> Net:
    torch.manual_seed(0)
    return Net(stateful, a=nn.Linear(13, 16), b=nn.Linear(8, 3)).double().eval()


def stateful(m: Net, x: Tensor) -> Tensor:
    """A cell by hand: a state of literal size, one matrix for all its gates."""
    state = torch.zeros(x.shape[0], 8, dtype=x.dtype)
    for step in (x, x.flip(0)):
        gates = m.a(torch.cat([step, state], -1))
        state = gates[:, :8].sigmoid() * state + gates[:, 8:].tanh()
    return m.b(state)


ALLOWED = {
    "split by a listed literal": (lambda: net(listed, 12, 4), {"a": 12, "a[1]": 4}),
    "split by a list that the module holds": (lambda: net(held, 12, 4), {"a": 12, "a[1]": 4}),
    "split into three, two of which meet": (lambda: net(three, 8, 4), {"a": 4, "a[1]": 4}),
    "a position at the end selected": (lambda: net(gated_by_the_last, 16, 4), {"a": 15}),
    "a position at the end picked": (lambda: net(picked_last, 16, 4), {"a": 15}),
    "part of a bias zeroed": (lambda: net(zeroed_third, 16, 4), {"a": 4}),
    "halves by numbers": (lambda: net(halves(slice(8), slice(8, None)), 8, 8), {"a": 8}),
    "halves from behind": (lambda: net(halves(slice(-8), slice(-8, 16)), 8, 8), {"a": 8}),
    "narrow": (lambda: net(narrowed, 8, 8), {"a": 8}),
    "two groups by one attribute": (lambda: net(twice, 8, 8), {"a": 8, "other": 8}),
    "halves that are assigned": (lambda: net(assigned, 16, 8), {"a": 8}),
    "a bias zeroed at fixed numbers": (lambda: net(fixed_bias, 16, 4), {"a": 4}),
    "a state of fixed size": (lambda: recurrent(), {"a": 8}),
    "unequal slices": (lambda: net(unequal, 10, 6), {"a": 10, "a[1]": 6}),
    "unequal parts": (lambda: net(parted, 10, 6), {"a": 10, "a[1]": 6}),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_follows_the_cut_goes(name: str) -> None:
    build, expected = ALLOWED[name]
    torch.manual_seed(0)  # a unit that is off on all samples would tell nothing
    assert unit_map(build(), [X]).prunable == (), "the trace alone cannot know"
    model = build()
    units = fk.trace(model, X)
    assert {units.groups[g].name: units.groups[g].units for g in units.prunable} == expected
    for fraction in (0.0, 0.3, 0.7):
        assert_exact(model, units, random_removal(units, fraction, seed=3), [X])


def by_operator(m: Net, x: Tensor) -> Tensor:
    """No function of torch is given these numbers."""
    slice_ = torch.ops.aten.slice.Tensor
    x = m.a(x)
    return m.b(slice_(x, 1, 0, 8) * slice_(x, 1, 8, 16).sigmoid()) + m.c(slice_(x, 1, 0, 4))


def neighbours(m: Net, x: Tensor) -> Tensor:
    """What is next to each other meets: there is one unit."""
    x = m.a(x)
    return m.b((x[:, 1:] - x[:, :-1])[:, :8]) + m.c(x[:, :4])


def selected_first(m: Net, x: Tensor) -> Tensor:
    made = m.a(x)
    return m.b(made.relu() * made[:, 5].sigmoid()[:, None])


REFUSED = {
    "slices by an operator": (by_operator, 8),
    "differences of neighbours": (neighbours, 8),
    "a position at a fixed number": (selected_first, 16),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_stays_with_its_reason(name: str) -> None:
    run, b = REFUSED[name]
    model = net(run, b, 4)
    model.last = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    model.run = lambda m, x: run(m, x) + m.last(x)
    units = fk.trace(model, X)
    assert [units.groups[g].name for g in units.prunable] == ["last.0"]
    reasons = [f.reason for f in units.frozen if f.axis.tensor == "a.weight"]
    assert any("is sliced by slice" in reason or "one position is selected" in reason for reason in reasons)


def test_without_the_proof_nothing_is_dared() -> None:
    model = net(listed, 12, 4)
    with pytest.raises(fk.InputError, match="unequal parts"):
        fk.trace(model, X, verify=False)


class Fixed(Mixture):
    """There are four experts, whatever there are."""

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.chosen(x)
        onto = torch.zeros((*x.shape[:-1], 4)).to(x).scatter(-1, index, weights.to(x))
        return sum(self.experts[e](x) * onto[..., e : e + 1] for e in range(4))  # type: ignore[return-value]


def test_what_fails_in_any_case_does_not_hold_it_back() -> None:
    model = net(listed, 12, 4)
    model.last = nn.Sequential(nn.Linear(5, 8), Fixed(8), nn.Linear(8, 3)).double()
    model.run = lambda m, x: listed(m, x) + m.last(x)
    units = fk.trace(model, X)
    assert {"a", "a[1]"} <= {units.groups[g].name for g in units.prunable}
    frozen = {g.name: g.frozen for g in units.groups if g.kind == "expert"}
    assert list(frozen) == ["last.1.experts"]
    assert frozen["last.1.experts"]
    assert_exact(model, units, random_removal(units, 0.5, seed=3), [X])


def test_what_is_left_of_a_daring_map_is_kept() -> None:
    """One part does not follow; the split by a list beside it does."""
    model = net(listed, 12, 4)
    model.other = Net(by_operator, a=nn.Linear(5, 16), b=nn.Linear(8, 3), c=nn.Linear(4, 3)).double().eval()
    model.last = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    model.run = lambda m, x: listed(m, x) + m.other(x) + m.last(x)
    units = fk.trace(model, X)
    assert {units.groups[g].name: units.groups[g].units for g in units.prunable} == {"a": 12, "a[1]": 4, "last.0": 6}
    assert_exact(model, units, random_removal(units, 0.5, seed=3), [X])
