"""Costs where units of a group differ: experts of a list, each with parameters of its own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fairkern.plans.cost import Cost, extents_after, per_unit, told_apart
from fairkern.types import CostTerm, Extent, UnitMap
from tests.plans.maps import group, unit_map

SIZES = (2.0, 3.0, 5.0, 7.0)  # parameters of the four experts per inner unit


def experts() -> UnitMap:
    """Group 0: four experts, weights [inner, size]; groups 1 to 4: three inner units each; a router [4, 6]."""
    extents = [Extent(1, ((0, 1),), unit=k) for k in range(4)] + [Extent(3, ((1 + k, 1),)) for k in range(4)]
    extents += [Extent(4, ((0, 1),)), Extent(6, ())]
    terms = [CostTerm(SIZES[k], (4 + k, k)) for k in range(4)] + [CostTerm(1.0, (8, 9)), CostTerm(11.0, ())]
    groups = [group("experts", 4, kind="expert"), *(group(f"e{k}", 3) for k in range(4))]
    return unit_map(*groups, extents=tuple(extents), params=tuple(terms), flops=tuple(terms[:4]))


def counted(gone: set[int], inner: tuple[int, ...]) -> float:
    kept = [k for k in range(4) if k not in gone]
    return sum(SIZES[k] * (3 - inner[k]) for k in kept) + len(kept) * 6 + 11


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_costs_follow_the_order_in_which_experts_go(order: tuple[int, ...]) -> None:
    units = experts()
    cost = Cost(units, units.params, {0: np.array(order)})
    for count, inner in itertools.product(range(5), ((0, 0, 0, 0), (1, 2, 0, 3))):
        removed = np.array([count, *inner])
        assert cost(removed) == counted(set(order[:count]), inner)
        for back in ([1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [2, 1, 1, 1, 1], [-1, 0, -1, 0, 0]):
            growth = cost.change(removed, np.array(back))
            for g in range(5):
                alone = removed.copy()
                alone[g] -= back[g]
                if alone[0] in range(5):
                    assert growth[g] == cost(alone) - cost(removed)


def test_experts_that_no_order_names_stay() -> None:
    units = experts()
    cost = Cost(units, units.params, {0: np.array([3, 1])})
    assert cost(np.array([2, 0, 0, 0, 0])) == counted({1, 3}, (0, 0, 0, 0))
    left = (SIZES[0] + SIZES[2]) * 3 + 6 + 11
    assert cost(np.array([3, 0, 0, 0, 0])) == left, "the router's row alone"


def test_without_an_order_experts_count_alike() -> None:
    units = experts()
    cost = Cost(units, units.params)
    for count in range(4):
        expected = (1 - count / 4) * sum(SIZES) * 3 + (4 - count) * 6 + 11
        assert cost(np.array([count, 0, 0, 0, 0])) == pytest.approx(expected)
    assert cost.constant == 11.0
    params, flops = per_unit(units)
    assert params.tolist() == pytest.approx([sum(SIZES) * 3 / 4 + 6, *SIZES])
    assert flops.tolist() == pytest.approx([sum(SIZES) * 3 / 4, *SIZES])


def test_groups_whose_units_differ() -> None:
    assert told_apart(experts()) == {0}
    assert told_apart(unit_map(group("a", 3), extents=(Extent(3, ((0, 1),)),))) == set()
    assert told_apart(unit_map(group("a", 3), extents=(Extent(1, ((0, 1),), unit=0),))) == {0}


def test_sizes_that_are_left() -> None:
    units = unit_map(group("a", 3), group("b", 4), extents=(Extent(20, ((0, 2), (1, 3))), Extent(5, ())))
    left = extents_after(units, np.array([1, 2]))
    assert left == [20 - 2 - 6, 5]
    assert all(type(size) is int for size in left)


def test_a_map_without_terms_costs_nothing() -> None:
    units = unit_map(group("a", 3), extents=(Extent(3, ((0, 1),)),))
    cost = Cost(units, ())
    assert cost(np.array([1])) == 0.0
    assert cost.change(np.array([1]), np.array([1])).tolist() == [0.0]


def test_parts_that_cancel_do_not_move() -> None:
    units = unit_map(group("a", 3), group("b", 3), extents=(Extent(5, ((0, 1), (0, -1))), Extent(3, ((1, 1), (0, 0)))))
    cost = Cost(units, (CostTerm(2.0, (0, 1)),))
    assert cost(np.array([2, 1])) == 2 * 5 * 2
    assert cost.change(np.array([2, 1]), np.array([1, 1])).tolist() == [0.0, 10.0]
