"""Plans one after the other, as one: groups by name, units in order, sets with the experts that they belong to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from fairkern.errors import PlanMismatchError
from fairkern.plans.build import build
from fairkern.plans.compose import compose, matching
from fairkern.types import Axis, AxisGroup, Entries, GroupAxis, Plan, PlanGroup, UnitMap
from tests.plans.maps import gone, group, held, unit_map


def fused(experts: int, inner: int) -> UnitMap:
    """Experts in one parameter [experts, inner], a set of inner units for each."""
    whole = AxisGroup("experts", "expert", experts, (held("up", 0, experts),), ())
    inside = AxisGroup("inner", "expert neuron", inner, (held("up", 1, inner),), (), sets=experts)
    return unit_map(whole, inside, shapes={"up": (experts, inner)})


def listed(experts: int, *inner: int) -> UnitMap:
    """Experts in a list, each with inner units of its own."""
    names = tuple(str(k) for k in range(experts))
    whole = AxisGroup("experts", "expert", experts, (held("experts", 0, experts),), ())
    parts = (group(f"experts.{k}.up", n, kind="neuron") for k, n in enumerate(inner))
    return unit_map(whole, *parts, lists={"experts": Entries(names, 8)})


def removed(groups: Iterable[PlanGroup]) -> dict[str, list[object]]:
    return {g.name: g.removed.tolist() for g in groups}


def test_three_steps_of_a_layer() -> None:
    sizes, steps = (8, 6, 5), ([1, 4], [0], [3, 4])
    plans = [build(unit_map(group("a", n)), gone(step)) for n, step in zip(sizes, steps, strict=True)]
    plan = compose(unit_map(group("a", 8)), plans, {"asked": 1}, {"more": 2})
    # 0 2 3 5 6 7 stay, then 2 3 5 6 7, then 2 3 5
    assert removed(plan.groups) == {"a": [0, 1, 4, 6, 7]}
    assert plan.request == {"asked": 1}
    assert plan.result["more"] == 2


def test_groups_are_found_by_name_and_those_that_lose_nothing_stay() -> None:
    units = unit_map(group("a", 4), group("b", 4))
    plan = build(unit_map(group("b", 4)), gone([3]))
    assert removed(compose(units, [plan]).groups) == {"a": [], "b": [3]}
    assert removed(compose(units, []).groups) == {"a": [], "b": []}


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        (build(unit_map(group("a", 5)), gone([0])), "1 × 5 units; the plans before it left 1 × 4 units"),
        (build(unit_map(group("z", 4)), gone([0])), "1 × 4 units; the plans before it left no such group"),
        (build(unit_map(group("a", 4, sets=2)), gone([[0], [1]])), "2 × 4 units; the plans before it left 1 × 4 units"),
    ],
)
def test_another_size_is_refused(plan: Plan, found: str) -> None:
    with pytest.raises(PlanMismatchError, match=found):
        compose(unit_map(group("a", 4)), [plan])


def test_a_group_of_another_size_that_loses_nothing_is_no_matter() -> None:
    plan = build(unit_map(group("z", 5)), gone([]))
    assert removed(compose(unit_map(group("a", 4)), [plan]).groups) == {"a": []}


def test_inner_units_are_those_of_the_experts_that_are_left() -> None:
    units = fused(4, 6)
    first = build(units, gone([2], [[0, 1], [2, 3], [4, 5], [0, 5]]))
    assert removed(compose(units, [first]).groups)["inner"] == [[0, 1], [2, 3], [4, 5], [0, 5]]
    # of experts 0, 1, 3 are left [2 3 4 5], [0 1 4 5], [1 2 3 4]; expert 2 loses as many as they do
    second = build(fused(3, 4), gone([], [[0], [1], [3]]))
    plan = compose(units, [first, second])
    assert removed(plan.groups) == {"experts": [2], "inner": [[0, 1, 2], [1, 2, 3], [0, 4, 5], [0, 4, 5]]}
    # experts 0 and 3 are left, with [3 4 5] and [1 2 3]
    third = build(fused(3, 3), gone([1], [[], [], []]))
    fourth = build(fused(2, 3), gone([], [[2], [0]]))
    plan = compose(units, [first, second, third, fourth])
    assert removed(plan.groups)["experts"] == [1, 2]
    assert [plan.groups[1].removed[k].tolist() for k in (0, 3)] == [[0, 1, 2, 5], [0, 1, 4, 5]]
    with pytest.raises(PlanMismatchError, match="3 × 4 units; the plans before it left 4 × 6 units"):
        compose(units, [second])


def test_experts_of_a_list_move_up_and_keep_their_units() -> None:
    units = listed(3, 4, 5, 6)
    first = build(units, gone([0], [1], [2], [3]))
    second = build(listed(2, 4, 5), gone([], [3], [4]))  # once experts 1 and 2: [0 1 3 4], [0 1 2 4 5]
    assert removed(compose(units, [first, second]).groups) == {
        "experts": [0],
        "experts.0.up": [1],
        "experts.1.up": [2, 4],
        "experts.2.up": [3, 5],
    }


def test_what_is_left_of_a_group_matches_it() -> None:
    units = unit_map(group("a", 4), group("b", 4, frozen="it is in use"), group("c", 3))
    plan = build(units, gone([1], [], []))
    current = unit_map(group("a", 3), group("b", 4), group("c", 2), group("d", 3))
    kept = matching(units, [plan], current)
    no_group = "it is no group of the whole model"
    assert [g.frozen for g in kept.groups] == [None, no_group, no_group, no_group]
    assert [g.name for g in kept.groups] == ["a", "b", "c", "d"]


def test_sets_match_where_their_experts_are_left() -> None:
    units = fused(4, 6)
    plan = build(units, gone([1], [[0], [0], [0], [0]]))

    def frozen(experts: int, inner: int) -> list[bool]:
        return [g.frozen is not None for g in matching(units, [plan], fused(experts, inner)).groups]

    assert frozen(3, 5) == [False, False]
    assert frozen(4, 5) == [True, True]
    assert frozen(3, 6) == [False, True]


def test_sets_whose_experts_are_no_group_all_stay() -> None:
    """Inner units of experts that cannot go themselves."""
    inside = AxisGroup("inner", "expert neuron", 4, (held("up", 1, 4),), (), sets=2)
    first, second = unit_map(inside), unit_map(AxisGroup("inner", "expert neuron", 3, (held("up", 1, 3),), (), sets=2))
    plans = [build(first, gone([[0], [3]])), build(second, gone([[0], [2]]))]
    assert removed(compose(first, plans).groups) == {"inner": [[0, 1], [2, 3]]}


def test_sets_belong_to_the_experts_that_share_a_tensor_with_them() -> None:
    """Of two layers of experts, each set follows its own."""

    def layers(experts: tuple[int, int]) -> UnitMap:
        groups = []
        for layer, n in zip("ab", experts, strict=True):
            groups.append(AxisGroup(layer, "expert", n, (held(f"{layer}.up", 0, n),), ()))
            inner = GroupAxis(Axis(f"{layer}.up", 1), 4, np.arange(4)[:, None])
            groups.append(AxisGroup(f"{layer}.inner", "expert neuron", 4, (inner,), (), sets=n))
        return unit_map(*groups)

    units = layers((3, 3))
    first = build(units, gone([0], [], [2], []))
    second = build(layers((2, 2)), gone([], [[0], [1]], [], [[2], [3]]))
    found = removed(compose(units, [first, second]).groups)
    assert found["a.inner"][1:] == [[0], [1]]
    assert found["b.inner"][:2] == [[2], [3]]
