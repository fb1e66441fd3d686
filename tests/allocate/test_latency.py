"""Plans for milliseconds against sums over a table, and tables that are measured, kept and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.allocate.latency import LatencyCost
from fairkern.artefacts import load_latency, save_latency
from fairkern.types import LatencyCurve, LatencyTable


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
SHARES = np.array([1.0, 0.5, 0.0])


def table(model: nn.Module, times: dict[str, tuple[float, float, float]], rest: float = 1.0) -> LatencyTable:
    return LatencyTable(
        {path: LatencyCurve(SHARES, np.array(ms)) for path, ms in times.items()},
        LatencyCurve(SHARES, np.full(3, rest)),
        tuple(name for name, _ in model.named_parameters()),
        {name: tuple(p.shape) for name, p in model.named_parameters()},
    )


def scored(model: nn.Module) -> fk.Scores:
    loader = [(X, torch.arange(12) % 3)]
    return fk.score(model, loader, nn.CrossEntropyLoss(), units=fk.trace(model, X), gram=True, progress=False)


TIMES = {"0": (4.0, 3.0, 2.0), "2": (8.0, 4.0, 0.0), "4": (2.0, 2.0, 2.0)}


def test_layers_are_added_by_the_share_that_is_left() -> None:
    model = network()
    units = fk.trace(model, X)
    cost = LatencyCost(units, table(model, TIMES))
    assert cost(np.array([0, 0])) == 4 + 8 + 2 + 1
    # [10, 6] + 10 loses half of its rows; [8, 10] + 8 keeps 40 + 8 of 88; what is between two shares is interpolated
    assert cost(np.array([5, 0])) == pytest.approx(3 + 8 * (48 / 88) + 2 + 1)
    before = np.array([2, 3])
    alone = [cost(before + np.array(d)) - cost(before) for d in ([-1, 0], [0, -1])]
    np.testing.assert_allclose(cost.change(before, np.array([1, 1])), alone)


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.5])
def test_a_plan_keeps_to_the_milliseconds(keep: float) -> None:
    model = network()
    scores, times = scored(model), table(model, TIMES)
    plan = scores.plan(keep_latency=keep, latency=times)
    assert plan.result["latency_before_ms"] == 15
    assert plan.result["latency_after_ms"] <= keep * 15
    cost = LatencyCost(scores.units, times)
    removed = np.array([len(g.removed) for g in plan.groups])
    for g in np.flatnonzero(removed):  # giving any unit back would exceed it
        back = removed.copy()
        back[g] -= 1
        assert cost(back) > keep * 15
    assert fk.apply(model, plan)(X).shape == (12, 3)


def test_a_slower_small_layer_is_taken_for_noise() -> None:
    model = network()
    times = table(model, {"0": (4.0, 5.0, 2.0)})
    values = [LatencyCost(fk.trace(model, X), times)(np.array([k, 0])) for k in range(10)]
    assert values == sorted(values, reverse=True)


def test_a_table_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    units, file = fk.trace(model, X), tmp_path / "latency.json"
    before = {name: p.clone() for name, p in model.named_parameters()}
    measured = fk.latency_table(model, units, X, cache=file, shares=(1.0, 0.5))
    assert sorted(measured.layers) == ["0", "2", "4"]
    assert all(len(curve.ms) == 2 and (curve.ms > 0).all() for curve in measured.layers.values())
    assert measured.layers["2"].shares.tolist() == [1.0, (4 * 5 + 4) / 88]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    monkeypatch.setattr(fk.api.report, "module_ms", lambda *_: pytest.fail("measured again"))
    again = fk.latency_table(model, units, X, cache=file, shares=(1.0, 0.5))
    assert again.layers["2"].ms.tolist() == measured.layers["2"].ms.tolist()
    with pytest.raises(pytest.fail.Exception):  # other inputs: the cache does not apply
        fk.latency_table(model, units, X[:3], cache=file)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    model = network()
    scores, times = scored(model), table(model, TIMES)
    with pytest.raises(fk.InputError, match="pass latency="):
        scores.plan(keep_latency=0.5)
    with pytest.raises(fk.InputError, match="give exactly one of"):
        scores.plan(keep_latency=0.5, keep_params=0.5, latency=times)
    with pytest.raises(fk.BudgetError, match="cannot be reached"):
        scores.plan(keep_latency=0.01, latency=times)
    with pytest.raises(fk.InputError, match="another model"):
        scores.plan(keep_latency=0.5, latency=replace(times, shapes={"x": (1,)}))
    save_latency(times, tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text()
    (tmp_path / "table.json").write_text(text.replace("[4.0,3.0,2.0]", "[4.0,3.0]").replace("[4.0, 3.0, 2.0]", "[4.0]"))
    with pytest.raises(fk.ArtefactError, match="3 shares and"):
        load_latency(tmp_path / "table.json")
