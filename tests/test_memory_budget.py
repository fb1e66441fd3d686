"""A memory budget for all stages of `prune`: the proof, the scores and the cut."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fairkern as fk
from fairkern.capture import memory
from fairkern.prove import proof_bytes
from fairkern.pruning import cutter, steps


@pytest.fixture(autouse=True)
def to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left uncounted, so that small models need a budget."""
    monkeypatch.setattr(memory, "SPARE", 0)
    monkeypatch.setattr(steps, "SPARE", 0)
    monkeypatch.setattr(cutter, "SPARE", 0)


def network() -> nn.Module:
    torch.manual_seed(0)
    inner = [m for _ in range(3) for m in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), *inner, nn.Linear(32, 3)).eval()


def data(batches: int = 12) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(20 * batches, 5, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(20), (torch.arange(len(x)) % 3).split(20), strict=True))


def prune(model: nn.Module, **options: Any) -> tuple[nn.Module, fk.Report]:
    return fk.prune(model, data(), nn.CrossEntropyLoss(), keep_params=0.5, progress=False, **options)


def least(model: nn.Module, budget: int = 1, **options: Any) -> tuple[int, str]:
    """The least budget that an error names, and the error."""
    with pytest.raises(fk.InputError, match="The least that would do is") as caught:
        prune(model, memory_budget=budget, **options)
    found = re.search(r"least that would do is ([\d,]+)", str(caught.value))
    assert found is not None
    return int(found[1].replace(",", "")), str(caught.value)


def test_the_proof_counts() -> None:
    model = network()
    named, says = least(model)
    assert named == proof_bytes(model)
    assert "proof" in says
    units = fk.trace(model, data()[0][0][:2], verify=False)
    assert "proof" not in least(model, units=units)[1]


def least_of_cut(model: nn.Module, method: str, **options: Any) -> int:
    """The least that the cut names, once scoring has what it names."""
    budget, says = 1, ""
    while method not in says:
        found, says = least(model, budget, compensate=method, **options)
        assert found > budget
        budget = found
    return budget


@pytest.mark.parametrize("method", ["least_squares", "sequential", "joint"])
def test_each_stage_names_the_least_that_would_do(method: str) -> None:
    model = network()
    units = fk.trace(model, data()[0][0][:2])
    whole, _ = prune(model, units=units, compensate=method)
    budget = least_of_cut(model, method, units=units)
    small, report = prune(model, units=units, compensate=method, memory_budget=budget)
    assert report.choices["compensation"] == method
    for a, b in zip(whole.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_left_open_is_what_fits() -> None:
    model = network()
    units = fk.trace(model, data()[0][0][:2])
    assert prune(model, units=units)[1].choices["compensation"] == "sequential"
    named = least_of_cut(model, "sequential", units=units)
    _, report = prune(model, units=units, memory_budget=named - 1)
    assert report.choices["compensation"] == "least_squares"
    assert prune(model, units=units, memory_budget=named)[1].choices["compensation"] == "sequential"
