"""What is made up for in experts that are modules of a list, under the names that they have after the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fairkern as fk
from bench.zoo.mixtures import Compared, Net
from fairkern.plans.build import build
from fairkern.plans.removals import random_removal
from tests.compensate.test_intercepts import Config
from tests.listed import UNEVEN, X, batches, every_mixture, net


@pytest.mark.parametrize("compensate", ["mean", "least_squares", "sequential"])
@every_mixture
def test_compensation_and_files(mixture: type[nn.Module], compensate: str, tmp_path: Any) -> None:
    model = net(mixture, sizes=UNEVEN)
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    plan = fk.Plan(**vars(build(units, random_removal(units, 0.5, 0))))
    small = fk.apply(model, plan, compensate=compensate, scores=scores, loader=batches())
    fk.save_pruned(small, plan, tmp_path / "small")
    with torch.device("meta"):
        fresh = Net(mixture, sizes=UNEVEN)
    if mixture.__name__ == "Sorted":  # a buffer that is saved, and made from random numbers
        fresh = Net(mixture, sizes=UNEVEN)
    again = fk.load_pruned(fresh, tmp_path / "small").eval()
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in small.named_parameters()]
    torch.testing.assert_close(again(X), small(X), rtol=0, atol=0)
    scores.save(tmp_path / "scores")
    loaded = fk.Scores.load(tmp_path / "scores")
    assert loaded.units.lists == units.lists
    assert loaded.units.extents == units.extents
    assert loaded.plan(keep_params=0.5).result == scores.plan(keep_params=0.5).result
    plan.save(tmp_path / "plan.json")
    assert fk.Plan.load(tmp_path / "plan.json").lists == plan.lists


@every_mixture
def test_compensation_comes_closer(mixture: type[nn.Module]) -> None:
    """Experts that stay, renamed, are given what was fitted for them."""
    model = net(mixture, sizes=(16, 16, 16, 16), width=12)
    x = torch.cat([x for x, _ in batches()])
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    removed = [
        np.array([0]) if group.kind == "expert" else np.arange(4) if ".experts." in group.name else np.zeros(0, int)
        for group in units.groups
    ]
    plan = fk.Plan(**vars(build(units, removed)))
    with plan.masked(model):
        bare = model(x)
    # against the model without the experts, so that only what the inner units carried is made up for
    only = [r if g.kind == "expert" else np.zeros(0, int) for g, r in zip(units.groups, removed, strict=True)]
    whole = fk.apply(model, fk.Plan(**vars(build(units, only))))(x)
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert (small(x) - whole).norm() < 0.8 * (bare - whole).norm()


class Configured(Net):
    """Experts in lists whose layers have biases where the configuration says so."""

    def __init__(self, config: Config) -> None:
        super().__init__(Compared)
        self.config = config
        for layer in self.layers:
            for expert in layer.experts:
                if config.mlp_bias:
                    for linear in (expert.gate, expert.up, expert.down):
                        linear.bias = nn.Parameter(torch.ones(linear.out_features))


def test_zeros_that_a_field_brings_go_to_the_experts_that_stay(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Configured(Config(mlp_bias=False)).eval()
    units = fk.trace(model, X)
    scores = fk.score(model, batches(), F.cross_entropy, units=units, gram=True, progress=False)
    removed = [
        np.array([1 if g.kind == "expert" else 0]) if g.frozen is None else np.zeros(0, int) for g in units.groups
    ]
    assert any(g.kind == "expert" and g.frozen is None for g in units.groups)
    plan = fk.Plan(**vars(build(units, removed)))
    small = fk.apply(model, plan, compensate="least_squares", scores=scores)
    assert small.config.mlp_bias is True
    for layer in small.layers:
        assert len(layer.experts) == 3
        for expert in layer.experts:
            assert torch.count_nonzero(expert.gate.bias) == torch.count_nonzero(expert.up.bias) == 0
            assert torch.count_nonzero(expert.down.bias)
    fk.save_pruned(small, plan, tmp_path / "small")
    again = fk.load_pruned(Configured(Config(mlp_bias=False)).eval(), tmp_path / "small")
    assert torch.equal(again(X), small(X))
