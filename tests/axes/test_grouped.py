"""Grouped convolutions whose whole groups cannot go, since their inputs or their outputs stay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairkern as fk
from tests.axes.harness import Case, Net, check_exact, check_groups, make


def inputs_stay(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.end(m.b(F.layer_norm(x, x.shape[1:])).relu())


def outputs_stay(m: Net, x: Tensor) -> Tensor:
    x = m.b(m.a(x).relu())
    return m.end(F.layer_norm(x, x.shape[1:]))


def nothing_stays(m: Net, x: Tensor) -> Tensor:
    return m.end(m.b(m.a(x).relu()).relu())


def functional(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    return m.end(F.conv2d(F.layer_norm(x, x.shape[1:]), m.weight, groups=8).relu())


def standardised(m: Net, x: Tensor) -> Tensor:
    """What a mean of the weight runs over stays, whichever way round."""
    weight = m.b.weight - m.b.weight.mean((1, 2, 3), keepdim=True)
    x = F.conv2d(m.a(x).relu(), weight, m.b.bias, groups=4)
    return m.end(F.layer_norm(x, x.shape[1:]))


def net(run: Callable[..., Tensor], given: int, made: int, groups: int, conv: type[nn.Module] = nn.Conv2d) -> nn.Module:
    return Net(run, a=nn.Conv2d(3, given, 1), b=conv(given, made, 3, groups=groups), end=nn.Conv2d(made, 4, 1))


KEPT = {"b.weight:0": "layer norm runs over it"}
CASES = {
    "multiplier": Case(
        partial(net, inputs_stay, 8, 24, 8),
        {"b": "3: b.bias:0x8 b.weight:0x8 end.weight:1*x8 @ endx8"},
        {"a.weight:0": "layer norm runs over it"},
    ),
    "one output of every group": Case(
        partial(net, inputs_stay, 16, 12, 4),
        {"b": "3: b.bias:0x4 b.weight:0x4 end.weight:1*x4 @ endx4"},
        {"b.weight:1": "layer norm runs over it"},
    ),
    "one input of every group": Case(
        partial(net, outputs_stay, 16, 12, 4), {"a": "4: a.bias:0x4 a.weight:0x4 b.weight:1* @ bx4"}, KEPT
    ),
    "one input of every group that makes one output": Case(
        partial(net, outputs_stay, 16, 4, 4), {"a": "4: a.bias:0x4 a.weight:0x4 b.weight:1* @ bx4"}, KEPT
    ),
    "whole groups": Case(
        partial(net, nothing_stays, 16, 12, 4),
        {"a": "4: a.bias:0x4 a.weight:0x4 b.bias:0x3 b.weight:0x3 end.weight:1*x3 @ endx3"},
        {"b.weight:1": "whole groups of convolution in b are cut"},
    ),
    "transposed, one output of every group": Case(
        partial(net, inputs_stay, 16, 12, 4, nn.ConvTranspose2d),
        {"b": "3: b.bias:0x4 b.weight:1 end.weight:1*x4 @ endx4"},
        KEPT,
    ),
    "transposed, one input of every group": Case(
        partial(net, outputs_stay, 16, 12, 4, nn.ConvTranspose2d),
        {"a": "4: a.bias:0x4 a.weight:0x4 b.weight:0*x4 @ bx4"},
        {"b.weight:1": "layer norm runs over it"},
    ),
    "by a function": Case(
        lambda: Net(
            functional, a=nn.Conv2d(3, 8, 1), weight=nn.Parameter(torch.randn(16, 1, 3, 3)), end=nn.Conv2d(16, 4, 1)
        ),
        {"weight": "2: end.weight:1*x8 weight:0x8 @ endx8"},
    ),
    "weight standardised": Case(
        lambda: Net(standardised, a=nn.Conv2d(3, 16, 1), b=nn.Conv2d(16, 12, 3, groups=4), end=nn.Conv2d(12, 4, 1)),
        {},
        {"a.weight:0": "layer norm runs over it"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    check_groups(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    check_exact(CASES[name])


@pytest.mark.parametrize(("run", "units"), [(inputs_stay, 3), (outputs_stay, 4)])
def test_they_are_proven_scored_and_made_up_for(run: Callable[..., Tensor], units: int) -> None:
    def pooled(m: Net, x: Tensor) -> Tensor:
        return run(m, x).mean((2, 3))

    model, (x,) = make(Case(partial(net, pooled, 16, 12, 4), shape=(12, 3, 8, 8)))
    found = fk.trace(model, x[:2])
    assert [found.groups[g].units for g in found.prunable] == [units]
    scores = fk.score(model, [(x, torch.arange(12) % 4)], F.cross_entropy, units=found, progress=False, gram=True)
    assert all(len(values[0]) == units for values in scores.signals.values())
    assert scores.signals["wasserstein"][0].min() > 0
    plan = scores.plan(keep_params=0.9)
    small, plain = fk.apply(model, plan, compensate="least_squares", scores=scores), fk.apply(model, plan)
    given, made = (16, 8) if run is inputs_stay else (12, 12)
    assert (small.b.in_channels, small.b.out_channels, small.b.groups) == (given, made, 4)
    assert F.mse_loss(small(x), model(x)) < F.mse_loss(plain(x), model(x))
