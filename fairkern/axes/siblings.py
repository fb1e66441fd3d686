"""Modules of a list that no example input reached, and that do what their siblings do: experts without a token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from fairkern.axes.graph import Factors, Graph, Track
from fairkern.axes.tracing import Tracing
from fairkern.model.tensors import LISTS
from fairkern.types import Axis, CallSite

_NONE, _SHARED = -1, -2  # owners of a component: no tensor, tensors of several modules


def follow_siblings(model: nn.Module, tracing: Tracing) -> None:
    """Give modules of a `ModuleList` or `ModuleDict` that were not reached the part that their siblings play.

    Where two or more modules of a list were reached, are alike (class, settings, shapes) and take the same place in
    the model, a further one that is alike takes it as well. The same place: every axis of theirs either belongs to
    one component with its counterparts (the stream that all of them read), or reaches nothing outside its module.
    That holds for experts, and not for the stages of a network or heads on its stages. What does not qualify is left
    unreached, and so freezes whatever it may read.
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
                        place.take(entry)
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
        if any(path == entry or path.startswith(f"{entry}.") for path in tracing.experts):
            continue
        if parameters and not tracing.reached.intersection(names):
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
        self._freezes, self._edges = len(tracing.graph.freezes), len(tracing.graph.edges)

    @classmethod
    def of(cls, tracing: Tracing, alike: list[str]) -> _Place | None:
        """None where the modules do not take the same place."""
        graph, tensors = tracing.graph, tracing.tensors
        labels = _components(graph)
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

    def take(self, entry: str) -> None:
        """`entry` takes this place."""
        graph, tensors = self._tracing.graph, self._tracing.tensors
        names = {name: entry + name.removeprefix(self._entry) for name in self._held}
        to = np.arange(graph.nodes, dtype=np.int32)
        own = np.concatenate([self._own, np.zeros(graph.nodes - len(self._own), dtype=bool)])  # of those before as well
        to[own] = graph.new(int(own.sum()))
        for name, other in names.items():
            for dim, (mine, theirs) in enumerate(zip(tensors[name], tensors[other], strict=True)):
                if mine is not None and theirs is not None:
                    if (name, dim) in self._outer:
                        graph.join(mine, theirs)
                    else:
                        to[mine] = theirs
        self._copy(graph, to, own)
        self._copy_uses(graph, to, names, entry)
        self._tracing.reached.update(names.values())

    def _copy(self, graph: Graph, to: np.ndarray, own: np.ndarray) -> None:
        """What is said of positions."""
        for a, b in graph.edges[: self._edges]:
            here = own[a]
            if here.any():
                graph.join(to[a[here]], to[b[here]])
        for i, (nodes, reason) in enumerate(graph.freezes[: self._freezes]):
            here = nodes[own[nodes]]
            freeze = graph.freeze_unless_routed if i in graph.unless_routed else graph.freeze
            freeze = graph.freeze_unless_proven if i in graph.unless_proven else freeze
            freeze(to[here], reason)
        for f in list(graph.factors):
            if own[f.flat].any() or any(own[ids].any() for ids in f.factors):
                graph.factors.append(Factors(to[f.flat], tuple(to[ids] for ids in f.factors)))
        graph.ranked += [(to[nodes], k) for nodes, k in graph.ranked if own[nodes].any()]

    def _copy_uses(self, graph: Graph, to: np.ndarray, names: dict[str, str], entry: str) -> None:
        """What is said of the module's weights and of its calls."""
        tracks: dict[Track, Track] = {}

        def moved(track: Track | None) -> Track | None:
            if track is not None and track not in tracks:
                dims = tuple(to[d] if isinstance(d, np.ndarray) else d for d in track.dims)
                tracks[track] = replace(track, dims=dims)
            return None if track is None else tracks[track]

        def path(module: str) -> str:
            inside = module == self._entry or module.startswith(f"{self._entry}.")
            return entry + module.removeprefix(self._entry) if inside else module

        def site(s: CallSite) -> CallSite:
            return replace(s, module=path(s.module), weight=names.get(s.weight, s.weight))

        def weight(axis: Axis) -> Axis:
            return Axis(names[axis.tensor], axis.dim)

        graph.contractions += [
            replace(c, weight=weight(c.weight), nodes=to[c.nodes], activation=moved(c.activation), site=site(c.site))
            for c in graph.contractions
            if c.weight.tensor in names
        ]
        graph.productions += [
            replace(p, weight=weight(p.weight), nodes=to[p.nodes], site=site(p.site))
            for p in graph.productions
            if p.weight.tensor in names
        ]
        for name, (channels, groups, made) in list(graph.grouped.items()):
            if name in names:
                graph.grouped[names[name]] = (to[channels], None if groups is None else to[groups], to[made])
        for module, (channels, groups) in list(graph.normed.items()):
            if path(module) != module:
                graph.normed[path(module)] = (to[channels], to[groups])
        for module, channels in list(graph.features.items()):
            if path(module) != module:
                graph.features[path(module)] = to[channels]
        graph.sites += [(path(module), to[nodes]) for module, nodes in graph.sites if path(module) != module]
        for module, calls in list(self._tracing.size_calls):
            if path(module) != module:
                self._tracing.size_calls.append((path(module), [call.of(to) for call in calls]))
                self._tracing.alike[path(module)] = module


def _components(graph: Graph) -> np.ndarray:
    if not graph.edges:
        return np.arange(graph.nodes)
    a, b = (np.concatenate([edge[i] for edge in graph.edges]) for i in (0, 1))
    matrix = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(graph.nodes,) * 2)
    return connected_components(matrix, directed=False)[1]


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
