"""Modules of a list that no example input reached, and that do what their siblings do: experts without a token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from fairkern.axes.graph import Graph
from fairkern.axes.relocation import Relocation
from fairkern.axes.solver import components
from fairkern.axes.tracing import Tracing
from fairkern.model.tensors import LISTS

_UNHEARD = "is not reached by the example inputs, so that nothing scores it: more= takes inputs that do"

_NONE, _SHARED = -1, -2  # owners of a component: no tensor, tensors of several modules


def follow_siblings(model: nn.Module, tracing: Tracing) -> None:
    """Give modules of a `ModuleList` or `ModuleDict` that were not reached the part that their siblings play.

    Where two or more modules of a list were reached, are alike (class, settings, shapes) and take the same place in
    the model, a further one that is alike takes it as well. The same place: every axis of theirs either belongs to
    one component with its counterparts (the stream that all of them read), or reaches nothing outside its module.
    That holds for experts, and not for the stages of a network or heads on its stages. What does not qualify is left
    unreached, and so freezes whatever it may read.

    What is inside of such a module can go only if its siblings were given places that an index picked: an expert
    without a token is heard to add nothing. A layer behind the end of a truncated stack is not heard, and so stays.
    """
    if tracing.reached.issuperset(tracing.parameters):
        return
    for path, module in model.named_modules():
        if isinstance(module, LISTS):
            entries = [f"{path}.{name}".lstrip(".") for name, _ in module.named_children()]
            for waiting, alike in _candidates(model, tracing, entries):
                place = _Place.of(tracing, alike)
                if place is not None:
                    for entry in waiting:
                        place.take(entry, heard=not tracing.picked.isdisjoint(alike))
                        tracing.notes.append(f"{entry} is not reached by the example inputs; traced like {alike[0]}")


def _by_entry(tracing: Tracing, entries: Iterable[str]) -> dict[str, list[str]]:
    """The tensors of each of these modules, none of which is inside another."""
    held: dict[str, list[str]] = {entry: [] for entry in entries}
    depth = next(iter(held)).count(".") + 1 if held else 0
    for name in tracing.tensors:
        entry = ".".join(name.split(".")[:depth])
        if entry in held:
            held[entry].append(name)
    return held


def _candidates(model: nn.Module, tracing: Tracing, entries: Iterable[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Modules that are alike: those that were not reached at all, and two or more that were, wholly."""
    kinds: dict[tuple[object, ...], tuple[list[str], list[str]]] = {}
    for entry, names in _by_entry(tracing, entries).items():
        parameters = [n for n in names if n in tracing.parameters]
        module = model.get_submodule(entry)
        shapes = tuple((n.removeprefix(entry), tuple(map(_length, tracing.tensors[n]))) for n in names)
        waiting, alike = kinds.setdefault((type(module), repr(module), shapes), ([], []))
        if any(path == entry or path.startswith(f"{entry}.") for path in tracing.fused):
            continue
        if parameters and not tracing.reached.intersection(names) and not tracing.unused.intersection(parameters):
            waiting.append(entry)
        elif tracing.reached.issuperset(parameters):
            alike.append(entry)
    yield from ((w, a) for w, a in kinds.values() if w and len(a) > 1)


def _length(nodes: np.ndarray | None) -> int:
    return 1 if nodes is None else len(nodes)


class _Place:
    """What the trace says of the first of several modules that take the same place, ready to be said of another."""

    def __init__(
        self, tracing: Tracing, entry: str, held: list[str], outer: set[tuple[str, int]], own: np.ndarray
    ) -> None:
        self._tracing, self._entry, self._held, self._outer = tracing, entry, held, outer
        self._own = own  # per node: whether it belongs to this module alone
        self._known = [len(facts) for facts in tracing.graph.facts()]

    @classmethod
    def of(cls, tracing: Tracing, alike: list[str]) -> _Place | None:
        """None where the modules do not take the same place."""
        graph, tensors = tracing.graph, tracing.tensors
        labels = components(graph.edges, graph.nodes)
        held = _by_entry(tracing, alike)
        owner = _owners(tracing, list(held.values()), labels)
        outer: set[tuple[str, int]] = set()
        private: list[np.ndarray] = []
        for name in held[alike[0]]:
            for dim, nodes in enumerate(tensors[name]):
                if nodes is None:
                    continue
                rows = [tensors[e + name.removeprefix(alike[0])][dim] for e in alike]
                found = [labels[row] for row in rows if row is not None]
                if all(np.array_equal(found[0], row) for row in found[1:]):
                    outer.add((name, dim))
                elif all((owner[row] == k).all() for k, row in enumerate(found)):
                    private.append(found[0])
                else:
                    return None
        if not outer:
            return None
        inside = np.zeros(len(owner), dtype=bool)
        inside[np.concatenate([np.zeros(0, dtype=np.int64), *private])] = True
        whole = _closed(graph, labels, owner, inside)
        return cls(tracing, alike[0], held[alike[0]], outer, inside[labels]) if whole else None

    def take(self, entry: str, heard: bool) -> None:
        """`entry` takes this place: every fact about the module alone is said of it as well. `heard`: a pass that does
        not reach it tells something of its units."""
        graph, tensors = self._tracing.graph, self._tracing.tensors
        contractions, productions = len(graph.contractions), len(graph.productions)
        names = {name: entry + name.removeprefix(self._entry) for name in self._held}
        nodes = np.arange(graph.nodes, dtype=np.int32)
        own = np.concatenate([self._own, np.zeros(graph.nodes - len(self._own), dtype=bool)])  # of those before as well
        nodes[own] = graph.new(int(own.sum()))
        for name, other in names.items():
            for dim, (mine, theirs) in enumerate(zip(tensors[name], tensors[other], strict=True)):
                if mine is not None and theirs is not None:
                    if (name, dim) in self._outer:
                        graph.join(mine, theirs)
                    else:
                        nodes[mine] = theirs
                        if not heard:
                            graph.freeze(theirs, _UNHEARD)
        to = Relocation(self._entry, entry, names, own, nodes)
        for facts, known in zip(graph.facts(), self._known, strict=True):
            facts += [moved for fact in facts[:known] if (moved := fact.moved(to)) is not None]
        if not heard:
            graph.contractions[contractions:] = [replace(c, training=True) for c in graph.contractions[contractions:]]
            del graph.productions[productions:]
        self._tracing.reached.update(names.values())


def _owners(tracing: Tracing, held: list[list[str]], labels: np.ndarray) -> np.ndarray:
    """Per component: which of these lists holds all tensors that it touches, or _NONE or _SHARED."""
    owner = np.full(int(labels.max(initial=-1)) + 1, _NONE)
    by_name = {name: k for k, names in enumerate(held) for name in names}
    for name, dims in tracing.tensors.items():
        mine = by_name.get(name, _SHARED)
        for nodes in dims:
            if nodes is not None:
                here = labels[nodes]
                owner[here] = np.where((owner[here] == _NONE) | (owner[here] == mine), mine, _SHARED)
    return owner


def _closed(graph: Graph, labels: np.ndarray, owner: np.ndarray, inside: np.ndarray) -> bool:
    """Adds to `inside` what views make of its components; False where a view leads out of the module."""
    views = [(f.flat, *f.factors) for f in graph.factors]
    relations = [np.unique(np.concatenate([labels[ids.reshape(-1)] for ids in view])) for view in views]
    grown = True
    while grown:
        grown = False
        for parts in relations:
            if inside[parts].any() and not inside[parts].all():
                if (owner[parts[~inside[parts]]] != _NONE).any():
                    return False
                inside[parts] = grown = True
    return True
