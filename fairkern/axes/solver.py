"""Components of axis positions and why they stay; which factor of a split or merge carries the unit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fairkern.axes.graph import Factors, Graph

FREE = -1


class Solver:
    """Components and their freeze reasons, as factors get decided one after the other."""

    def __init__(self, graph: Graph, routed: np.ndarray | None = None) -> None:
        """`routed`: per node, whether it belongs to an expert that a router can leave out."""
        self.n = graph.nodes
        self.edges = list(graph.edges)
        self.reasons: list[str] = []
        self._codes: dict[str, int] = {}
        self.node_reason = np.full(self.n, FREE, dtype=np.int64)  # index into reasons
        for i, (nodes, reason) in enumerate(graph.freezes):
            held = nodes if routed is None or i not in graph.unless_routed else nodes[~routed[nodes]]
            self.freeze(held, reason)
        self.labels = np.arange(self.n)
        self.component_reason = self.node_reason
        self.relabel()

    def freeze(self, nodes: np.ndarray, reason: str) -> None:
        code = self._codes.setdefault(reason, len(self.reasons))
        if code == len(self.reasons):
            self.reasons.append(reason)
        nodes = nodes.reshape(-1)
        fresh = nodes[self.node_reason[nodes] == FREE]
        self.node_reason[fresh] = code

    def relabel(self) -> None:
        """Connected components from all edges so far; folds the edges that are used up."""
        if self.edges:
            a = np.concatenate([e[0] for e in self.edges])
            b = np.concatenate([e[1] for e in self.edges])
            matrix = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(self.n, self.n))
            count, labels = connected_components(matrix, directed=False)
            self.edges = [(a, b)]
        else:
            count, labels = self.n, np.arange(self.n)
        self.labels, self.count = labels, count
        none = len(self.reasons)
        reason = np.full(count, none, dtype=np.int64)
        hit = self.node_reason != FREE
        np.minimum.at(reason, labels[hit], self.node_reason[hit])
        self.component_reason = np.where(reason == none, FREE, reason)

    def free(self, nodes: np.ndarray) -> np.ndarray:
        """Which of these nodes lie in components that nothing freezes."""
        return self.component_reason[self.labels[nodes.reshape(-1)]] == FREE


def decide_factors(solver: Solver, factors: Iterable[Factors]) -> None:
    """For every split or merge choose the one factor that carries the unit; the others stay whole.

    A frozen factor loses; then one that meets a factor already chosen wins; then the larger. Ties are decided
    one per connected neighbourhood and round, so that every decision sees the ones before it.
    """
    open_ = list(factors)
    chosen = np.zeros(solver.n, dtype=bool)
    while open_:
        rest: list[Factors] = []
        certain = False
        for relation in open_:
            candidates = [k for k, ids in enumerate(relation.factors) if solver.free(ids).any()]
            if len(candidates) > 1 and solver.free(relation.flat).any():
                rest.append(relation)
                continue
            certain = True
            _choose(solver, chosen, relation, candidates[0] if len(candidates) == 1 else None)
        if not certain:
            rest = _break_ties(solver, chosen, rest)
        solver.relabel()
        marked = np.zeros(solver.count, dtype=bool)
        marked[solver.labels[chosen]] = True
        chosen = marked[solver.labels]
        open_ = rest


def _break_ties(solver: Solver, chosen: np.ndarray, relations: list[Factors]) -> list[Factors]:
    touched: set[int] = set()
    rest: list[Factors] = []
    for relation in relations:
        near = {int(c) for part in (relation.flat, *relation.factors) for c in np.unique(solver.labels[part])}
        if near & touched:
            rest.append(relation)
            continue
        touched |= near
        free = [k for k, ids in enumerate(relation.factors) if solver.free(ids).any()]
        _choose(
            solver,
            chosen,
            relation,
            max(free, key=lambda k: (bool(chosen[relation.factors[k]].any()), len(relation.factors[k]), -k)),
        )
    return rest


def _choose(solver: Solver, chosen: np.ndarray, relation: Factors, winner: int | None) -> None:
    for k, ids in enumerate(relation.factors):
        if k != winner:
            solver.freeze(ids, "another factor of a view carries the unit")
    if winner is None:
        solver.freeze(relation.flat, "no factor of a view can be cut")
        return
    ids = relation.factors[winner]
    shape = [1] * relation.flat.ndim
    shape[winner] = -1
    spread = np.ascontiguousarray(np.broadcast_to(ids.reshape(shape), relation.flat.shape))
    solver.edges.append((relation.flat.reshape(-1), spread.reshape(-1)))
    chosen[ids] = True
