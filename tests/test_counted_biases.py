"""A share of the parameters counts what the result has: with the biases that compensation gives to weights without."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk

KEEP = 0.7


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 12, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(12, 9, bias=False)).eval()


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(30, 6, generator=generator), torch.arange(30) % 9)]


def pruned(model: nn.Module, **options: Any) -> tuple[nn.Module, fk.Report]:
    given = {"keep_params": KEEP, "progress": False, **options}
    return fk.prune(model, data(), nn.functional.cross_entropy, **given)


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"compensate": "least_squares"}, {"compensate": "mean"}, {"iterations": 2}])
def test_what_is_left_is_within_the_budget(model: nn.Module, options: dict[str, Any]) -> None:
    bare, _ = pruned(model, compensate="none")
    small, report = pruned(model, **options)
    assert report.choices["added_biases"] > 0
    assert size(small) <= KEEP * size(model) < size(bare) + report.choices["added_biases"]
    assert report.plan is not None
    assert report.plan.request["keep_params"] == KEEP


def test_where_nothing_is_added_the_plan_is_that_of_the_scores(model: nn.Module) -> None:
    scores = fk.score(model, data(), nn.functional.cross_entropy, gram=True, progress=False)
    for options in ({"compensate": "none"}, {"biases": False}):
        how: dict[str, Any] = {"allocation": "uniform", "removal": "l1"}
        _, report = pruned(model, **how, **options)
        assert report.plan is not None
        found = scores.plan(keep_params=KEEP, **how)
        assert report.plan.result["params_after"] == found.result["params_after"]
        assert [g.removed.tolist() for g in report.plan.groups] == [g.removed.tolist() for g in found.groups]


def test_rows_of_a_sweep_and_further_budgets_too(model: nn.Module) -> None:
    swept = fk.sweep(
        model, data(), nn.functional.cross_entropy, budgets=(0.8, KEEP), methods=["residual"], evaluate=size,
        progress=False,
    )  # fmt: skip
    _, report = pruned(model, budgets=[0.8], evaluate=size, compensate="least_squares")
    for row, tried in zip(swept.rows, report.curve, strict=True):
        assert row["params"] <= row["budget"] * size(model)
        assert row["params"] == tried["params"]


def test_a_budget_that_biases_fill_says_so(model: nn.Module) -> None:
    keep = 20 / size(model)  # one unit of each layer is 16, and 26 with what they would be given
    with pytest.raises(fk.BudgetError, match=r"numbers that compensation adds as biases \(biases=False adds none\)"):
        pruned(model, keep_params=keep)
    small, _ = pruned(model, keep_params=keep, biases=False)
    assert size(small) <= 20


def test_the_budget_that_the_error_names_can_be_had(model: nn.Module) -> None:
    with pytest.raises(fk.BudgetError) as caught:
        pruned(model, keep_params=20 / size(model))
    found = re.search(r"anything in \[([\d.e-]+), .*; add ([\d.]+) to it for the biases", str(caught.value))
    if found is None:  # few steps: they are listed
        found = re.search(r"reachable shares: ([\d.e-]+), .*; add ([\d.]+) to it for the biases", str(caught.value))
    assert found is not None
    keep = float(found[1]) + float(found[2])
    small, _ = pruned(model, keep_params=keep)
    assert size(small) <= keep * size(model)
