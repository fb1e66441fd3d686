"""The signal over what a unit costs: against every other removal, and what the default takes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fairkern.allocate import allocate
from fairkern.plans.cost import adds_up
from fairkern.types import AxisGroup, CostTerm, Extent, Scores, Side, Tap
from tests.allocate.test_steps import gone, plan
from tests.plans.maps import heard, unit_map
from tests.synthetic import chain, concat, random_scores, residual

SIGNALS = [[1.0, 2.0, 7.0, 9.0], [2.0, 3.0, 5.0, 30.0], [0.5, 1.5, 2.0]]
COSTS = [2.0, 5.0, 1.0]


def test_prices_are_signals_over_costs() -> None:
    found = plan(SIGNALS, COSTS, allocation="priced", keep_params=0.6)
    # 0.4, 0.5, 0.5, 0.6 and 1.0: 5 + 2 + 1 + 5 = 13 of 31 go, the first at which 60 % stay
    assert gone(found) == [[0], [0, 1], [0]]
    assert found.result["tolerance"] == 3.0 / 5.0
    assert found.result["thresholds"] == [0.5, 0.6, 0.5]


def test_at_every_threshold_no_removal_that_saves_as_much_costs_less_of_the_signal() -> None:
    """Of all ways to take so many from each group, whatever the order in which they are tried."""
    whole = sum(len(s) * c for s, c in zip(SIGNALS, COSTS, strict=True))

    def sums(counts: tuple[int, ...]) -> tuple[float, float]:
        """What is saved, and what of the signal goes."""
        taken = list(zip(counts, COSTS, SIGNALS, strict=True))
        return sum(n * c for n, c, _ in taken), sum(sum(s[:n]) for n, _, s in taken)

    ways = [sums(counts) for counts in itertools.product(*(range(len(s)) for s in SIGNALS))]
    prices = sorted(value / c for s, c in zip(SIGNALS, COSTS, strict=True) for value in s[:-1])
    for threshold in prices:
        counts = [sum(v / c <= threshold for v in s[:-1]) for s, c in zip(SIGNALS, COSTS, strict=True)]
        saved, lost = sums(tuple(counts))
        found = plan(SIGNALS, COSTS, allocation="priced", keep_params=(whole - saved) / whole)
        assert [len(g.removed) for g in found.groups] == counts
        assert lost <= min(other for cost, other in ways if cost >= saved) + 1e-12


def test_several_sets_pay_for_all_of_them() -> None:
    """Two sets of two: a unit of each goes for the sum of their signals and costs twice as much."""
    extents = (Extent(2, ((0, 1),)), Extent(4, ((1, 1),)))
    groups = (AxisGroup("a", "neuron", 2, (), heard(2), sets=2), AxisGroup("b", "neuron", 4, (), heard(4)))
    terms = (CostTerm(6.0, (0,)), CostTerm(3.0, (1,)))
    units = unit_map(*groups, extents=extents, params=terms, flops=terms)
    scores = Scores(units, {"s": (np.array([2.0, 9.0, 4.0, 9.0]), np.array([2.0, 2.5, 4.0, 9.0]))}, {}, {})
    found = allocate(scores, removal="s", allocation="priced", keep_params=0.76)
    assert gone(found) == [[], [0, 1]]  # 2/3 and 2.5/3, before (2 + 4)/6
    assert found.result["tolerance"] == 2.5 / 3.0
    found = allocate(scores, removal="s", allocation="priced", keep_params=0.5)
    assert gone(found) == [[[0], [0]], [0, 1]]
    assert found.result["thresholds"] == [1.0, 2.5 / 3.0]


def test_what_moves_together_is_priced_together() -> None:
    """Uniform ties are not asked for here: a server's are. Of one dear and one cheap group the sums count."""
    from fairkern.allocate.bundles import Bundle

    made = Bundle((0, 1), (1, 2), np.array([1, 2]))
    needs = {0: np.array([1.0, 2.0]) / 5.0, 1: np.array([1.0, 3.0, 4.0, 5.0]) / 2.0}
    found = made.price(needs, np.array([5.0, 2.0]))
    # of a part: the signals of its last units over what the part costs, 1 · 5 + 2 · 2
    np.testing.assert_allclose(found, [(1.0 + 2 * 3.0) / 9.0, (2.0 + 2 * 5.0) / 9.0])


def in_other_currency(**options: Any) -> list[list[int]]:
    groups = tuple(AxisGroup(name, "channel", 3, (), heard(3)) for name in "ab")
    extents = (Extent(3, ((0, 1),)), Extent(3, ((1, 1),)))
    params, flops = ((CostTerm(a, (0,)), CostTerm(b, (1,))) for a, b in ((1.0, 10.0), (10.0, 1.0)))
    units = unit_map(*groups, extents=extents, params=params, flops=flops)
    scores = Scores(units, {"s": (np.array([1.0, 1.1, 1.2]), np.array([1.0, 1.1, 1.2]))}, {}, {})
    return gone(allocate(scores, removal="s", allocation="priced", **options))


def test_the_currency_is_the_budgets() -> None:
    assert in_other_currency(keep_params=0.7) == [[], [0]]
    assert in_other_currency(keep_flops=0.7) == [[0], []]


def test_what_costs_nothing_has_a_price() -> None:
    found = plan([[1.0, 1.0], [5.0, 6.0]], [0.0, 4.0], allocation="priced", keep_params=0.5)
    assert gone(found) == [[], [0]]
    assert np.isfinite(found.result["thresholds"][1])


@pytest.mark.parametrize("sketch", [chain, concat, residual])
def test_it_is_the_global_threshold_on_the_signal_over_the_cost(sketch: Any) -> None:
    """As a function of a group that divides by hand."""
    from fairkern.plans.cost import per_unit

    units = sketch().build()
    scores = random_scores(units, seed=3)
    costs = dict(zip((g.name for g in units.groups), per_unit(units)[0], strict=True))
    signal = {g.name: s for g, s in zip(units.groups, scores.signals["wasserstein"], strict=True)}
    for keep in (0.3, 0.6, 0.9):
        by_hand = allocate(
            scores, keep_params=keep, allocation="global", removal=lambda g: signal[g.name] / costs[g.name]
        )
        found = allocate(scores, keep_params=keep, allocation="priced", removal="wasserstein")
        assert gone(found) == gone(by_hand)


def test_costs_add_up_where_no_size_is_a_product_of_two_that_shrink() -> None:
    assert not adds_up(chain().build())
    groups = tuple(AxisGroup(name, "neuron", 4, (), heard(4)) for name in "ab")
    one, two, both, fixed = Extent(4, ((0, 1),)), Extent(4, ((1, 1),)), Extent(8, ((0, 1), (1, 1))), Extent(3, ())
    shapes = {"a stream": ((0, 3), (1, 3)), "concatenated": ((2, 3),), "a chain": ((0, 1),), "a square": ((0, 0),)}
    found = {
        name: adds_up(unit_map(*groups, extents=(one, two, both, fixed), params=[CostTerm(1.0, e) for e in terms]))
        for name, terms in shapes.items()
    }
    assert found == {"a stream": True, "concatenated": True, "a chain": False, "a square": False}
    frozen = (groups[0], replace(groups[1], frozen="stays"))
    assert adds_up(unit_map(*frozen, extents=(one, two), params=[CostTerm(1.0, (0, 1))]))
    experts = Tap(heard(4)[0].sites, Side.EXPERT, 1, 4, np.arange(4)[:, None], heard(4)[0].weights)
    whole = (groups[0], replace(groups[1], kind="expert", taps=(experts,)))
    assert adds_up(unit_map(*whole, extents=(one, two), params=[CostTerm(1.0, (0, 1))]))


@pytest.mark.parametrize(("terms", "expected"), [([(0,), (1,)], "priced"), ([(0, 1)], "global")])
def test_the_default_prices_where_costs_add_up(terms: list[tuple[int, ...]], expected: str) -> None:
    groups = tuple(AxisGroup(name, "neuron", 4, (), heard(4)) for name in "ab")
    extents = (Extent(4, ((0, 1),)), Extent(4, ((1, 1),)))
    made = [CostTerm(2.0, e) for e in terms]
    units = unit_map(*groups, extents=extents, params=made, flops=made)
    ascending = (np.arange(4.0), np.arange(4.0))
    scores = Scores(units, {"residual": ascending, "taylor": ascending}, {}, {})
    assert allocate(scores, keep_params=0.5).request["allocation"] == expected
    assert allocate(scores, keep_params=0.5, removal="taylor").request["allocation"] == "tod"
    first_order = replace(scores, signals={"taylor": ascending})
    assert allocate(first_order, keep_params=0.5).request["allocation"] == "global"
