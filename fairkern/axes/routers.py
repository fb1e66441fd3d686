"""Routers: matrices that make a logit for each expert, known by what the experts' positions are joined with."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from fairkern.axes.facts import Edge
from fairkern.axes.solver import components
from fairkern.axes.tracing import Tracing
from fairkern.types import Axis


class Routers:
    """Which axes the positions of experts touch, and which of them are routers'."""

    def __init__(self, tracing: Tracing, more: Sequence[Edge] = ()) -> None:
        """`more`: what goes together besides."""
        graph = tracing.graph
        self._tensors = tracing.tensors
        self._labels = components([*graph.edges, *more], graph.nodes)
        self._makes = {(c.weight.tensor, 1 - c.weight.dim) for c in graph.contractions}
        self._makes |= {(p.weight.tensor, p.weight.dim) for p in graph.productions}  # from an input that nothing cuts
        held = [(Axis(name, i), d) for name, dims in self._tensors.items() for i, d in enumerate(dims) if d is not None]
        self._axes = [axis for axis, _ in held]  # positions are sorted by component once
        component = self._labels[np.concatenate([nodes for _, nodes in held])]
        order = np.argsort(component, kind="stable")
        self._component = component[order]
        self._axis = np.repeat(np.arange(len(held)), [len(nodes) for _, nodes in held])[order]

    def key(self, nodes: np.ndarray) -> bytes:
        """Equal where position by position is cut together."""
        return self._labels[nodes].tobytes()

    def joined(self, nodes: np.ndarray) -> np.ndarray:
        """Per node, whether it is cut together with any of these."""
        return np.isin(self._labels, self._labels[nodes])

    def more(self, count: int) -> None:
        """So many nodes have been made since; they are looked up nowhere."""
        self._labels = np.concatenate([self._labels, np.full(count, -1, dtype=self._labels.dtype)])

    def of(self, experts: np.ndarray, own: Collection[str] = ()) -> frozenset[Axis]:
        """The routers' axes that experts at these nodes touch; none where they touch anything but those, dimension 0
        of their `own` tensors, and vectors, or only a part of it, or where one touches another."""
        parts = np.unique(self._labels[experts])
        if len(parts) != len(experts):
            return frozenset()
        touched = self._touched(parts)
        others = [a for a in touched if a.tensor not in own or a.dim != 0]
        ranks = {a: sum(d is not None for d in self._tensors[a.tensor]) for a in others}  # without those of size 1
        routers = frozenset(a for a in others if ranks[a] == 2 and (a.tensor, a.dim) in self._makes)
        whole = all(np.array_equal(np.unique(self._labels[self._nodes(a)]), parts) for a in touched)
        plain = all(a in routers or ranks[a] == 1 for a in others)
        return routers if plain and whole else frozenset()

    def _nodes(self, axis: Axis) -> np.ndarray:
        nodes = self._tensors[axis.tensor][axis.dim]
        assert nodes is not None
        return nodes

    def _touched(self, parts: np.ndarray) -> list[Axis]:
        first = np.searchsorted(self._component, parts, "left")
        last = np.searchsorted(self._component, parts, "right")
        found = [self._axis[a:b] for a, b in zip(first, last, strict=True)]
        return [self._axes[i] for i in np.unique(np.concatenate(found))]
