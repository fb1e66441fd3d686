"""Components of axis positions and why they stay; which factor of a split or merge carries the unit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fairkern.axes.connected import connected
from fairkern.axes.facts import Edge, Factors, Freeze
from fairkern.axes.graph import Graph
from fairkern.axes.unless import Unless
from fairkern.deadline import Deadline

FREE = -1
_AT_ONCE = 2**20  # nodes that are looked at in one go
ANOTHER = "another factor of a view carries the unit"
NOT_READ = "no weight contracts over it"  # why positions stay that nothing could be made smaller by


def components(edges: Sequence[Edge], nodes: int) -> np.ndarray:
    """Per node, the number of the component that these edges connect it to."""
    return connected([(e.a, e.b) for e in edges], nodes)[1]


class Solver:
    """Components and their freeze reasons, as factors get decided one after the other."""

    def __init__(
        self,
        graph: Graph,
        routed: np.ndarray | None = None,
        listed: np.ndarray | None = None,
        daring: bool = False,
        more: Sequence[Edge] = (),
    ) -> None:
        """`routed`: per node, whether it belongs to an expert that a router can leave out. `listed`: to one that is a
        module of a list, of which only the proof can tell. `daring`: leave to the proof what it can show. `more`: what
        goes together besides."""
        self.n = graph.nodes
        self.edges: list[Edge] = []
        self.reasons: list[str] = []
        self.lost: list[tuple[np.ndarray, str]] = []  # what views made, and why one of their factors could not carry it
        self._codes: dict[str, int] = {}
        self._node_reason = np.full(self.n, FREE, dtype=np.int16)  # index into reasons; wider where they are many
        self._news: list[tuple[np.ndarray, int]] = []  # nodes frozen since the last relabelling, and why
        self.count, self.labels = connected([(e.a, e.b) for e in (*graph.edges, *more)], self.n)
        self.component_reason = np.full(self.count, FREE, dtype=np.int32)
        for freeze in sorted(graph.freezes, key=lambda f: f.unless is Unless.PROVEN):  # what holds in any case is told
            if not (daring and freeze.unless is Unless.PROVEN):
                self.freeze(_held(freeze, routed, listed), freeze.reason)
        self.relabel()

    def freeze(self, nodes: np.ndarray, reason: str) -> None:
        code = self._codes.setdefault(reason, len(self.reasons))
        if code == len(self.reasons):
            self.reasons.append(reason)
            if code > np.iinfo(self._node_reason.dtype).max:
                self._node_reason = self._node_reason.astype(np.int32)
        nodes = nodes.reshape(-1)
        fresh = nodes[self._node_reason[nodes] == FREE]
        self._node_reason[fresh] = code
        self._news.append((fresh, code))

    def relabel(self) -> np.ndarray | None:
        """Merge the components that new edges connect; returns the number that each has now, None where none has
        another. Linear in the nodes and in what is new."""
        merged: np.ndarray | None = None
        if self.edges:
            self.count, merged = connected([(self.labels[e.a], self.labels[e.b]) for e in self.edges], self.count)
            frozen = np.flatnonzero(self.component_reason != FREE)
            reason = np.full(self.count, len(self.reasons), dtype=np.int32)
            np.minimum.at(reason, merged[frozen], self.component_reason[frozen])
            for start in range(0, self.n, _AT_ONCE):
                part = self.labels[start : start + _AT_ONCE]
                part[:] = merged[part]
            self.edges = []
        else:
            reason = np.where(self.component_reason == FREE, len(self.reasons), self.component_reason)
        for nodes, code in sorted(self._news, key=lambda news: -news[1]):  # the smallest code is written last
            parts = self.labels[nodes]
            reason[parts] = np.minimum(reason[parts], code)
        self._news = []
        self.component_reason = np.where(reason == len(self.reasons), FREE, reason)
        return merged

    @property
    def nodes(self) -> np.ndarray:
        """All of them."""
        return np.arange(self.n)

    def free(self, nodes: np.ndarray) -> np.ndarray:
        """Which of these nodes lie in components that nothing freezes."""
        return self.component_reason[self.labels[nodes.reshape(-1)]] == FREE

    def meet(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Whether any of these nodes goes with any of those."""
        return bool(np.isin(self.labels[a], self.labels[b]).any())

    def reason(self, nodes: np.ndarray) -> str | None:
        """Why all of these nodes stay; None if any of them may go."""
        codes = self.component_reason[self.labels[nodes.reshape(-1)]]
        return None if (codes == FREE).any() else self.reasons[codes.min()]

    def any_reason(self, nodes: np.ndarray) -> str | None:
        """Why any of these nodes stays; None if all may go."""
        codes = self.component_reason[self.labels[nodes.reshape(-1)]]
        return None if (codes == FREE).all() else self.reasons[codes[codes != FREE].min()]


def _held(freeze: Freeze, routed: np.ndarray | None, listed: np.ndarray | None) -> np.ndarray:
    """The nodes that a freeze holds back, where it has not lapsed for experts."""
    nodes = freeze.nodes
    if routed is not None and freeze.unless is Unless.ROUTED:
        nodes = nodes[~routed[nodes]]
    if listed is not None and freeze.unless is not Unless.NEVER:
        nodes = nodes[~listed[nodes]]
    return nodes


def decide_factors(solver: Solver, factors: Iterable[Factors], read: np.ndarray, deadline: Deadline) -> None:
    """For every split or merge choose the one factor that carries the unit; the others stay whole.

    A frozen factor loses, and one along which everything would become a single unit; then the one wins along which
    alone positions still differ; then one that meets a factor already chosen; then the larger. Ties are decided one per
    connected neighbourhood and round, so that every decision sees the ones before it: first those that meet a choice,
    then those of positions that a weight contracts over (`read`: per node), since the number of tokens must not decide
    over heads. What no weight reads stays. A factor that goes before others is chosen when nothing is certain any more.
    """
    open_ = list(factors)
    chosen = np.zeros(solver.count, dtype=bool)  # components of factors that carry units
    while open_:
        deadline.check("deciding the factors of views")
        rest: list[Factors] = []
        certain = False
        for relation in open_:
            candidates = _candidates(solver, relation)
            if len(candidates) > 1 and solver.free(relation.flat).any():
                rest.append(relation)
                continue
            certain = True
            _choose(solver, chosen, relation, candidates[0] if len(candidates) == 1 else None)
        leading = [] if certain else [relation for relation in rest if relation.first]
        for relation in leading:
            _choose(solver, chosen, relation, 0)
        if leading:
            rest = [relation for relation in rest if not relation.first]
        elif not certain:
            marked = np.zeros(solver.count, dtype=bool)
            marked[solver.labels[read]] = True
            rest = _break_ties(solver, chosen, marked, rest)
        merged = solver.relabel()
        if merged is not None:
            of_parts, chosen = merged[chosen], np.zeros(solver.count, dtype=bool)
            chosen[of_parts] = True
        open_ = rest


def _candidates(solver: Solver, relation: Factors) -> list[int]:
    """The factors that may carry the unit. Where each leaves only one unit, all that are free."""
    free = [k for k, ids in enumerate(relation.factors) if solver.free(ids).any()]
    if len(free) < 2 or relation.first:
        return free
    carrier = _carrier(solver, relation)
    if carrier in free:
        return [carrier]
    return [k for k in free if not _collapses(solver, relation, k)] or free


def _carrier(solver: Solver, relation: Factors) -> int | None:
    """The one factor that carries the unit already: all that differs along others goes together."""
    labels = solver.labels[relation.flat]
    differ = [k for k in range(labels.ndim) if (labels != np.take(labels, [0], axis=k)).any()]
    return differ[0] if len(differ) == 1 else None


def _collapses(solver: Solver, relation: Factors, k: int) -> bool:
    """Whether all positions would be one unit if factor `k` carried it: positions that go together already lie across
    it, as in a grouped convolution whose groups are the heads."""
    flat = np.moveaxis(solver.labels[relation.flat], k, 0).reshape(relation.flat.shape[k], -1)
    rows = np.concatenate([solver.labels[relation.factors[k]][:, None], flat], axis=1)
    others = np.zeros(solver.count, dtype=bool)
    others[rows[1:]] = True
    if not others[rows[0]].any():
        return False
    _, labels = np.unique(rows, return_inverse=True)
    of_row = np.repeat(np.arange(len(rows)), rows.shape[1])
    count, _ = connected([(of_row, len(rows) + labels.reshape(-1))], len(rows) + int(labels.max()) + 1)
    return count == 1


def _break_ties(solver: Solver, chosen: np.ndarray, read: np.ndarray, relations: list[Factors]) -> list[Factors]:
    urgent = [_urgency(solver, chosen, read, relation) for relation in relations]
    most = max(urgent, default=0)
    if most == 0:
        for relation in relations:
            for part in (relation.flat, *relation.factors):
                solver.freeze(part, NOT_READ)
        return []
    touched = np.zeros(solver.count, dtype=bool)
    rest: list[Factors] = []
    for relation, here in zip(relations, urgent, strict=True):
        if here < most:
            rest.append(relation)
            continue
        near = [solver.labels[part] for part in (relation.flat, *relation.factors)]
        if any(touched[part].any() for part in near):
            rest.append(relation)
            continue
        for part in near:
            touched[part] = True
        winner = max(
            _candidates(solver, relation),
            key=lambda k: (bool(chosen[solver.labels[relation.factors[k]]].any()), len(relation.factors[k]), -k),
        )
        _choose(solver, chosen, relation, winner)
    return rest


def _urgency(solver: Solver, chosen: np.ndarray, read: np.ndarray, relation: Factors) -> int:
    """2 where a factor meets one that was chosen, plus 1 where a weight reads the positions."""
    meets = any(chosen[solver.labels[ids]].any() for ids in relation.factors)
    return 2 * meets + any(read[solver.labels[part]].any() for part in (relation.flat, *relation.factors))


def _choose(solver: Solver, chosen: np.ndarray, relation: Factors, winner: int | None) -> None:
    if winner is None:
        held = (solver.reason(ids) for ids in (relation.flat, *relation.factors))
        reason = next((r for r in held if r is not None), "no factor of a view can be cut")
        for ids in (*relation.factors, relation.flat):
            solver.freeze(ids, reason)
        return
    for k, ids in enumerate(relation.factors):
        if k != winner:
            stays = solver.reason(ids)
            if stays is not None and stays != ANOTHER:
                solver.lost.append((relation.flat, stays))
            solver.freeze(ids, relation.first or ANOTHER)
    ids = relation.factors[winner]
    shape = [1] * relation.flat.ndim
    shape[winner] = -1
    spread = np.ascontiguousarray(np.broadcast_to(ids.reshape(shape), relation.flat.shape))
    solver.edges.append(Edge(relation.flat.reshape(-1), spread.reshape(-1)))
    chosen[solver.labels[ids]] = True
