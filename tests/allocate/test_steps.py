"""The one list of steps: its order, the thresholds that it is told by, and what is given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fairkern.allocate import allocate
from fairkern.errors import InputError
from fairkern.types import AxisGroup, CostTerm, Extent, Plan, Scores, UnitMap
from tests.plans.maps import heard


def plan(signals: list[list[float]], weights: list[float], fixed: float = 0.0, sets: int = 1, **options: Any) -> Plan:
    """Of groups whose units cost as much each, beside a cost that stays."""
    sizes = [len(s) // sets for s in signals]
    groups = tuple(AxisGroup(f"g{i}", "channel", n, (), heard(n), sets=sets) for i, n in enumerate(sizes))
    extents = tuple(Extent(g.units, ((i, 1),)) for i, g in enumerate(groups))
    terms = (*(CostTerm(w, (i,)) for i, w in enumerate(weights)), CostTerm(fixed, ()))
    units = UnitMap("Net", groups, (), extents, terms, terms, (), {})
    arrays = tuple(np.array(s) for s in signals)
    scores = Scores(units, {"wasserstein": arrays, "taylor": tuple(-a for a in arrays)}, {}, {})
    return allocate(scores, **{"allocation": "global", "removal": "wasserstein", **options})


def gone(plan: Plan) -> list[list[int]]:
    return [g.removed.tolist() for g in plan.groups]


def test_one_ranking_over_all_groups() -> None:
    found = plan([[4.0, 1.0, 6.0, 8.0], [2.0, 5.0, 3.0, 9.0]], [1.0, 1.0], keep_params=0.5)
    assert gone(found) == [[0, 1], [0, 2]]
    assert found.result["tolerance"] == 4.0
    assert found.result["thresholds"] == [4.0, 3.0]
    assert (found.result["params_before"], found.result["params_after"]) == (8, 4)


def test_what_stays_counts_too() -> None:
    found = plan([[1.0, 2.0, 3.0, 4.0]], [1.0], fixed=4.0, keep_flops=0.75)
    assert gone(found) == [[0, 1]]
    assert found.result["flops_after"] == 6


def test_the_last_steps_are_given_back_where_they_fit() -> None:
    """The step that meets the budget is a large one; smaller ones before it are then too many, the last first."""
    found = plan([[1.0, 2.0, 3.0, 9.0], [4.0, 9.0]], [1.0, 5.0], keep_params=9 / 14)
    assert gone(found) == [[], [0]]
    found = plan([[1.0, 2.0, 3.0, 9.0], [4.0, 9.0]], [1.0, 5.0], keep_params=7 / 14)
    assert gone(found) == [[0, 1], [0]]
    assert found.result["tolerance"] == 4.0
    assert found.result["thresholds"] == [2.0, 4.0]


def test_a_step_that_is_too_large_to_return_does_not_keep_others_from_it() -> None:
    found = plan([[1.0, 3.0, 9.0], [2.0, 9.0], [4.0, 9.0]], [1.0, 4.0, 6.0], keep_params=14 / 23)
    # 1, 4, 1, 6 go: 11 stay; the 1 that went last is returned, the 4 and the 6 are not, then the other 1
    assert gone(found) == [[], [0], [0]]
    assert found.result["params_after"] == 13


def test_many_small_steps_are_returned_together() -> None:
    """Forty units of one group leave 60 of 100; below that a unit of 30 goes too, and most of the forty come back."""
    signals, weights = [[float(k) for k in range(41)], [50.0, 60.0]], [1.0, 29.5]
    assert gone(plan(signals, weights, keep_params=60 / 100)) == [list(range(40)), []]
    for keep in range(31, 60):
        found = plan(signals, weights, keep_params=keep / 100)
        assert gone(found) == [list(range(71 - keep)), [0]]
        assert found.result["params_after"] == keep - 0.5


def test_equal_needs_are_taken_by_fractions_and_then_by_group() -> None:
    """Two of three units and five of six may go, all alike: at a half of the one, at a fifth of the other."""
    counts = [
        [len(g) for g in gone(plan([[1.0] * 3, [1.0] * 6], [1.0, 1.0], keep_params=(9 - k) / 9))] for k in range(8)
    ]
    assert counts == [[0, 0], [0, 1], [0, 2], [1, 2], [1, 3], [1, 4], [2, 4], [2, 5]]


def test_needs_that_differ_by_rounding_are_equal() -> None:
    values = [[1.0 + 1e-12 * k for k in (3, 1, 2)], [1.0 + 1e-12 * k for k in (0, 5, 4)]]
    assert gone(plan(values, [1.0, 1.0], keep_params=4 / 6)) == [[0], [0]]
    drawn = plan(values, [1.0, 1.0], keep_params=4 / 6, removal=lambda group: values[int(group.name[1])])
    assert gone(drawn) == [[1], [0]]


def test_steps_are_taken_in_multiples() -> None:
    found = plan([[float(k) for k in range(7)]], [1.0], keep_params=0.9, round_to=3)
    assert gone(found) == [[0]]
    found = plan([[float(k) for k in range(7)]], [1.0], keep_params=0.6, round_to=3)
    assert gone(found) == [[0, 1, 2, 3]]
    assert found.result["thresholds"] == [3.0]
    assert found.result["tolerance"] == 3.0


def test_a_tolerance_takes_what_needs_no_more_than_it() -> None:
    found = plan([[1.0, 2.0, 3.0, 4.0]], [1.0], tod=0.5, allocation="tod", protect="wasserstein")
    # the order of both is the same: ToD is 0, 0, 1/3 … by the definition 0 0 2/3 1
    assert gone(found) == [[0, 1]]
    assert found.result["tolerance"] == 0.0
    exactly = plan([[1.0, 2.0, 3.0, 4.0]], [1.0], tod=2 / 3, allocation="tod", protect="wasserstein")
    assert gone(exactly) == [[0, 1, 2]]


def test_a_tolerance_that_nothing_meets_takes_nothing() -> None:
    found = plan([[1.0, 2.0, 3.0]], [1.0], tod=0.0, allocation="tod")
    assert gone(found) == [[]]
    assert found.result["tolerance"] is None
    assert found.result["thresholds"] == [None]


def test_sets_lose_as_many_units_and_count_once() -> None:
    """Two sets of three: their k-th units go together, for the mean of their scores."""
    found = plan([[1.0, 5.0, 9.0, 8.0, 2.0, 3.0]], [1.0], sets=2, keep_params=2 / 3)
    assert gone(found) == [[[0], [1]]]
    assert found.result["tolerance"] == 1.5


@pytest.mark.parametrize("allocation", ["uniform", "normalized"])
def test_other_rankings(allocation: str) -> None:
    found = plan([[10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0]], [1.0, 1.0], keep_params=0.5, allocation=allocation)
    assert gone(found) == [[0, 1], [0, 1]]
    expected = {"uniform": 0.5, "normalized": 0.8}[allocation]
    assert found.result["tolerance"] == pytest.approx(expected)


def test_a_budget_of_exactly_what_is_left_needs_no_more() -> None:
    assert gone(plan([[1.0, 2.0, 3.0, 4.0]], [1.0], keep_params=0.75)) == [[0]]
    assert gone(plan([[1.0, 2.0, 3.0, 4.0]], [1.0], keep_params=0.7499)) == [[0, 1]]
    assert gone(plan([[1.0, 2.0, 3.0, 4.0]], [1.0], keep_params=1.0)) == [[]]
    assert gone(plan([[1.0, 2.0, 3.0, 4.0]], [1.0], keep_params=0.9999)) == [[0]]


def test_what_was_asked_is_recorded() -> None:
    found = plan([[1.0, 2.0, 3.0]], [1.0], keep_params=0.7, round_to=1, max_remove=0.5, min_keep=2)
    assert found.request == {
        "keep_params": 0.7,
        "allocation": "global",
        "removal": "wasserstein",
        "protect": "taylor",
        "round_to": 1,
        "max_remove": 0.5,
        "min_keep": 2,
        "ignore": [],
        "serve": None,
    }
    assert "latency_before_ms" not in found.result


def test_a_map_that_costs_nothing_has_no_budget() -> None:
    with pytest.raises(InputError, match="keep_params= needs costs above zero; the map of Net has 0"):
        plan([[1.0, 2.0]], [0.0], keep_params=0.5)


def test_latency_needs_its_table() -> None:
    with pytest.raises(InputError, match="keep_latency= needs the table"):
        plan([[1.0, 2.0]], [1.0], keep_latency=0.5)


def test_what_fits_as_a_sum_but_not_as_a_whole_is_not_returned() -> None:
    """Costs of 0.7 and 1.4: a step's cost, added, gives the budget exactly, and the new sum is above by rounding."""
    found = plan([[1.0, 0.0, 2.0], [0.5, 1.5, 2.5]], [0.7, 1.4], keep_params=5 / 9)
    assert gone(found) == [[], [0, 1]]
    assert found.result["params_after"] / found.result["params_before"] <= 5 / 9
