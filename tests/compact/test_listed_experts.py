"""Whole experts that are modules of a list are cut as they are masked, in a copy and in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fairkern as fk
from bench.zoo.mixtures import OneHot
from fairkern import prove
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.listed import UNEVEN, X, every_mixture, experts_of, net, removals, size


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), UNEVEN], ids=["alike", "uneven"])
@every_mixture
def test_cut_is_masked(mixture: type[nn.Module], sizes: tuple[int, ...]) -> None:
    model = net(mixture, sizes=sizes).double()
    units = fk.trace(model, X.double())
    assert len(experts_of(units)) == 2
    x = torch.randn(20, 7, 5, dtype=torch.float64)
    for removed in removals(units, seed=3):
        plan = fk.Plan(**vars(build(units, removed)))
        small = fk.apply(model, plan)
        with plan.masked(model):
            masked = model(x)
        assert prove.difference(small, small, x) == 0
        assert (masked - small(x)).abs().max().item() < 1e-9 * masked.abs().max().item()
        assert size(small) == plan.result["params_after"], "experts of unequal size count as what they are"
        for layer, kept in zip(small.layers, model.layers, strict=True):
            gone = {g.name: len(g.removed) for g in plan.groups if g.kind == "expert"}
            assert len(layer.experts) <= len(kept.experts)
        assert sum(len(layer.experts) for layer in small.layers) == 2 * len(sizes) - sum(gone.values())


@every_mixture
def test_cut_in_place_frees_experts_and_keeps_parameters(mixture: type[nn.Module]) -> None:
    model = net(mixture, sizes=UNEVEN)
    units = fk.trace(model, X)
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, 0))))
    expected = fk.apply(model, plan)
    before = {id(p) for p in model.parameters()}
    assert fk.apply(model, plan, inplace=True) is model
    assert {id(p) for p in model.parameters()} < before
    torch.testing.assert_close(model(X), expected(X), rtol=0, atol=0)


def test_a_plan_for_other_lists_is_refused() -> None:
    model, other = net(OneHot), net(OneHot, sizes=(6, 6, 6, 6, 6))
    units = fk.trace(model, X)
    plan = build(units, random_removal(units, 0.5, 0))
    with pytest.raises(fk.PlanMismatchError, match="layers"):
        fk.apply(other, plan)
    small = fk.apply(model, plan)
    with pytest.raises(fk.PlanMismatchError, match=r"pruned with it already|none"):
        fk.apply(small, plan)
