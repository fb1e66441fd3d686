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
from fairkern.types import CostTerm, Extent, LatencyCut, LatencyTable, UnitMap
from tests.artefacts.edited import edit_json
from tests.plans.maps import group, unit_map


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
    edit_json(tmp_path / "table.json", lambda content: content.pop("whole"))
    with pytest.raises(fk.ArtefactError, match="'whole' is missing"):
        load_latency(tmp_path / "table.json")


def test_cuts_at_widths_by_hand() -> None:
    """Two groups: what stays is a share to within 8 %, in steps, and nothing where a step would be too much."""
    units = unit_map(group("a", 100), group("b", 40, multiple=8), group("c", 10, frozen="asked"))
    found = [
        [u.units - len(r) for u, r in zip(units.groups, cut, strict=True)] for cut in widths(units, [0.5, 0.9], 1, 3)
    ]
    assert len(found) == 2 + 3
    (half, _, _), (most, _, _) = found[:2]
    assert 46 <= half <= 54
    assert 83 <= most <= 97
    assert all(b in (16, 24, 32, 40) and c == 10 for _, b, c in found)
    shares = [min((0.5, 0.9, 1.0), key=lambda s, a=a: abs(s - a / 100)) for a, _, _ in found[2:]]
    assert sorted(shares) == [0.5, 0.9, 1.0]
    assert found[2 + shares.index(1.0)][0] == 100
    halves = {next(iter(widths(units, [0.5], 1, seed)))[0].size for seed in range(20)}
    assert len(halves) > 3, "widths are odd ones"
    assert max(halves) <= 54
    assert min(halves) >= 46


def test_cuts_are_made_for_shares_between_none_and_all() -> None:
    units = unit_map(group("a", 100))
    assert list(widths(units, [], 1, 0)) == []
    for wrong in (0.0, 1.0, -0.5):
        with pytest.raises(fk.InputError, match="are not shares of a group that stay"):
            list(widths(units, [0.5, wrong], 1, 0))
    with pytest.raises(fk.InputError, match="round_to=0"):
        list(widths(units, [0.5], 0, 0))
    assert [len(r) for (r,) in widths(units, [0.001], 1, 0)][:1] == [99], "one unit stays"
    assert sorted(len(r) for (r,) in list(widths(units, [0.99], 64, 0))) == [0, 0, 0]


def timed(*layers: tuple[str, tuple[int, ...]], **more: object) -> UnitMap:
    """A map of layers with these parameters: their first dimension is a group's, the others stay."""
    groups = [group(name, shape[0]) for name, shape in layers]
    extents, terms, shapes = [], [], {}
    for g, (name, shape) in enumerate(layers):
        first = len(extents)
        extents += [Extent(shape[0], ((g, 1),)), *(Extent(n, ()) for n in shape[1:])]
        shapes[f"{name}.weight"] = shape
        terms.append(CostTerm(1.0, tuple(range(first, first + len(shape)))))
    return unit_map(*groups, extents=tuple(extents), params=tuple(terms), shapes=shapes, **more)


def one_layer(times: dict[str, float], rest: dict[str, float], outputs: dict[str, float] | None = None) -> LatencyTable:
    return LatencyTable({"a": times}, rest, outputs or {}, ("a.weight",), {"a.weight": (10, 4)}, 20.0)


def test_what_milliseconds_follow() -> None:
    units = timed(("a", (10, 4)), flops=(CostTerm(3.0, (0,)), CostTerm(10.0, ())))
    removed = np.array([5])
    for times, rest, outputs, expected in (
        ({"fixed": 8.0}, {}, None, 8.0),
        ({"elements": 8.0}, {}, None, 4.0),
        ({"weight:0": 8.0}, {}, None, 4.0),
        ({"weight:1": 8.0}, {}, None, 8.0),
        ({}, {"fixed": 8.0}, None, 8.0),
        ({}, {"flops": 8.0}, None, 8.0 * 25 / 40),
        ({}, {"outputs": 8.0}, {"a.weight:0": 70.0}, 4.0),
        ({}, {"outputs": 8.0}, {"a.weight:0": 30.0, "a.weight:1": 10.0}, 8.0 * 25 / 40),
        ({}, {"outputs": 8.0}, {}, 8.0),  # nothing is returned that shrinks
    ):
        assert latency_cost(units, one_layer(times, rest, outputs))(removed) == pytest.approx(expected)


@pytest.mark.parametrize("output", ["a.weight:2", "b.weight:0"])
def test_outputs_of_another_map_are_refused(output: str) -> None:
    with pytest.raises(fk.InputError, match=f"names '{output}'"):
        latency_cost(timed(("a", (10, 4))), one_layer({}, {}, {output: 1.0}))


def test_a_dimension_that_two_parameters_share_is_one_feature() -> None:
    """A bias is as long as its weight's first dimension, and so tells nothing new."""
    model = network()
    units = fk.trace(model, X)
    assert latency_cost(units, table(model, {"0": {"weight:0": 3.0}}, rest=0.0))(np.array([5, 0])) == pytest.approx(1.5)
    with pytest.raises(fk.InputError, match="names 'bias:0'"):
        latency_cost(units, table(model, {"0": {"bias:0": 3.0}}))
    with pytest.raises(fk.InputError, match="names 'weight:0'"):  # of the layer before: the same dimension
        latency_cost(units, table(model, {"1": {"weight:0": 3.0}}))


def test_time_does_not_tell_experts_apart() -> None:
    """Where an expert goes its tokens go to another, so a layer of one takes as long as before."""
    extents = (Extent(1, ((0, 1),), unit=0), Extent(6, ((1, 1),)))
    units = unit_map(
        group("experts", 2),
        group("a", 6),
        extents=extents,
        params=(CostTerm(4.0, (1, 0)),),
        shapes={"a.weight": (6, 4)},
    )
    times = LatencyTable({"a": {"elements": 6.0}}, {}, {}, ("a.weight",), {"a.weight": (6, 4)}, 6.0)
    cost = latency_cost(units, times)
    assert [cost(np.array(removed)) for removed in ([0, 0], [1, 0], [2, 2])] == pytest.approx([6.0, 6.0, 4.0])


def seen(
    removed: list[int], ms: float, layer: float | None, outputs: dict[str, tuple[int, tuple[int, ...]]]
) -> LatencyCut:
    return LatencyCut(np.array(removed), ms, {} if layer is None else {"a": layer}, outputs)


def test_outputs_follow_the_first_dimension_that_they_have() -> None:
    units = timed(("a", (10, 4)), ("b", (6, 5)), ("c", (7, 3)), flops=(CostTerm(1.0, (0,)),))
    names = ("a.weight", "b.weight", "c.weight")
    outputs = {"a": (40, (4, 10)), "b": (25, (5, 5)), "c": (12, (3, 4)), "d": (9, (9,))}
    found = fit(units, names, [seen([0, 0, 0], 2.0, None, outputs)], {"k": 1})
    assert found.outputs == {"a.weight:0": 40.0, "b.weight:1": 25.0, "c.weight:1": 12.0}
    assert found.parameters == names
    assert found.key == {"k": 1}
    nothing_shrinks = fit(units, names, [seen([0, 0, 0], 2.0, None, {"a": (9, (9,))})], {})
    assert nothing_shrinks.outputs == {}
    assert nothing_shrinks.whole == 2.0
    assert nothing_shrinks.error < 1e-9


def test_the_model_itself_may_hold_a_parameter() -> None:
    units = unit_map(
        group("", 5), extents=(Extent(5, ((0, 1),)),), params=(CostTerm(1.0, (0,)),), shapes={"scale": (5,)}
    )
    found = fit(units, ("scale",), [seen([0], 2.0, None, {"": (15, (3, 5))})], {})
    assert found.outputs == {"scale:0": 15.0}


def test_a_fit_tells_how_far_it_is_off() -> None:
    """One layer, times that no table makes: 4 ms with everything, 3 ms and 1 ms at one cut."""
    units = timed(("a", (10, 4)))
    cuts = [seen([0], 9.0, 9.0, {}), seen([5], 3.0, 3.0, {}), seen([5], 1.0, 1.0, {})]
    found = fit(units, ("a.weight",), cuts, {})
    ms = latency_cost(units, found)(np.array([5]))
    # least squares of (ms / 3 − 1)² + (ms − 1)²: relative to what was measured
    assert ms == pytest.approx((1 / 3 + 1) / (1 / 9 + 1))
    assert found.error == pytest.approx(max(abs(ms / 3 - 1), abs(ms - 1)))
    assert found.whole == 9.0


def test_what_no_layer_accounts_for_is_the_rest() -> None:
    units = timed(("a", (10, 4)), flops=(CostTerm(1.0, (0,)),))
    cuts = [seen([k], 5.0 + 0.5 * (10 - k), 2.0, {}) for k in range(6)]
    found = fit(units, ("a.weight",), cuts, {})
    assert sum(found.layers["a"].values()) == pytest.approx(2.0)
    assert found.rest == pytest.approx({"fixed": 3.0, "flops": 5.0})
    absent = [seen([k], 5.0, 2.0 if k == 0 else None, {}) for k in range(3)]
    assert fit(units, ("a.weight",), absent, {}).layers == {"a": {}}
