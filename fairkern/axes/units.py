"""Solve a trace: connected components of axis positions are units; units that touch the same axes, a group.

Array work throughout: `solver.py` finds the components, sorting and counting the groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from fairkern.axes.graph import Graph
from fairkern.axes.routing import Routing
from fairkern.axes.sites import size_sites
from fairkern.axes.sizes import observed_attributes, size_attributes
from fairkern.axes.solver import FREE, Solver, decide_factors
from fairkern.axes.tracing import Tracing
from fairkern.model.linear import transposed_linear
from fairkern.model.recurrent import reading
from fairkern.model.replacements import replaceable
from fairkern.model.tensors import named_tensors
from fairkern.types import (
    Axis,
    AxisGroup,
    CallSite,
    CostTerm,
    Extent,
    FrozenAxis,
    GroupAxis,
    Replacement,
    Side,
    Silence,
    SizeAttribute,
    SizeSite,
    Tap,
    UnitMap,
)


@dataclass
class _Places:
    """Every tracked position of every parameter and buffer: which axis, where on it, which component."""

    axes: list[Axis]
    nodes: list[np.ndarray]
    axis: np.ndarray
    position: np.ndarray
    component: np.ndarray


def _places(tracing: Tracing, labels: np.ndarray) -> _Places:
    axes, nodes = [], []
    for name, dims in tracing.tensors.items():
        for i, ids in enumerate(dims):
            if ids is not None:
                axes.append(Axis(name, i))
                nodes.append(ids)
    lengths = [len(n) for n in nodes]
    flat = np.concatenate(nodes) if nodes else np.empty(0, dtype=np.int64)
    axis = np.repeat(np.arange(len(axes)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths]) if nodes else flat
    return _Places(axes, nodes, axis, position, labels[flat])


def _signatures(places: _Places, count: int) -> np.ndarray:
    """A hash per component of the multiset of axes that it touches: equal for units of one group."""
    z = np.arange(1, len(places.axes) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(31)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(29)
    out = np.zeros(count, dtype=np.uint64)
    np.add.at(out, places.component, z[places.axis])
    return out


@dataclass(frozen=True)
class Solution:
    """A map and its size sites, none of them in use."""

    units: UnitMap
    sites: tuple[SizeSite, ...]

    @property
    def positions(self) -> int:
        """How many axis positions can be cut."""
        return sum(axis.positions.size for g in self.units.prunable for axis in self.units.groups[g].axes)


def solve(model: nn.Module, tracing: Tracing, dare: bool = False) -> tuple[Solution, Solution | None]:
    """Groups, taps, costs and size attributes of a traced model; and, to `dare`, the same with what only a proof can
    allow (code that may slice at fixed numbers), None where that is nothing.

    Linear in axis positions, up to sorting.
    """
    _freeze_unreached(model, tracing)
    _note_train_only(model, tracing)
    routing = Routing(model, tracing, listed=dare)
    solver, daring = Solver(tracing.graph, routing.routed, routing.listed), None
    if dare and tracing.graph.unless_proven:
        daring = Solver(tracing.graph, routing.routed, routing.listed, daring=True)
        if np.array_equal(daring.free(daring.nodes), solver.free(solver.nodes)):
            daring = None  # something else freezes the same
    certain = _solve(model, tracing, routing, solver)
    more = None if daring is None else _solve(model, tracing, routing, daring)
    return certain, more if more is not None and more.positions > certain.positions else None


def _solve(model: nn.Module, tracing: Tracing, routing: Routing, solver: Solver) -> Solution:
    graph = tracing.graph
    decide_factors(solver, graph.factors, tracing.deadline)
    _freeze_unconsumed(solver, graph)
    labels = solver.labels
    places = _places(tracing, labels)
    free = solver.component_reason == FREE

    group_of = np.full(solver.count, -1, dtype=np.int64)
    held = np.zeros(solver.count, dtype=bool)
    held[places.component] = True
    members = np.flatnonzero(held & free)
    _, inverse = np.unique(_signatures(places, solver.count)[members], return_inverse=True)
    group_of[members] = inverse.reshape(-1)
    group_of = _in_trace_order(group_of, places)

    contractions, productions = defaultdict(list), defaultdict(list)
    for c in graph.contractions:
        for g in _distinct(group_of[labels[c.nodes]]):
            contractions[g].append(c)
    for p in graph.productions:
        for g in _distinct(group_of[labels[p.nodes]]):
            productions[g].append(p)

    modules = dict(model.named_modules())
    by_group = _by_group(places, group_of)
    groups: list[AxisGroup] = []
    rank = np.full(solver.count, -1, dtype=np.int64)
    for g, rows in by_group:
        unit_components = _units_in_order(places, rows)
        rank[unit_components] = np.arange(len(unit_components))
        groups.append(_group(g, rows, places, rank, contractions[g], productions[g], labels, group_of, modules))
    ranked = defaultdict(list)
    for nodes, k in graph.ranked:
        for g in np.unique(group_of[labels[nodes]]):
            ranked[int(g)].append(k)
    groups = [routing.describe(group, ranked[g]) for g, group in enumerate(groups)]
    names = _unique_names([g.name for g in groups])
    groups = [replace(g, name=n) for g, n in zip(groups, names, strict=True)]

    sizes = _Extents(labels, group_of, [g.units for g in groups])
    lives = _Lives(routing, labels, group_of, rank)
    params = tuple(_params(tracing, model, sizes, lives))
    flops = tuple(CostTerm(factor, tuple(sizes.of(d) for d in dims)) for factor, dims in graph.flops)
    known = (*size_attributes(model, tracing), *routing.attributes(model))
    attributes = [SizeAttribute(m, a, sizes.of(n)) for m, a, n in known]
    observed = observed_attributes(model, tracing, sizes.of, lambda e: bool(sizes.extents[e].parts))
    named = {(a.module, a.attribute) for a in attributes}
    attributes += [SizeAttribute(m, a, e, observed=True) for m, a, e in observed if (m, a) not in named]
    found_sites = size_sites(tracing.size_calls, sizes.of, sizes.extents)
    sites = tuple(replace(s, like=tracing.alike.get(s.module, "")) for s in found_sites)
    reasons = dict(sizes.uneven)
    notes = list(tracing.notes)
    if tracing.unknown:
        notes.append("operators without a rule: " + ", ".join(sorted(tracing.unknown)))
    units = UnitMap(
        model=type(model).__name__,
        groups=tuple(groups),
        frozen=tuple(_frozen_axes(places, solver)),
        extents=tuple(sizes.extents),
        params=params,
        flops=flops,
        attributes=tuple(attributes),
        shapes={n: tuple(t.shape) for n, t in named_tensors(model).items()},
        notes=tuple(notes),
        replacements=tuple(Replacement(path, name) for path, name in replaceable(model)),
        lists={path: made.entries for path, made in routing.lists.items()},
    )
    return Solution(units.freeze(reasons), sites)


def _counted(groups: np.ndarray) -> list[tuple[int, int]]:
    """Every group among these (−1: none) and how often it is there, in order; without sorting."""
    counts = np.bincount(groups + 1)
    present = np.flatnonzero(counts[1:])
    return list(zip(present.tolist(), counts[1:][present].tolist(), strict=True))


def _distinct(groups: np.ndarray) -> list[int]:
    return [g for g, _ in _counted(groups)]


def _freeze_unreached(model: nn.Module, tracing: Tracing) -> None:
    """Parameters that no run visited stay, and so does every axis that an unvisited weight might read."""
    reached = tracing.reached | tracing.reached_training
    missed = sorted(tracing.parameters - reached)
    if not missed:
        return
    reason = "is not reached by the example inputs"
    shapes = {n: tuple(t.shape) for n, t in named_tensors(model).items()}
    for name in missed:
        for nodes in tracing.tensors[name]:
            if nodes is not None:
                tracing.graph.freeze(nodes, reason)
    modules = dict(model.named_modules())
    by_length: dict[int, list[np.ndarray]] = defaultdict(list)
    for c in tracing.graph.contractions:
        by_length[len(c.nodes)].append(c.nodes)
    for name in missed:
        for n in list(by_length):
            if _may_read(modules.get(name.rpartition(".")[0]), shapes[name], n):
                for nodes in by_length.pop(n):
                    tracing.graph.freeze(nodes, f"may be read by {name}, which the example inputs do not reach")
    tracing.notes.append(f"{len(missed)} parameters are not reached by the example inputs, first {missed[0]}")


def _note_train_only(model: nn.Module, tracing: Tracing) -> None:
    """Auxiliary heads: nothing is heard of them in eval mode, so that nothing says which of their units matter."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    heads = [name for name in sizes if name in tracing.reached_training - tracing.reached]
    if heads:
        count, total = sum(sizes[name] for name in heads), sum(sizes.values())
        tracing.notes.append(
            f"{count} of {total} parameters are reached in train mode only, first {heads[0]}: units of theirs are not "
            "cut; a model that is not trained further can do without these modules"
        )


def _may_read(module: nn.Module | None, shape: tuple[int, ...], n: int) -> bool:
    """Whether a tensor of this shape may meet a dimension of `n` positions, going by sizes alone."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return n in (module.in_channels, module.out_channels)
    if len(shape) == 2:  # a matrix may follow a flatten
        return any(size % n == 0 for size in shape)
    return n in shape


def _freeze_unconsumed(solver: Solver, graph: Graph) -> None:
    consumed, tapped, still = (np.zeros(solver.count, dtype=bool) for _ in range(3))
    for c in graph.contractions:
        consumed[solver.labels[c.nodes]] = True
        still[solver.labels[c.nodes]] |= c.still
        if c.untapped or c.inner:
            continue
        tapped[solver.labels[c.nodes]] = True
        if c.activation is None or c.dim < 0:
            solver.freeze(c.nodes, f"its consumer {c.op} reads nothing that could be tapped")
    solver.freeze(np.flatnonzero(~consumed[solver.labels]), "no weight contracts over it")
    solver.freeze(np.flatnonzero((still & ~tapped)[solver.labels]), "no input changes it, so that no sample scores it")
    solver.freeze(np.flatnonzero(~tapped[solver.labels]), "is consumed in train mode only, or by its own layer")
    solver.relabel()


def _in_trace_order(group_of: np.ndarray, places: _Places) -> np.ndarray:
    """Renumber groups by the first axis position that belongs to each."""
    g = group_of[places.component]
    in_one = np.flatnonzero(g >= 0)[::-1]
    first = np.zeros(g.max(initial=-1) + 1, dtype=np.int64)
    first[g[in_one]] = in_one  # the last that is written is the first that there is
    order = np.empty_like(first)
    order[np.argsort(first)] = np.arange(len(first))
    out = np.full_like(group_of, -1)
    hit = group_of >= 0
    out[hit] = order[group_of[hit]]
    return out


def _by_group(places: _Places, group_of: np.ndarray) -> list[tuple[int, np.ndarray]]:
    g = group_of[places.component]
    rows = np.flatnonzero(g >= 0)
    rows = rows[np.argsort(g[rows], kind="stable")]
    ids, starts = np.unique(g[rows], return_index=True)
    return [(int(i), part) for i, part in zip(ids, np.split(rows, starts[1:]), strict=True)] if len(ids) else []


def _units_in_order(places: _Places, rows: np.ndarray) -> np.ndarray:
    """Components of a group, by their first position on the group's first axis."""
    on_first = rows[places.axis[rows] == places.axis[rows[0]]]
    components = places.component[on_first]
    _, index = np.unique(components, return_index=True)
    return components[np.sort(index)]


def _positions(unit: np.ndarray, position: np.ndarray) -> np.ndarray | None:
    """`[units, per unit]` of ascending positions, or None if the units do not hold equally many."""
    counts = np.bincount(unit)
    if len(counts) == 0 or (counts != counts[0]).any():
        return None
    return position[np.argsort(unit, kind="stable")].reshape(len(counts), counts[0])


def _group(
    g: int,
    rows: np.ndarray,
    places: _Places,
    rank: np.ndarray,
    contractions: list,
    productions: list,
    labels: np.ndarray,
    group_of: np.ndarray,
    modules: dict[str, nn.Module],
) -> AxisGroup:
    consuming = {c.weight for c in contractions}
    axes: list[GroupAxis] = []
    for a in np.unique(places.axis[rows]):
        here = rows[places.axis[rows] == a]
        positions = _positions(rank[places.component[here]], places.position[here])
        assert positions is not None  # equal signatures
        axis = places.axes[a]
        axes.append(
            GroupAxis(axis, len(places.nodes[a]), positions, Silence.ZERO if axis in consuming else Silence.NONE)
        )
    units = axes[0].positions.shape[0]
    frozen = "all its positions are one unit" if units == 1 else None

    def on(nodes: np.ndarray) -> np.ndarray | None:
        mine = np.flatnonzero(group_of[labels[nodes]] == g)
        return _positions(rank[labels[nodes[mine]]], mine)

    taps: dict[object, Tap] = {}
    heard: set[tuple[Side, CallSite]] = set()  # further runs reach the same sites again
    for c in contractions:
        positions = on(c.nodes)
        if positions is None or len(positions) != units:
            frozen = frozen or f"its units are of unequal size in {c.op}"
            continue
        hidden = c.side is Side.HIDDEN
        key = (c.site, reading(c.weight.tensor.rpartition(".")[2])) if hidden else (c.activation, c.dim)
        known = taps.get(key)
        if c.untapped or (known is None and (c.side, c.site) in heard):
            continue
        if not hidden:
            heard.add((c.side, c.site))
        sites, weights = (known.sites, known.weights) if known else ((), ())
        sites = sites if c.site in sites else (*sites, c.site)
        weights = weights if c.weight in weights else (*weights, c.weight)
        taps[key] = Tap(sites, c.side, c.dim, len(c.nodes), positions, weights)
    outputs = []
    for p in productions:
        positions = on(p.nodes)
        if positions is not None and len(positions) == units and (Side.OUTPUT, p.site) not in heard:
            heard.add((Side.OUTPUT, p.site))
            outputs.append(Tap((p.site,), Side.OUTPUT, p.dim, len(p.nodes), positions, (p.weight,)))
    holders = [a.axis for a in axes if not a.consumer] or [axes[0].axis]
    makers = [p.weight for p in productions] or holders
    first = makers[0]
    holder = _holder(first)
    kind = _kind(modules.get(holder))
    if kind == "neuron" and next((a.positions.shape[1] for a in axes if a.axis == first), 1) > 1:
        kind = "head"
    return AxisGroup(
        name=holder or first.tensor,
        kind=kind,
        units=units,
        axes=tuple(axes),
        taps=tuple(taps.values()),
        outputs=tuple(outputs),
        frozen=frozen,
    )


def _holder(axis: Axis) -> str:
    """The module that an axis belongs to; for the original of a parametrized tensor, the module that is so."""
    return f".{axis.module}".partition(".parametrizations.")[0][1:]


def _kind(module: nn.Module | None) -> str:
    if isinstance(module, nn.modules.conv._ConvNd):
        return "channel"
    return "neuron" if isinstance(module, (nn.Linear, nn.MultiheadAttention)) or transposed_linear(module) else "unit"


def _unique_names(names: list[str]) -> list[str]:
    """`stem`, `stem[1]`, … where several groups start in one module."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        k = seen[name] = seen.get(name, -1) + 1
        out.append(f"{name}[{k}]" if k else name)
    return out


class _Extents:
    """Node vectors as sizes that shrink with the groups, each stored once."""

    def __init__(self, labels: np.ndarray, group_of: np.ndarray, units: list[int]) -> None:
        self._labels, self._group_of, self._units = labels, group_of, units
        self._index: dict[Extent, int] = {}
        self._by_array: dict[int, tuple[np.ndarray, int]] = {}
        self.extents: list[Extent] = []
        self.uneven: dict[int, str] = {}

    def of(self, nodes: np.ndarray) -> int:
        known = self._by_array.get(id(nodes))
        if known is not None:
            return known[1]
        parts = []
        for g, count in _counted(self._group_of[self._labels[nodes]]):
            if count % self._units[g]:
                self.uneven[g] = "its units are of unequal size along one dimension"
            parts.append((g, count // self._units[g]))
        extent = Extent(len(nodes), tuple(parts))
        index = self._index.setdefault(extent, len(self.extents))
        if index == len(self.extents):
            self.extents.append(extent)
        self._by_array[id(nodes)] = (nodes, index)
        return index

    def alive(self, group: int, unit: int) -> int:
        """1 while this unit stays."""
        extent = Extent(1, ((group, 1),), unit)
        index = self._index.setdefault(extent, len(self.extents))
        if index == len(self.extents):
            self.extents.append(extent)
        return index


class _Lives:
    """Which unit a tensor goes with as a whole: that of the expert of a list that it lies in."""

    def __init__(self, routing: Routing, labels: np.ndarray, group_of: np.ndarray, rank: np.ndarray) -> None:
        self._units: dict[str, tuple[int, int]] = {}  # path of an entry -> group and unit
        self._lists = tuple(f"{path}." for path in routing.lists)
        for path, made in routing.lists.items():
            for name, node in zip(made.entries.names, made.logits, strict=True):
                component = labels[node]
                if group_of[component] >= 0:
                    self._units[f"{path}.{name}"] = (int(group_of[component]), int(rank[component]))

    def of(self, tensor: str) -> list[tuple[int, int]]:
        """Groups and units; several where lists lie in each other."""
        inside = [prefix for prefix in self._lists if tensor.startswith(prefix)]
        entries = [prefix + tensor.removeprefix(prefix).partition(".")[0] for prefix in inside]
        return [self._units[entry] for entry in entries if entry in self._units]


def _params(tracing: Tracing, model: nn.Module, sizes: _Extents, lives: _Lives) -> Iterable[CostTerm]:
    for name, parameter in model.named_parameters():
        coefficient, extents = 1.0, [sizes.alive(*life) for life in lives.of(name)]
        for n, nodes in zip(parameter.shape, tracing.tensors[name], strict=True):
            index = None if nodes is None else sizes.of(nodes)
            if index is None or not sizes.extents[index].parts:
                coefficient *= n
            else:
                extents.append(index)
        yield CostTerm(coefficient, tuple(extents))


def _frozen_axes(places: _Places, solver: Solver) -> Iterable[FrozenAxis]:
    codes = solver.component_reason[places.component]
    hit = np.flatnonzero(codes != FREE)
    axis, code = places.axis[hit], codes[hit]
    begins = np.flatnonzero(np.diff(axis, prepend=-1).astype(bool) | np.diff(code, prepend=FREE).astype(bool))
    stretches = np.diff(begins, append=len(hit))
    pairs, which = np.unique(np.stack([axis[begins], code[begins]], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(which.reshape(-1), weights=stretches).astype(np.int64)
    for (a, c), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        yield FrozenAxis(places.axes[a], count, len(places.nodes[a]), solver.reasons[c])
