"""Plans against scans over every threshold and every single step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fairkern.allocate import allocate
from fairkern.plans.cost import Cost, per_unit
from fairkern.types import AxisGroup, Plan, Scores, UnitMap
from tests.allocate.oracles import tod_by_sets
from tests.synthetic import Sketch, chain, concat, random_scores, residual

SKETCHES = {"chain": chain, "concat": concat, "residual": residual}
ALLOCATIONS = ("tod", "uniform", "global", "normalized", "priced")


def removed_counts(units: UnitMap, plan: Plan) -> np.ndarray:
    counts = np.zeros(len(units.groups), dtype=np.int64)
    for g, group in zip(units.prunable, plan.groups, strict=True):
        assert group.name == units.groups[g].name
        counts[g] = len(group.removed)
    return counts


def allowed_counts(n: int, per_unit: int, round_to: int, max_remove: float, min_keep: int) -> list[int]:
    """Removed counts that the options allow: nothing, or so that the rest is a multiple."""
    most = min(int(max_remove * n + 1e-9), n - min_keep)
    return [0] + [k for k in range(1, most + 1) if (n - k) * per_unit % round_to == 0]


def bundles(sketch: Sketch, uniform: bool) -> list[list[int]]:
    """Groups that lose as many: each by itself, or all of one width whose units are as wide."""
    found: dict[object, list[int]] = {}
    for g, drawn in enumerate(sketch.groups):
        found.setdefault((drawn.units, drawn.per_unit) if uniform else g, []).append(g)
    return list(found.values())


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("tod", [0.0, 0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_a_tolerance_removes_what_the_definition_says(name: str, tod: float, ties: bool) -> None:
    units = SKETCHES[name]().build()
    scores = random_scores(units, seed=5, ties=ties)
    plan = allocate(scores, tod=tod, max_remove=0.8)
    for g, group in zip(units.prunable, plan.groups, strict=True):
        u, r = (scores.signals[s][g].tolist() for s in ("wasserstein", "taylor"))
        curve = tod_by_sets(u, r)
        most = int(0.8 * group.units + 1e-9)
        count = max((k for k in range(1, most + 1) if curve[k - 1] <= tod), default=0)
        lowest = sorted(range(group.units), key=lambda i: (u[i], i))[:count]
        assert group.removed.tolist() == sorted(lowest)
    assert plan.request["tod"] == tod


@st.composite
def cases(draw: st.DrawFn) -> tuple[Sketch, Scores, dict]:
    widths = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 9, 14, 33]), min_size=1, max_size=5))
    sketch = draw(st.sampled_from([chain, concat]))(widths)
    scores = random_scores(sketch.build(), draw(st.integers(0, 99)), draw(st.booleans()))
    options = {
        draw(st.sampled_from(["keep_params", "keep_flops"])): draw(st.sampled_from([0.35, 0.5, 0.71, 0.9, 1.0])),
        "allocation": draw(st.sampled_from(ALLOCATIONS)),
        "round_to": draw(st.sampled_from([1, 2, 4, 5])),
        "max_remove": draw(st.sampled_from([0.5, 0.9, 0.99])),
        "min_keep": draw(st.integers(1, 3)),
    }
    return sketch, scores, options


@settings(max_examples=250, deadline=None)
@given(cases())
def test_a_budget_is_met_and_no_single_step_fits_any_more(case: tuple[Sketch, Scores, dict]) -> None:
    sketch, scores, options = case
    units = scores.units
    measure = next(iter(options))
    keep = options[measure]
    cost = Cost(units, units.params if measure == "keep_params" else units.flops)
    whole = cost(np.zeros(len(units.groups), np.int64))
    allowed = [
        allowed_counts(g.units, s.per_unit, options["round_to"], options["max_remove"], options["min_keep"])
        for g, s in zip(units.groups, sketch.groups, strict=True)
    ]
    together = bundles(sketch, uniform=options["allocation"] == "uniform")
    least = cost(np.array([counts[-1] for counts in allowed])) / whole
    if least > keep:
        with pytest.raises(ValueError, match="cannot be reached"):
            allocate(scores, **options)
        return
    plan = allocate(scores, **options)
    counts = removed_counts(units, plan)
    assert cost(counts) / whole <= keep
    for members in together:
        (count,) = {counts[g] for g in members}
        may = allowed[members[0]]
        assert count in may
        if count:
            fewer = counts.copy()
            fewer[members] = may[may.index(count) - 1]
            assert cost(fewer) / whole > keep
    for g, group in enumerate(plan.groups):
        order = np.argsort(scores.signals["wasserstein"][g], kind="stable")
        assert group.removed.tolist() == sorted(order[: counts[g]].tolist())
    if keep == 1.0:
        assert not counts.any()
        assert plan.result["tolerance"] is None


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_the_tolerance_is_the_first_that_is_feasible(name: str, allocation: str, keep: float) -> None:
    """By scanning every threshold in order; and no group is cut further than that threshold allows."""
    units = SKETCHES[name]().build()
    scores = random_scores(units, seed=11)
    cost = Cost(units, units.params)
    whole = cost(np.zeros(len(units.groups), np.int64))

    costs = per_unit(units)[0]

    def needs(g: int) -> list[float]:
        u, r = (scores.signals[s][g].tolist() for s in ("wasserstein", "taylor"))
        most = int(0.99 * len(u))
        if allocation == "tod":
            curve = tod_by_sets(u, r)
            return [min(curve[k - 1 : most]) for k in range(1, most + 1)]
        if allocation == "uniform":
            return [k / len(u) for k in range(1, most + 1)]
        if allocation == "priced":
            return [v / costs[g] for v in sorted(u)[:most]]
        return [v / (sum(u) / len(u) if allocation == "normalized" else 1.0) for v in sorted(u)[:most]]

    table = {g: needs(g) for g in units.prunable}

    def at(alpha: float) -> np.ndarray:
        return np.array([sum(need <= alpha + 1e-12 for need in table.get(g, [])) for g in range(len(units.groups))])

    thresholds = sorted({need for need in table.values() for need in need})
    solved = next(alpha for alpha in thresholds if cost(at(alpha)) / whole <= keep)
    plan = allocate(scores, keep_params=keep, allocation=allocation)
    assert plan.result["tolerance"] == pytest.approx(solved, abs=1e-12)
    assert (removed_counts(units, plan) <= at(solved)).all()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_smaller_budget_never_keeps_more(allocation: str) -> None:
    scores = random_scores(residual(24, 4, 16).build(), seed=2)
    kept = [
        allocate(scores, keep_params=keep, allocation=allocation).result["params_after"]
        for keep in np.linspace(0.1, 1.0, 19)
    ]
    assert kept == sorted(kept)


def test_a_larger_tolerance_never_keeps_more() -> None:
    units = concat((20, 30, 10)).build()
    scores = random_scores(units, seed=2)
    counts = [removed_counts(units, allocate(scores, tod=tod)) for tod in np.linspace(0, 1, 41)]
    assert all((low <= high).all() for low, high in itertools.pairwise(counts))


def test_equal_needs_are_cut_by_equal_fractions() -> None:
    """All U and R tie everywhere: one threshold decides all groups, and the budget cuts each about as deep."""
    units = chain((20, 40, 80)).build()
    flat = tuple(np.zeros(g.units) for g in units.groups)
    plan = allocate(Scores(units, {"wasserstein": flat, "taylor": flat}, {}), keep_params=0.5)
    rates = [group.rate for group in plan.groups]
    assert max(rates) - min(rates) < 0.1


def test_the_same_scores_give_the_same_plan() -> None:
    units = residual(32, 4, 20).build()
    state = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002 - the global generator is meant
    plans = [
        allocate(random_scores(units, seed=9, ties=True), keep_flops=0.4, round_to=2, allocation="tod")
        for _ in range(3)
    ]
    for plan in plans[1:]:
        assert plan.result == plans[0].result
        for one, other in zip(plan.axes, plans[0].axes, strict=True):
            assert one.axis == other.axis
            assert one.removed.tolist() == other.removed.tolist()
    assert (np.random.get_state()[1] == state[0]).all()  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), state[1])


def test_signals_are_chosen_by_name() -> None:
    units = chain().build()
    base = random_scores(units)
    swapped = {"l1": base.signals["taylor"], "guard": base.signals["wasserstein"]}
    plan = allocate(Scores(units, swapped, {}), keep_params=0.5, removal="l1", protect="guard")
    mirror = {"wasserstein": base.signals["taylor"], "taylor": base.signals["wasserstein"]}
    expected = allocate(Scores(units, mirror, {}), keep_params=0.5)
    assert [g.removed.tolist() for g in plan.groups] == [g.removed.tolist() for g in expected.groups]
    assert (plan.request["removal"], plan.request["protect"]) == ("l1", "guard")
    # protection has no part in the other allocations, so it need not be there
    allocate(Scores(units, {"l1": base.signals["taylor"]}, {}), keep_params=0.5, removal="l1", allocation="uniform")


def test_scaling_a_group_changes_no_allocation() -> None:
    """ToD and uniform see ranks, normalized sees multiples of the group's mean."""
    base = random_scores(chain((16, 24)).build(), seed=4)
    u = base.signals["wasserstein"]
    scaled = replace(base, signals={**base.signals, "wasserstein": (u[0] * 1024.0, u[1] / 1024.0)})
    for allocation in ("tod", "uniform", "normalized"):
        one, other = (allocate(s, keep_params=0.5, allocation=allocation) for s in (base, scaled))
        assert [g.removed.tolist() for g in one.groups] == [g.removed.tolist() for g in other.groups]


def test_scores_may_be_read_only_and_stay_as_they_were() -> None:
    scores = random_scores(residual().build(), seed=1)
    before = {name: [a.copy() for a in arrays] for name, arrays in scores.signals.items()}
    for arrays in scores.signals.values():
        for array in arrays:
            array.flags.writeable = False
    for allocation in ALLOCATIONS:
        allocate(scores, keep_params=0.6, allocation=allocation)
    for name, arrays in scores.signals.items():
        assert all((a == b).all() for a, b in zip(arrays, before[name], strict=True))


def test_frozen_groups_stay_out() -> None:
    units = residual().build()
    plan = allocate(random_scores(units), tod=1.0)
    assert "frozen" not in [g.name for g in plan.groups]
    assert len(plan.result["thresholds"]) == len(plan.groups) == plan.result["groups"]


def test_groups_of_one_unit_stay_whole() -> None:
    units = chain((1, 1, 4)).build()
    plan = allocate(random_scores(units), tod=1.0)
    assert [len(g.removed) for g in plan.groups] == [0, 0, 3]


def test_what_is_not_said_follows_from_the_scores() -> None:
    """Without a residual signal the paper's allocation; with it one threshold on it, but for a tolerance."""
    base = random_scores(chain((16, 24)).build(), seed=4)
    fitted = replace(base, signals={**base.signals, "residual": base.signals["taylor"]})
    asked = [
        (base, {"keep_params": 0.5}, ("tod", "wasserstein")),
        (fitted, {"keep_params": 0.5}, ("global", "residual")),
        (fitted, {"tod": 0.3}, ("tod", "wasserstein")),
        (fitted, {"keep_flops": 0.5, "allocation": "uniform"}, ("uniform", "residual")),
        (fitted, {"keep_params": 0.5, "allocation": "tod"}, ("tod", "wasserstein")),
        (fitted, {"keep_params": 0.5, "removal": "wasserstein"}, ("tod", "wasserstein")),
    ]
    for scores, options, (allocation, removal) in asked:
        request = allocate(scores, **options).request
        assert (request["allocation"], request["removal"]) == (allocation, removal), options


def test_global_takes_the_lowest_scores_of_all_groups() -> None:
    scores = random_scores(chain((16, 24)).build(), seed=5)
    plan = allocate(scores, keep_params=0.5, allocation="global")
    gone = np.concatenate([s[g.removed] for s, g in zip(scores.signals["wasserstein"], plan.groups, strict=True)])
    stays = np.concatenate(
        [np.delete(s, g.removed) for s, g in zip(scores.signals["wasserstein"], plan.groups, strict=True)]
    )
    assert (gone.max() <= stays).mean() > 0.9  # what is given back under the budget is out of order


def test_functions_and_chance_are_signals() -> None:
    scores = random_scores(chain((16, 24)).build(), seed=5)

    def width(group: AxisGroup) -> np.ndarray:
        return np.arange(group.units)[::-1]

    plan = allocate(scores, keep_params=0.5, removal=width, allocation="uniform")
    assert plan.request["removal"] == "function width"
    for group in plan.groups:
        assert group.removed.tolist() == list(range(group.units - len(group.removed), group.units))
    one, again = (allocate(scores, keep_params=0.5, removal="random", allocation="uniform") for _ in range(2))
    other = allocate(replace(scores, provenance={"seed": 9}), keep_params=0.5, removal="random", allocation="uniform")
    removed = [[g.removed.tolist() for g in p.groups] for p in (one, again, other)]
    assert removed[0] == removed[1] != removed[2]
