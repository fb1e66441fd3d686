"""Groups that move together: exact plans by hand, and budgets against every combination of steps."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from fairkern.allocate import allocate
from fairkern.allocate.bundles import Bundle, Levels, bundle, joined
from fairkern.allocate.options import Limits
from fairkern.allocate.prices import together
from fairkern.errors import BudgetError, InputError
from fairkern.plans.serving import Tie
from fairkern.types import (
    AxisGroup,
    Blocks,
    Branch,
    BranchPart,
    ConfigField,
    CostTerm,
    Extent,
    Plan,
    Scores,
    Silence,
    UnitMap,
)
from tests.plans.maps import heard, held, unit_map

Fields = tuple[ConfigField, ...]


def unit(name: str, units: int, kind: str = "neuron", **more: Any) -> AxisGroup:
    return AxisGroup(name, kind, units, (held(f"{name}.weight", 0, units),), heard(units), **more)


def scored(
    signals: list[list[float]],
    config: Fields = (),
    kinds: str = "nnnn",
    sets: dict[int, int] | None = None,
    **more: Any,
) -> Scores:
    """Groups `layers.0`, `layers.1` … of which every unit costs 1."""
    named, sets = {"n": "neuron", "h": "head", "e": "expert"}, sets or {}
    groups = tuple(
        unit(f"layers.{i}", len(s) // sets.get(i, 1), named[kinds[i]], sets=sets.get(i, 1))
        for i, s in enumerate(signals)
    )
    extents = tuple(Extent(g.units, ((i, 1),)) for i, g in enumerate(groups))
    terms = tuple(CostTerm(float(g.sets), (i,)) for i, g in enumerate(groups))
    units = unit_map(*groups, extents=extents, params=terms, flops=terms, config=config)
    arrays = tuple(np.array(s, dtype=float) for s in signals)
    return Scores(units, {"taylor": arrays, "wasserstein": arrays, "against": tuple(-a for a in arrays)}, {}, {})


def counts(plan: Plan) -> list[int]:
    return [g.removed.shape[-1] for g in plan.groups]


def field(size: int, *groups: int, admitted: tuple[int, ...] | None = None, name: str = "width") -> ConfigField:
    return ConfigField(name, size, size, groups, admitted=admitted)


def planned(scores: Scores, **options: Any) -> Plan:
    return allocate(scores, **{"allocation": "global", "removal": "taylor", **options})


def test_tied_groups_lose_as_many_for_the_mean_of_their_needs() -> None:
    """A unit of both costs (1 + 5) / 2, (2 + 6) / 2 …; one of the third 3.5, 3.75 …"""
    scores = scored([[1, 2, 3, 4], [5, 6, 7, 8], [3.5, 3.75, 9, 9]], (field(4, 0, 1), field(4, 2)))
    expected = [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 2], [2, 2, 1], [2, 2, 2], [3, 3, 1], [3, 3, 2]]
    for k, gone in enumerate(expected):
        assert counts(planned(scores, keep_params=(12 - k) / 12, serve="hf")) == gone, k
    plan = planned(scores, keep_params=0.5, serve="hf")
    assert plan.result["tolerance"] == 4.0
    assert plan.result["thresholds"] == [4.0, 4.0, 3.75]
    assert [g.removed.tolist() for g in plan.groups] == [[0, 1], [0, 1], [0, 1]]
    assert plan.request["serve"] == "hf"
    assert plan.result["serves"]["hf"] == "yes"
    free = planned(scores, keep_params=0.5)
    assert (counts(free), free.request["serve"]) == ([3, 1, 2], None)


def test_a_mean_over_units_and_not_over_groups() -> None:
    """Two sets of three units beside one of six: a part is a unit of each set, and two of the other group."""
    scores = scored([[1, 2, 3, 1, 2, 3], [10, 11, 20, 21, 30, 31]], (field(3, 0, 1),), sets={0: 2})
    plan = planned(scores, keep_params=2 / 3, serve="hf")
    assert counts(plan) == [1, 2]
    # two units at 1, and two of which the dearer needs 11
    assert plan.result["tolerance"] == (2 * 1 + 2 * 11) / 4


def test_normalized_and_uniform_and_tolerances_of_bundles() -> None:
    signals: list[list[float]] = [[1, 2, 3, 6], [10, 20, 30, 60]]
    scores = scored(signals, (field(4, 0, 1),))
    assert planned(scores, keep_params=0.5, serve="hf", allocation="normalized").result["tolerance"] == 2 / 3
    assert planned(scores, keep_params=0.5, serve="hf", allocation="uniform").result["tolerance"] == 0.5
    # of the first group the k lowest are the k highest of what protects, of the second none until they have to be
    mixed = Scores(scores.units, {**scores.signals, "guard": (-np.array(signals[0]), np.array(signals[1]))}, {}, {})
    curve = [(1 + 0) / 2, (1 + 0) / 2, (1 + 2 / 3) / 2]
    for tolerance, gone in ((0.49, 0), (0.5, 2), (0.82, 2), (0.84, 3)):
        plan = allocate(mixed, tod=tolerance, removal="taylor", protect="guard", serve="hf")
        assert counts(plan) == [gone, gone]
        assert plan.result["tolerance"] == (curve[gone - 1] if gone else None)


def test_a_tolerance_is_of_the_mean_curve() -> None:
    """Curves of (1, 1/2, …) and (0, 1/2, …): together a half at once, where each alone would need … a half."""
    scores = scored([[1, 2, 3, 4], [1, 2, 3, 4]], (field(4, 0, 1),))
    guard = (np.array([4.0, 1.0, 2.0, 3.0]), np.array([1.0, 4.0, 2.0, 3.0]))
    scores = Scores(scores.units, {**scores.signals, "guard": guard}, {}, {})
    # first: {0}&{0} 1, {0,1}&{0,3} 1/2, {0,1,2}&{0,3,2} 2/3; second: 0, {0,1}&{1,3} 1/2, 2/3
    for tolerance, gone in ((0.49, 0), (0.5, 2), (0.66, 2), (0.67, 3)):
        plan = allocate(scores, tod=tolerance, removal="taylor", protect="guard", serve="hf", allocation="tod")
        assert counts(plan) == [gone, gone]


def test_numbers_of_heads_that_are_admitted() -> None:
    """Of 12 only 8, 6 and 3 may be left: 4, 6 and 9 go."""
    heads = [[float(k) for k in range(1, 13)]] * 2
    scores = scored(heads, (field(12, 0, 1, admitted=(3, 6, 8, 12)),), kinds="hh")
    for keep, gone in ((0.99, 4), (8 / 12, 4), (0.6, 6), (0.5, 6), (0.49, 9), (0.25, 9)):
        plan = planned(scores, keep_params=keep, serve="hf")
        assert counts(plan) == [gone, gone], keep
        assert plan.result["tolerance"] == gone
    with pytest.raises(BudgetError, match=r"keep_params=0.2 cannot be reached.* serve='hf' reachable shares: "
                       r"0\.25, 0\.5, 0\.666667, 1\.0; ask for one of those or loosen the limits"):  # fmt: skip
        planned(scores, keep_params=0.2, serve="hf")
    assert counts(planned(scores, keep_params=0.666667, serve="hf")) == [4, 4]
    assert counts(planned(scores, keep_params=11 / 12)) == [1, 1]


def test_only_few_shares_are_listed() -> None:
    def said(units: int) -> str:
        with pytest.raises(BudgetError) as caught:
            planned(scored([[float(k) for k in range(units)]]), keep_params=0.01)
        return str(caught.value)

    assert "reachable shares: 0.076924, 0.153847" in said(13)
    assert "it can be anything in [0.071429, 1.0]; ask for a value in that range or loosen the limits" in said(14)
    assert "serve" not in said(13)


def test_what_is_ignored_or_has_no_score_holds_its_bundle() -> None:
    scores = scored([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]], (field(4, 0, 1), field(4, 2)))
    plan = planned(scores, keep_params=0.9, serve="hf", ignore=["layers.1"])
    assert counts(plan) == [0, 0, 2]
    why = "neurons of layers.0 stay: it moves with layers.1, which is ignored (serve='hf')"
    assert plan.result["left_alone"] == [why]
    three = scored([[1, 2, 3, 4]] * 4, (field(4, 0, 1, 2), field(4, 3)))
    plan = planned(three, keep_params=0.9, serve="hf", ignore=["layers.1", "layers.2"])
    assert plan.result["left_alone"] == [why]
    with pytest.raises(InputError, match=r"serve='hf' leaves no group to cut: layers\.0: it moves with layers\.1"):
        planned(scores, keep_params=0.9, serve="hf", ignore=["layers.1", "layers.2"])
    with pytest.raises(InputError, match="no field of the configuration counts its neurons"):
        planned(scored([[1, 2], [3, 4]], (field(2, 1),)), keep_params=0.9, serve="hf", ignore=["layers.1"])


def test_limits_that_leave_a_bundle_no_step_are_said() -> None:
    scores = scored([[1, 2, 3, 4], [5, 6, 7, 8]], (field(4, 0, admitted=(1, 4)), field(4, 1)), kinds="hn")
    plan = planned(scores, keep_params=0.8, serve="hf", max_remove=0.5)
    assert counts(plan) == [0, 2]
    why = "heads of layers.0 stay: limits and server allow no smaller number of them (serve='hf')"
    assert plan.result["left_alone"] == [why]
    assert counts(planned(scores, keep_params=0.6, serve="hf", max_remove=0.75)) == [3, 1]


def test_uniform_is_strictly_equal() -> None:
    """Groups of four lose the same number, whatever it costs; heads and groups of another size go by their own."""
    scores = scored([[1.0] * 4, [1.0] * 4, [1.0] * 8, [1.0] * 4], kinds="nnnh")
    for k in range(1, 15):
        plan = planned(scores, keep_params=(20 - k) / 20, allocation="uniform")
        first, second, third, heads = counts(plan)
        assert first == second
        assert 2 * first + third + heads >= k
        for step in ((2, first), (1, third), (1, heads)):  # one of these given back exceeds the budget
            assert not step[1] or 2 * first + third + heads - step[0] < k
    assert counts(planned(scores, keep_params=0.5, allocation="uniform")) == [2, 2, 4, 2]
    ignored = planned(scores, keep_params=0.7, allocation="uniform", ignore=["layers.1"])
    assert counts(ignored)[1] == 0
    assert counts(ignored)[0]
    assert "left_alone" not in ignored.result


def test_uniform_within_what_a_server_ties() -> None:
    """Two fields of two layers each: all four are of one kind and size."""
    scores = scored([[1.0] * 8] * 4, (field(8, 0, 1, admitted=(2, 4, 6, 8)), field(8, 2, 3, name="other")))
    for keep, gone in ((0.99, 2), (0.75, 2), (0.7, 4), (0.3, 6)):
        assert counts(planned(scores, keep_params=keep, serve="hf", allocation="uniform")) == [gone] * 4


def test_units_of_a_part_decide_with_the_positions_of_a_unit_who_is_equal() -> None:
    def one(name: str, units: int, width: int, kind: str = "neuron") -> AxisGroup:
        axis = held(f"{name}.weight", 0, units * width)
        return AxisGroup(
            name, kind, units, (type(axis)(axis.axis, units * width, axis.positions.reshape(units, width)),), ()
        )

    groups = (one("a", 4, 1), one("b", 4, 2), one("c", 4, 1), one("d", 4, 1, "head"), one("e", 5, 1), one("f", 4, 2))
    units = unit_map(*groups)
    found = joined(units, [], range(6), equal=True)
    assert [t.groups for t in found] == [(0, 2), (1, 5), (3,), (4,)]
    assert [t.groups for t in joined(units, [], range(6), equal=False)] == [(g,) for g in range(6)]
    assert [t.groups for t in joined(units, [Tie((1, 2), 4)], [0, 1, 2, 3, 4, 5], equal=True)] == [
        (0, 1, 2, 5),
        (3,),
        (4,),
    ]
    assert [t.groups for t in joined(units, [], [0, 4], equal=True)] == [(0,), (4,)]
    assert [t.groups for t in joined(units, [Tie((0, 3), 4)], range(4), equal=True)] == [(0, 2, 3), (1,)]
    assert [t.groups for t in joined(units, [Tie((1, 3), 4)], range(6), equal=True)] == [(0, 2), (1, 3, 5), (4,)]


def test_merged_ties_keep_to_the_parts_of_all() -> None:
    groups = (unit("a", 8), unit("b", 8), unit("c", 8), unit("d", 8))
    ties = [Tie((0, 1), 4, np.array([1, 3])), Tie((2, 3), 8, np.array([2, 4, 5]))]
    (tie,) = joined(unit_map(*groups), ties, range(4), equal=True)
    assert (tie.groups, tie.grain) == ((0, 1, 2, 3), 4)
    assert tie.parts is not None
    assert tie.parts.tolist() == [1]


def limits(most: list[int], first: list[int], step: list[int]) -> Limits:
    return Limits(*(np.array(a, dtype=np.int64) for a in (most, first, step)))


def test_what_of_a_tie_the_limits_of_all_its_groups_allow() -> None:
    units = unit_map(unit("a", 12), unit("b", 24), unit("c", 12))
    limit = limits([11, 17, 9], [3, 4, 1], [3, 4, 1])
    made = bundle(units, Tie((0, 1), 12), limit)
    assert (made.groups, made.units, made.parts.tolist()) == ((0, 1), (1, 2), [6])
    assert bundle(units, Tie((0, 1), 12, np.array([2, 6, 8])), limit).parts.tolist() == [6]
    for most, parts in (([11, 17], [3, 6]), ([11, 18], [3, 6, 9]), ([8, 23], [3, 6]), ([11, 11], [3])):
        made = bundle(units, Tie((0, 1), 12), limits([*most, 0], [3, 2, 1], [3, 2, 1]))
        assert made.parts.tolist() == parts
    assert bundle(units, Tie((0,), 12), limit).parts.tolist() == [3, 6, 9]
    assert bundle(units, Tie((1,), 12), limit).parts.tolist() == [2, 4, 6, 8]
    assert bundle(units, Tie((1,), 6), limit).parts.tolist() == [1, 2, 3, 4]
    assert bundle(units, Tie((2,), 12), limit).parts.tolist() == list(range(1, 10))
    assert bundle(units, Tie((2,), 12, np.array([], dtype=np.int64)), limit).parts.tolist() == []
    assert bundle(units, Tie((2,), 12), limits([0, 0, 0], [1, 1, 1], [1, 1, 1])).parts.tolist() == []


def test_levels_are_counted_per_bundle() -> None:
    made = (
        Bundle((3, 0), (2, 1), np.array([1, 4])),
        Bundle((1,), (1,), np.array([], dtype=np.int64)),
        Bundle((4,), (3,), np.array([2])),
    )
    levels = Levels.of(made, 6)
    assert levels.bundle.tolist() == [0, 1, -1, 0, 2, -1]
    for steps, removed in (([0, 0, 0], [0] * 6), ([1, 0, 1], [1, 0, 0, 2, 6, 0]), ([2, 0, 0], [4, 0, 0, 8, 0, 0])):
        assert levels.removed(np.array(steps)).tolist() == removed
    assert Levels.of((), 2).removed(np.zeros(0, dtype=np.int64)).tolist() == [0, 0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scores, list[list[int]], list[list[int]], float]:
    """Scores, bundles, the parts of each that may go, and a budget."""
    sizes = draw(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=2, max_size=4))
    labels = draw(st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes)))
    together = [[g for g, label in enumerate(labels) if label == k] for k in (0, 1)]
    fields, bundles, parts = [], [], []
    for k, members in enumerate(together):
        if not members:
            continue
        grain = math.gcd(*(sizes[g] for g in members))
        admitted = draw(st.sets(st.integers(1, grain), min_size=1)) if draw(st.booleans()) else None
        values = None if admitted is None else tuple(sorted(admitted))
        fields.append(field(grain, *members, admitted=values, name=f"field{k}"))
        bundles.append(members)
        parts.append([0] + [p for p in range(1, grain) if values is None or grain - p in values])
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    signals = [generator.gamma(2.0, size=n).round(draw(st.sampled_from([0, 6]))).tolist() for n in sizes]
    return scored(signals, tuple(fields)), bundles, parts, draw(st.sampled_from([0.35, 0.5, 0.6, 0.75, 0.9]))


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(["tod", "uniform", "global", "normalized"]))
def test_a_budget_is_met_to_one_step_of_a_bundle(
    case: tuple[Scores, list[list[int]], list[list[int]], float], allocation: str
) -> None:
    scores, bundles, parts, keep = case
    units = scores.units
    sizes = [g.units for g in units.groups]
    grains = [math.gcd(*(sizes[g] for g in members)) for members in bundles]
    if not any(len(p) > 1 for p in parts):
        return

    def share(taken: list[int] | tuple[int, ...]) -> float:
        left = sum(
            sizes[g] * (n - p) / n for members, n, p in zip(bundles, grains, taken, strict=True) for g in members
        )
        return left / sum(sizes)

    may = sorted({share(taken) for taken in itertools.product(*parts)})
    options = {"keep_params": keep, "serve": "hf", "allocation": allocation, "removal": "taylor", "protect": "against"}
    if may[0] > keep:
        with pytest.raises(BudgetError, match="cannot be reached"):
            allocate(scores, **options)
        return
    if allocation == "uniform":  # may tie more, which is tested by itself
        marks = [{sizes[g] for g in members} for members in bundles]
        if len(marks) == 2 and marks[0] & marks[1]:
            return
    plan = allocate(scores, **options)
    found = counts(plan)
    assert plan.result["serves"]["hf"] == "yes"
    taken = []
    for members, n, allowed in zip(bundles, grains, parts, strict=True):
        (part,) = {found[g] * n / sizes[g] for g in members}
        assert part in allowed
        taken.append(int(part))
    assert share(taken) <= keep
    for b, part in enumerate(taken):
        if part:
            fewer = [*taken]
            fewer[b] = parts[b][parts[b].index(part) - 1]
            assert share(fewer) > keep


def test_units_that_are_dropped_are_counted() -> None:
    signals: list[list[float]] = [[3, 1, 2, 4], [4, 3, 2, 1], [1, 2, 3, 4, 5, 6]]
    scores = scored(signals, kinds="een")
    plan = planned(scores, drop={"expert": 2})
    assert [g.removed.tolist() for g in plan.groups] == [[1, 2], [2, 3], []]
    assert plan.request["drop"] == {"expert": 2}
    assert "keep_params" not in plan.request
    assert (plan.result["tolerance"], plan.result["thresholds"]) == (None, [2.0, 2.0, None])
    both = planned(scores, drop={"expert": 1, "neuron": 3}, allocation="uniform")
    assert [g.removed.tolist() for g in both.groups] == [[1], [3], [0, 1, 2]]
    assert counts(planned(scores, drop={"expert": 3}, ignore=["layers.0"])) == [0, 3, 0]
    assert counts(allocate(scores, drop={"expert": 1})) == [1, 1, 0]


@pytest.mark.parametrize("drop", [{"expert": np.int64(2)}, {"expert": 2}])
def test_dropped_numbers_of_any_library(drop: dict[str, int]) -> None:
    plan = planned(scored([[3, 1, 2, 4]], kinds="e"), drop=drop)
    assert type(plan.request["drop"]["expert"]) is int


@pytest.mark.parametrize(
    ("drop", "options", "error", "message"),
    [
        (
            {"expert": 4},
            {},
            BudgetError,
            "4 of the 4 experts of layers.0 cannot go: with these limits it can be 3, 2, 1",
        ),
        ({"expert": 9}, {}, BudgetError, "9 of the 4 experts of layers.0 cannot go"),
        ({"expert": 3}, {"min_keep": 2}, BudgetError, "it can be 2, 1"),
        ({"expert": 3}, {"max_remove": 0.5}, BudgetError, "it can be 2, 1"),
        ({"expert": 1}, {"round_to": 2}, BudgetError, "it can be 2"),
        ({"expert": 1}, {"round_to": 8}, BudgetError, "cannot go: no number of them that the limits allow"),
        ({"expert": 1}, {"ignore": ["*"]}, InputError, "leaves no group to cut"),
        ({"expert": 1}, {"ignore": ["layers.0", "layers.1"]}, InputError, "no group of kind 'expert' can be cut"),
        ({"experts": 1}, {}, InputError, "drop names the kind 'experts', which Net does not have; near names: expert"),
        ({"head": 1}, {}, InputError, "drop names the kind 'head'"),
        ({"expert": 0}, {}, InputError, r"drop\['expert'\]=0 is too small; expected a whole number, at least 1"),
        ({"expert": 1.0}, {}, InputError, r"drop\['expert'\]=1.0 is a float"),
        ({"expert": True}, {}, InputError, r"drop\['expert'\]=True is a bool"),
        ({}, {}, InputError, "says of no kind of unit how many go; give for example"),
        ({3: 1}, {}, InputError, "drop is a dict; expected whole numbers by kind of unit"),
        (2, {}, InputError, "drop=2 is a int; expected whole numbers by kind of unit, for example {'expert': 2}"),
        ({"expert": 1}, {"keep_params": 0.5}, InputError, "got keep_params and drop"),
    ],
)
def test_what_cannot_be_dropped(drop: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    scores = scored([[3, 1, 2, 4], [4, 3, 2, 1], [1, 2, 3, 4, 5, 6]], kinds="een")
    with pytest.raises(error, match=message):
        planned(scores, drop=drop, **options)


def test_what_is_tied_goes_along_or_forbids_it() -> None:
    config = (field(4, 0, 2, admitted=(1, 2, 4)), field(4, 1))
    scores = scored([[3, 1, 2, 4], [4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8]], config, kinds="een")
    assert counts(planned(scores, drop={"expert": 2}, serve="hf")) == [2, 2, 4]
    assert counts(planned(scores, drop={"expert": 2, "neuron": 4}, serve="hf")) == [2, 2, 4]
    with pytest.raises(BudgetError, match=r"1 of the 4 experts of layers\.0 cannot go: .* it can be 3, 2$"):
        planned(scores, drop={"expert": 1}, serve="hf")
    with pytest.raises(BudgetError, match=r"6 of the 8 neurons of layers\.2 would go, and others of those that"):
        planned(scores, drop={"expert": 2, "neuron": 6}, serve="hf")
    with pytest.raises(BudgetError, match=r"layers\.0 cannot go: it moves with layers\.2, which is ignored"):
        planned(scores, drop={"expert": 2}, serve="hf", ignore=["layers.2"])


def test_divisors_by_kind() -> None:
    scores = scored([[1.0] * 12, [1.0] * 12], kinds="nh")
    options: dict[str, Any] = {"removal": "taylor", "allocation": "uniform"}
    for round_to, expected in (
        ({"neuron": 4}, ({0, 4, 8}, set(range(12)))),
        ({"neuron": 4, "head": 3}, ({0, 4, 8}, {0, 3, 6, 9})),
        ({"head": 12}, (set(range(12)), {0})),
        (3, ({0, 3, 6, 9}, {0, 3, 6, 9})),
    ):
        found: tuple[set[int], set[int]] = (set(), set())
        for k in range(25):
            try:
                plan = allocate(scores, keep_params=max(1 - k / 24, 0.01), round_to=round_to, **options)
            except BudgetError:
                continue
            for seen, count in zip(found, counts(plan), strict=True):
                seen.add(count)
        for seen, may in zip(found, expected, strict=True):
            assert seen <= may, round_to
            assert len(seen) >= min(3, len(may)), round_to
        assert plan.request["round_to"] == round_to


@pytest.mark.parametrize(
    ("round_to", "message"),
    [
        ({"neurons": 4}, "round_to names the kind 'neurons', which Net does not have; near names: neuron"),
        ({"expert": 4}, "round_to names the kind 'expert'"),
        ({"neuron": 0}, r"round_to\['neuron'\]=0 is too small"),
        ({"neuron": 2.0}, r"round_to\['neuron'\]=2.0 is a float"),
        ({"neuron": None}, r"round_to\['neuron'\] is None"),
        ({4: 4}, "round_to is a dict; expected whole numbers by kind of unit"),
        ([4], r"round_to=\[4\] is a list"),
    ],
)
def test_divisors_that_make_no_sense(round_to: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(scored([[1.0] * 4, [2.0] * 4], kinds="nh"), keep_params=0.5, round_to=round_to)


def test_blocks_of_a_type_are_filled_by_what_stays() -> None:
    """Of 96 neurons, each read in one place, 64 or 32 fill blocks of 32."""
    scores = scored([[float(k) for k in range(96)]], (field(96, 0),))
    (group,) = scores.units.groups
    read = replace(group, axes=(*group.axes, held("down.weight", 1, 96, Silence.ZERO)))
    scores = replace(scores, units=replace(scores.units, groups=(read,)))
    for serve, keep, left in (
        ("gguf", 0.9, 86),
        ("gguf:q8_0", 0.9, 64),
        ("gguf:q8_0", 0.6, 32),
        ("gguf:f16", 0.9, 86),
    ):
        assert counts(planned(scores, keep_params=keep, serve=serve)) == [96 - left]
    with pytest.raises(BudgetError, match=r"reachable shares: 0\.333334, 0\.666667, 1\.0"):
        planned(scores, keep_params=0.3, serve="gguf:q8_0")
    with pytest.raises(
        InputError, match=r"leaves no group to cut: .* no smaller number of its units fills blocks of 256"
    ):
        planned(scores, keep_params=0.9, serve="gguf:q4_k")


def test_the_same_units_go_of_groups_that_are_one() -> None:
    """Layers of two branches: what both have decides, and which of them costs more does not."""
    found = together({0: np.array([1.0, 5.0]), 1: np.array([3.0, 0.0]), 2: np.array([7.0])}, [(0, 1), (2, 3)])
    assert {g: values.tolist() for g, values in found.items()} == {0: [4.0, 5.0], 1: [4.0, 5.0], 2: [7.0]}
    assert together({0: np.array([1.0])}, [])[0].tolist() == [1.0]


def deep() -> UnitMap:
    """Three layers of attention (10 parameters) and feed-forward (30), each of which goes whole; four neurons."""
    names = ("layers.*.attn", "layers.*.mlp")
    whole = tuple(AxisGroup(name, "branch", 3, (held(name, 0, 3, Silence.NOTHING_ADDED),), heard(3)) for name in names)
    extents = (
        *(Extent(1, ((g, 1),), unit=k) for g in range(2) for k in range(3)),
        Extent(4, ((2, 1),)),
    )
    terms = (*(CostTerm(10.0 if e < 3 else 30.0, (e,)) for e in range(6)), CostTerm(5.0, (6,)))
    branches = {name: tuple(Branch((BranchPart(f"layers.{k}.{name[9:]}"),), -1, 4) for k in range(3)) for name in names}
    own = tuple(tuple((name, k) for name in names) for k in range(3))
    blocks = {"layers": Blocks(("0", "1", "2"), own, ("", "", ""), counts=(("", "config.num_hidden_layers"),))}
    return unit_map(
        *whole,
        unit("inner", 4),
        extents=extents,
        params=terms,
        flops=terms,
        config=(field(4, 2),),
        branches=branches,
        blocks=blocks,
    )


def test_layers_are_priced_and_go_as_one() -> None:
    """Attention alone would lose its first, feed-forward its last; of both together layer 1 has least."""
    units = deep()
    signals = (np.array([0.0, 2.0, 9.0]), np.array([9.0, 2.0, 0.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    scores = Scores(units, {"taylor": signals, "wasserstein": signals}, {}, {})
    plan = planned(scores, keep_params=100 / 140, serve="hf")
    assert [g.removed.tolist() for g in plan.groups] == [[1], [1], []]
    assert plan.result["tolerance"] == 4 / 40  # below 1 / 5 for a neuron
    assert plan.result["serves"]["hf"] == "yes"
    plan = planned(scores, keep_params=60 / 140, serve="hf", max_remove=0.9)
    assert [g.removed.tolist() for g in plan.groups][:2] == [[0, 1], [0, 1]]
    assert [g.removed.tolist() for g in planned(scores, drop={"branch": 1}, serve="hf").groups] == [[1], [1], []]
    free = planned(scores, drop={"branch": 1})
    assert [g.removed.tolist() for g in free.groups] == [[0], [2], []]
    assert free.result["serves"]["hf"] == (
        "every layer is built with all its branches, and of one only layers.0.attn goes"
    )
    tolerant = allocate(scores, keep_params=100 / 140, serve="hf", allocation="tod", removal="taylor", protect="taylor")
    assert tolerant.groups[0].removed.tolist() == tolerant.groups[1].removed.tolist()
