"""Facts about a traced graph: when a freeze lapses, and what each fact is where a sibling takes a module's place."""

from __future__ import annotations

import typing
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from fairkern.axes.dims import CONSTANT, Source, Track
from fairkern.axes.facts import (
    BatchNormalisation,
    Computed,
    Contraction,
    Edge,
    Fact,
    Factors,
    Flops,
    Freeze,
    GivenSize,
    GroupedConvolution,
    GroupNormalisation,
    Product,
    Production,
    Ranking,
    SizeCall,
    SizeCallsOfModule,
    Spread,
)
from fairkern.axes.graph import Graph
from fairkern.axes.relocation import Relocation
from fairkern.axes.solver import Solver, components
from fairkern.axes.unless import Unless
from fairkern.types import Axis, CallSite, Side

ROUTED, LISTED, OTHER = range(3)


@pytest.mark.parametrize(
    ("unless", "free", "dared"),
    [
        (Unless.NEVER, [], []),
        (Unless.LISTED, [LISTED], [LISTED]),
        (Unless.ROUTED, [ROUTED, LISTED], [ROUTED, LISTED]),
        (Unless.PROVEN, [LISTED], [ROUTED, LISTED, OTHER]),
    ],
)
def test_when_a_freeze_lapses(unless: Unless, free: list[int], dared: list[int]) -> None:
    graph = Graph()
    nodes = graph.new(3)
    graph.freeze(nodes, "why", unless)
    routed, listed = nodes == ROUTED, nodes == LISTED
    for daring, expected in ((False, free), (True, dared)):
        solver = Solver(graph, routed, listed, daring)
        assert np.flatnonzero(solver.free(nodes)).tolist() == expected
    assert not Solver(graph).free(nodes).any(), "where no experts are known"


def test_the_first_reason_is_told() -> None:
    graph = Graph()
    nodes = graph.new(2)
    graph.join(nodes[:1], nodes[1:])
    graph.freeze(nodes[:1], "first", Unless.ROUTED)
    graph.freeze(nodes, "second")
    assert Solver(graph).reason(nodes) == "first"
    assert Solver(graph, routed=nodes == 0).reason(nodes) == "second"


def test_components() -> None:
    assert components([], 3).tolist() == [0, 1, 2]
    a, b = components([Edge(np.array([0, 1]), np.array([2, 3]))], 4).tolist()[:2]
    assert a != b
    assert components([Edge(np.array([0, 1]), np.array([2, 3]))], 4).tolist() == [a, b, a, b]


def relocation() -> Relocation:
    """`a` to `b`: nodes 0 and 1 are its own and become 4 and 5; 2 and 3 are shared."""
    own = np.array([True, True, False, False, False, False])
    return Relocation("a", "b", {"a.w": "b.w"}, own, np.array([4, 5, 2, 3, 4, 5], dtype=np.int32))


def ids(*nodes: int) -> np.ndarray:
    return np.array(nodes, dtype=np.int32)


def plain(value: Any) -> Any:
    """A fact as something that can be compared: arrays as lists, records as tuples of their fields."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, (Fact, Track, SizeCall)):
        return (type(value).__name__, *(plain(getattr(value, f.name)) for f in fields(value)))
    return value


INPUT = Track((2, 2), (CONSTANT, ids(0, 2)), Source("x", (None, Axis("x", 1))))
CALLS, MOVED_CALLS = (
    (SizeCall("reshape.1", "reshape", ((2, ids(*n)), (0, CONSTANT))), SizeCall("expand.1", "expand", ()))
    for n in ((0, 1), (4, 5))
)
MOVES: list[tuple[Fact, Fact | None]] = [
    (Edge(ids(0, 2), ids(1, 3)), Edge(ids(4), ids(5))),
    (Edge(ids(2), ids(3)), None),
    (Freeze(ids(0, 2), "why", Unless.NEVER), Freeze(ids(4), "why", Unless.NEVER)),
    (Freeze(ids(2), "why", Unless.LISTED), None),
    (Factors(ids(0, 1), (ids(0), ids(2, 3))), Factors(ids(4, 5), (ids(4), ids(2, 3)))),
    (Factors(ids(0, 1), (ids(0), ids(2, 3)), "why"), Factors(ids(4, 5), (ids(4), ids(2, 3)), "why")),
    (Factors(ids(2, 3), (ids(2), ids(3))), None),
    (Ranking(ids(0, 2), 2), Ranking(ids(4, 2), 2)),
    (Ranking(ids(3), 1), None),
    (
        Contraction(Axis("a.w", 1), ids(0, 2), INPUT, 1, CallSite("a.sub", 1, "a.w", 2), "mm", side=Side.HIDDEN),
        Contraction(
            Axis("b.w", 1),
            ids(4, 2),
            Track((2, 2), (CONSTANT, ids(4, 2)), INPUT.source),
            1,
            CallSite("b.sub", 1, "b.w", 2),
            "mm",
            side=Side.HIDDEN,
        ),
    ),
    (Contraction(Axis("c.w", 1), ids(0), None, -1, CallSite("a"), "mm"), None),
    (
        Production(Axis("a.w", 0), ids(1), -1, CallSite("ab")),
        Production(Axis("b.w", 0), ids(5), -1, CallSite("ab")),
    ),
    (Production(Axis("c.w", 0), ids(1), -1, CallSite("a")), None),
    (Spread(ids(0, 1), ids(2), ids(3, 0)), Spread(ids(4, 5), ids(2), ids(3, 4))),
    (Spread(ids(2, 3), ids(2), ids(0, 1)), None),
    (Product("a.n", ids(0, 2)), Product("b.n", ids(4, 2))),
    (Product("ab", ids(0)), None),
    (Computed("a.w"), Computed("b.w")),
    (Computed("c.w"), None),
    (Flops(2.0, (ids(0),)), None),
    (GroupedConvolution("a.w", ids(0), ids(1), ids(2)), GroupedConvolution("b.w", ids(4), ids(5), ids(2))),
    (GroupedConvolution("a.w", ids(0), None, ids(2)), GroupedConvolution("b.w", ids(4), None, ids(2))),
    (GroupedConvolution("c.w", ids(0), None, ids(2)), None),
    (GroupNormalisation("a.n", ids(0), ids(1)), GroupNormalisation("b.n", ids(4), ids(5))),
    (GroupNormalisation("ab", ids(0), ids(1)), None),
    (BatchNormalisation("a", ids(0)), BatchNormalisation("b", ids(4))),
    (BatchNormalisation("", ids(0)), None),
    (GivenSize("a", ids(0)), GivenSize("b", ids(4))),
    (GivenSize("ab", ids(0)), None),
    (SizeCallsOfModule("a.n", CALLS), SizeCallsOfModule("b.n", MOVED_CALLS, "a.n")),
    (SizeCallsOfModule("c", CALLS), None),
]


@pytest.mark.parametrize(("fact", "moved"), MOVES, ids=lambda fact: type(fact).__name__)
def test_what_a_fact_is_for_a_sibling(fact: Fact, moved: Fact | None) -> None:
    before = plain(fact)
    assert plain(fact.moved(relocation())) == plain(moved)
    assert plain(fact) == before


def test_one_activation_stays_one() -> None:
    """Two consumers that read the same tensor are one tap, also of a sibling."""
    to = relocation()
    first, second = (Contraction(Axis("a.w", d), ids(0), INPUT, 1, CallSite("a"), "mm").moved(to) for d in (0, 1))
    assert first is not None
    assert second is not None
    assert first.activation is second.activation is not INPUT


def test_every_kind_of_fact_lies_in_the_graph() -> None:
    """What siblings take are the lists of the graph, all of them."""
    kinds = {kind for kind in Fact.__subclasses__() if kind.__module__.startswith("fairkern.")}
    held = typing.get_type_hints(Graph).values()
    assert {typing.get_args(hint)[0] for hint in held if typing.get_origin(hint) is list} == kinds
    assert len(list(Graph().facts())) == len(kinds)
    assert kinds == {type(fact) for fact, _ in MOVES}
