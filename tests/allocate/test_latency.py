"""Plans for milliseconds against sums over a table, and tables that are measured, kept and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fairkern as fk
from fairkern.allocate import corrected, fit, widths
from fairkern.allocate.latency import latency_cost
from fairkern.artefacts import load_latency, save_latency
from fairkern.plans.build import build
from fairkern.report import layers_ms
from fairkern.types import LatencyCut, LatencyTable


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


def table(model: nn.Module, times: dict[str, dict[str, float]], rest: float = 1.0, whole: float = 15.0) -> LatencyTable:
    return LatencyTable(
        times,
        {"fixed": rest / 2, "flops": rest / 2},
        {},
        tuple(name for name, _ in model.named_parameters()),
        {name: tuple(p.shape) for name, p in model.named_parameters()},
        whole,
    )


def scored(model: nn.Module) -> fk.Scores:
    loader = [(X, torch.arange(12) % 3)]
    return fk.score(model, loader, nn.CrossEntropyLoss(), units=fk.trace(model, X), gram=True, progress=False)


TIMES = {"0": {"fixed": 2.0, "elements": 2.0}, "2": {"weight:0": 2.0, "elements": 6.0}, "4": {"fixed": 2.0}}


def test_terms_are_added_by_what_is_left_of_what_they_follow() -> None:
    model = network()
    units = fk.trace(model, X)
    cost = latency_cost(units, table(model, TIMES))
    assert cost(np.array([0, 0])) == pytest.approx(4 + 8 + 2 + 1)
    # [10, 6] + 10 loses half of its rows; [8, 10] + 8 keeps 40 + 8 of 88, its rows stay; FLOPs: 60 + 80 + 24
    flops = (30 + 40 + 24) / 164
    assert cost(np.array([5, 0])) == pytest.approx(2 + 1 + 2 + 6 * 48 / 88 + 2 + 0.5 + 0.5 * flops)
    before = np.array([2, 3])
    alone = [cost(before + np.array(d)) - cost(before) for d in ([-1, 0], [0, -1])]
    np.testing.assert_allclose(cost.change(before, np.array([1, 1])), alone)


def cuts_of(units: fk.UnitMap, true: LatencyTable, removals: list[list[int]]) -> list[LatencyCut]:
    """What would be measured where `true` holds."""
    found = []
    outputs = {"0": (120, (12, 10)), "2": (96, (12, 8)), "4": (36, (12, 3))}
    for removed in map(np.array, removals):
        alone = {
            path: latency_cost(units, replace(true, layers={path: terms}, rest={}))(removed)
            for path, terms in true.layers.items()
        }
        found.append(LatencyCut(removed, latency_cost(units, true)(removed), alone, outputs))
    return found


REMOVALS = [[0, 0], [2, 2], [5, 4], [8, 6], [0, 6], [8, 0], [3, 5]]


def test_a_fit_finds_the_table_that_made_the_times() -> None:
    model = network()
    units = fk.trace(model, X)
    true = table(model, TIMES)
    cuts = cuts_of(units, true, REMOVALS)
    cuts[0] = replace(cuts[0], ms=14.0)  # the uncut model may be faster than its terms
    found = fit(units, true.parameters, cuts, {"a": 1})
    assert found.whole == 14.0
    assert found.error < 1e-6
    assert found.outputs == {"0.bias:0": 120.0, "2.bias:0": 96.0}, "the last layer's cannot shrink"
    for removed in ([1, 1], [9, 7], [4, 0]):
        expected = latency_cost(units, true)(np.array(removed))
        assert latency_cost(units, found)(np.array(removed)) == pytest.approx(expected)
    assert all(ms > 0 for terms in (*found.layers.values(), found.rest) for ms in terms.values())


def test_noise_never_makes_a_smaller_model_slower() -> None:
    model = network()
    units = fk.trace(model, X)
    cuts = cuts_of(units, table(model, {"0": {"fixed": 4.0}, "2": {"fixed": 1.0}, "4": {"fixed": 1.0}}), REMOVALS)
    cuts = [replace(cut, layers={**cut.layers, "0": 4.0 + 0.1 * k}) for k, cut in enumerate(cuts)]
    cost = latency_cost(units, fit(units, table(model, TIMES).parameters, cuts, {}))
    values = [cost(np.array([k, 0])) for k in range(10)]
    assert values == sorted(values, reverse=True)


def test_a_look_at_a_plan_scales_the_table() -> None:
    model = network()
    units, times = fk.trace(model, X), table(model, TIMES)
    removed = np.array([5, 4])
    again = corrected(units, times, removed, 0.4)
    assert latency_cost(units, again)(removed) == pytest.approx(0.4 * 15)
    assert again.whole == 15.0


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.5])
def test_a_plan_keeps_to_the_milliseconds(keep: float) -> None:
    model = network()
    scores, times = scored(model), table(model, TIMES)
    plan = scores.plan(keep_latency=keep, latency=times)
    assert plan.result["latency_before_ms"] == 15
    assert plan.result["latency_after_ms"] <= keep * 15
    cost = latency_cost(scores.units, times)
    removed = np.array([len(g.removed) for g in plan.groups])
    for g in np.flatnonzero(removed):  # giving any unit back would exceed it
        back = removed.copy()
        back[g] -= 1
        assert cost(back) > keep * 15
    assert fk.apply(model, plan)(X).shape == (12, 3)


def test_plans_are_looked_at_until_they_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine where every cut takes 1.2 times what the table says."""
    model, times = network(), table(network(), TIMES)
    scores = scored(model)

    def measured(models: list[nn.Module], *_: object) -> list[float]:
        stays = [models[1].get_submodule(path).weight.shape[0] for path in "02"]
        cost = latency_cost(scores.units, times)(np.array([10, 8]) - np.array(stays))
        return [30.0, 30.0 * 1.2 * cost / 15]

    monkeypatch.setattr(fk.timing.report, "latencies_ms", measured)
    plan = fk.plan_latency(scores, model, X, 0.8, latency=times, max_remove=0.9)
    (predicted, seen), *_, last = plan.result["latency_looks"]
    assert seen == pytest.approx(1.2 * predicted)
    assert last[1] == pytest.approx(last[0]), "the scaled table is right"
    assert len(plan.result["latency_looks"]) == 2
    assert plan.result["latency_after_ms"] == pytest.approx(15 * last[0])
    assert last[0] <= 0.8
    assert plan.request["max_remove"] == 0.9
    only = fk.plan_latency(scores, model, X, 0.8, latency=times, looks=1)
    assert len(only.result["latency_looks"]) == 1
    with pytest.raises(fk.InputError, match="looks=0 is too small"):
        fk.plan_latency(scores, model, X, 0.8, latency=times, looks=0)


def test_all_of_the_time_may_be_kept() -> None:
    model = network()
    plan = scored(model).plan(keep_latency=1.0, latency=table(model, TIMES, whole=10.0))
    assert plan.result["units_removed"] == 0
    assert plan.result["latency_after_ms"] == plan.result["latency_before_ms"] == 10.0


def test_another_budget_is_told_its_latency() -> None:
    model = network()
    plan = scored(model).plan(keep_params=0.5, latency=table(model, TIMES))
    assert plan.result["params_after"] <= 0.5 * plan.result["params_before"]
    assert plan.result["latency_after_ms"] < plan.result["latency_before_ms"]


@pytest.mark.parametrize("round_to", [1, 4])
def test_widths_are_those_of_plans(round_to: int) -> None:
    units = fk.trace(nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 3)), X)
    cuts = list(widths(units, [0.5, 0.25], round_to, seed=0))
    assert len(cuts) == 2 + 3
    for removed in cuts:
        stays = [group.units - len(gone) for group, gone in zip(units.groups, removed, strict=True)]
        assert all(s == g.units or s % round_to == 0 for s, g in zip(stays, units.groups, strict=True))
        build(units, removed)
    together = [len(gone) / group.units for gone, group in zip(cuts[0], units.groups, strict=True)]
    assert together == pytest.approx([0.5, 0.5], abs=0.2)
    for g in range(2):  # each group takes every share once, the whole among them
        assert sum(len(removed[g]) == 0 for removed in cuts[2:]) == 1
    again = [gone.tolist() for gone in next(iter(widths(units, [0.5, 0.25], round_to, seed=0)))]
    assert again == [gone.tolist() for gone in cuts[0]], "the same seed, the same cuts"


def test_a_table_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    units, file = fk.trace(model, X), tmp_path / "latency.json"
    before = {name: p.clone() for name, p in model.named_parameters()}
    measured = fk.latency_table(model, units, X, cache=file, shares=(1.0, 0.5))
    assert sorted(measured.layers) == ["0", "2", "4"]
    assert measured.whole > 0
    assert measured.error >= 0
    assert all(ms > 0 for terms in measured.layers.values() for ms in terms.values())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    monkeypatch.setattr(fk.timing.report, "layers_ms", lambda *_: pytest.fail("measured again"))
    again = fk.latency_table(model, units, X, cache=file, shares=(1.0, 0.5))
    assert vars(again) == vars(measured)
    for other in ({"example_inputs": X[:3]}, {"shares": (1.0, 0.4)}, {"round_to": 2}):
        options = {"example_inputs": X, "shares": (1.0, 0.5), **other}
        with pytest.raises(pytest.fail.Exception):  # the cache does not apply
            fk.latency_table(model, units, options.pop("example_inputs"), cache=file, **options)


def test_layers_are_those_that_call_no_others() -> None:
    """What a module with parameters of its own calls is told apart from what it does itself."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(6)), network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x * self.scale)

    model = Outer()
    timed = layers_ms(model, model, X)
    assert sorted(timed.layers) == ["inner.0", "inner.2", "inner.4"]
    assert sum(timed.layers.values()) <= timed.ms * (1 + 1e-9)
    assert timed.outputs["inner.0"] == (120, (12, 10))
    assert sorted(layers_ms(model, model, X, ["inner"]).layers) == ["inner"]
    assert model.training, "modes are put back"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_prune_to_a_share_of_the_time() -> None:
    model = network()
    data = [(X, torch.arange(12) % 3)]
    times = table(model, TIMES)
    small, report = fk.prune(model, data, nn.CrossEntropyLoss(), keep_latency=0.9, latency=times, progress=False)
    assert report.before["latency_predicted_ms"] == 15.0
    assert report.after["latency_predicted_ms"] <= 0.9 * 15.0
    assert {"latency_ms", "latency_predicted_ms"} <= report.after.keys()
    assert "latency, predicted" in report.table()
    assert small(X).shape == (12, 3)


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
    with pytest.raises(fk.InputError, match="does not have"):
        scores.plan(keep_latency=0.5, latency=replace(times, layers={"0": {"weight:7": 1.0}}))
    with pytest.raises(fk.InputError, match="are not shares of a group"):
        fk.latency_table(model, scores.units, X, shares=(1.0, 1.5))
    save_latency(times, tmp_path / "table.json")
    assert vars(load_latency(tmp_path / "table.json")) == vars(times)
    text = (tmp_path / "table.json").read_text()
    (tmp_path / "table.json").write_text(text.replace('"whole"', '"hole"'))
    with pytest.raises(fk.ArtefactError, match="'whole' is missing"):
        load_latency(tmp_path / "table.json")
