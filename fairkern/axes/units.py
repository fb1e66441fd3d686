"""Solve a trace: connected components of axis positions are units; units that touch the same axes, a group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from torch import nn

from fairkern.axes.depth import Depth
from fairkern.axes.extents import Extents, Lives, attributes, flop_terms, parameter_terms
from fairkern.axes.facts import Contraction, Edge, Factors, Production, Ranking
from fairkern.axes.graph import Graph
from fairkern.axes.grouping import Grouping
from fairkern.axes.kinds import holder, kept_units, kind_of
from fairkern.axes.places import Places
from fairkern.axes.routing import Routing
from fairkern.axes.size_calls import countable, size_places, size_sites
from fairkern.axes.sizes import attributes_like_children, attributes_like_own
from fairkern.axes.solver import NOT_READ, Solver, components, decide_factors
from fairkern.axes.taps import input_taps, output_taps
from fairkern.axes.tracing import Tracing
from fairkern.axes.unless import Unless
from fairkern.axes.unreached import freeze_unreached, note_train_only, remedies
from fairkern.model.replacements import replaceable
from fairkern.model.tensors import named_tensors
from fairkern.types import AxisGroup, GroupAxis, Replacement, Silence, SizeAttribute, SizeSite, UnitMap

ONE_UNIT = "all its positions are one unit"

_OnNodes = TypeVar("_OnNodes", Contraction, Production, Ranking)


@dataclass(frozen=True)
class Solution:
    """A map, and its size sites and attributes that code may compare its inputs with, none of them in use.

    `operators`: by module, those that its own code called, each once, in the order in which they came. `smaller`: for
    each run inputs on which the model does the same, and which may be smaller than its own; none where that is not
    known.
    """

    units: UnitMap
    sites: tuple[SizeSite, ...]
    compared: tuple[SizeAttribute, ...] = ()
    filled: tuple[SizeAttribute, ...] = ()  # to which code may fill up a tensor that its module holds
    operators: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    smaller: Sequence[Any] = ()

    @property
    def positions(self) -> int:
        """How many axis positions can be cut."""
        return sum(axis.positions.size for g in self.units.prunable for axis in self.units.groups[g].axes)


def solve(model: nn.Module, tracing: Tracing, dare: bool = False) -> tuple[Solution, Solution | None]:
    """Groups, taps, costs and size attributes of a traced model; and, to `dare`, the same with what only a proof can
    allow (code that may slice at fixed numbers), None where that is nothing.

    Linear in axis positions, up to sorting.
    """
    freeze_unreached(model, tracing)
    note_train_only(model, tracing)
    routing, depth = Routing(model, tracing, listed=dare), Depth.of(model, tracing)
    solver, daring = Solver(tracing.graph, routing.routed, routing.listed, more=routing.edges), None
    held = [freeze.nodes for freeze in tracing.graph.freezes if freeze.unless is Unless.PROVEN] if dare else []
    if held and _near(tracing.graph)[np.concatenate(held)].any():
        daring = Solver(tracing.graph, routing.routed, routing.listed, daring=True, more=routing.edges)
        if np.array_equal(daring.free(daring.nodes), solver.free(solver.nodes)):
            daring = None  # something else freezes the same
    certain = _solve(model, tracing, routing, depth, solver)
    more = None if daring is None else _solve(model, tracing, routing, depth, daring)
    return certain, more if more is not None and more.positions > certain.positions else None


def _read(graph: Graph) -> np.ndarray:
    """Per node: whether a weight contracts over it."""
    read = np.zeros(graph.nodes, dtype=bool)
    for c in graph.contractions:
        if not c.summed and c.whole is None:
            read[c.nodes] = True
    return read


def _near(graph: Graph) -> np.ndarray:
    """Per node: whether it could come to be read, whichever factors of views carry units. Tokens seldom could."""
    views = [Edge(np.resize(flat[:1], len(flat)), flat) for flat in map(_whole, graph.factors)]
    labels = components([*graph.edges, *views], graph.nodes)
    return np.isin(labels, labels[_read(graph)])


def _whole(view: Factors) -> np.ndarray:
    return np.concatenate([view.flat.reshape(-1), *view.factors])


def _solve(model: nn.Module, tracing: Tracing, routing: Routing, depth: Depth, solver: Solver) -> Solution:
    graph = tracing.graph
    routing.hold(solver)
    decide_factors(solver, routing.open_factors(), _read(graph), tracing.deadline)
    routing.counted(solver)
    contractions = [c for c in graph.contractions if c.whole is None or not solver.meet(c.whole, c.nodes)]
    _freeze_unconsumed(solver, contractions)
    places = Places.of(tracing, solver.labels)
    grouping = Grouping.of(places, solver)
    groups = _told(_groups(model, graph, contractions, routing, places, grouping), grouping, solver)
    sizes = Extents(grouping, [g.units for g in groups])
    depth.first = len(groups)
    params = tuple(parameter_terms(tracing, model, sizes, Lives(routing, grouping, depth.lives)))
    flops = tuple(flop_terms(tracing, sizes, depth.operations(tracing)))
    held = tuple(attributes(model, tracing, routing, sizes))
    own = attributes_like_own(model, tracing, sizes.of, sizes.extents) if tracing.sites else ()
    filled = tuple(a for a in own if a not in held)
    sites = tuple(size_sites(countable(graph.size_calls, sizes.even), sizes.of, sizes.extents))
    sited = {site.module for site in sites}
    frozen = tuple(places.frozen(solver))
    notes = [*tracing.notes, *remedies(tracing, {axis.reason for axis in frozen})]
    if tracing.unknown:
        notes.append("operators without a rule: " + ", ".join(sorted(tracing.unknown)))
    units = UnitMap(
        model=type(model).__name__,
        groups=groups,
        frozen=frozen,
        extents=tuple(sizes.extents),
        params=params,
        flops=flops,
        attributes=held,
        shapes={n: tuple(t.shape) for n, t in named_tensors(model).items()},
        notes=tuple(notes),
        replacements=tuple(Replacement(path, name) for path, name in replaceable(model)),
        lists={path: made.entries for path, made in routing.lists.items()},
        seen={path: places for path, places in size_places(graph.size_calls).items() if path in sited},
        kept=tuple(kept_units(model, tracing, solver)),
        computed=tuple(dict.fromkeys(made.tensor for made in graph.computed)),
    )
    units = depth.described(units, sizes)
    units = replace(units, extents=tuple(sizes.extents), classes=_classes(model, units.groups))
    compared = tuple(attributes_like_children(model, held, sizes.extents) if tracing.sites else ())
    operators = {path: tuple(names) for path, names in tracing.operators.items()}
    # a number that may be one of places says nothing where there are fewer of them
    mistaken = any(a.observed and sizes.extents[a.extent].length in tracing.places for a in held)
    small = () if mistaken else tuple(tracing.smaller)
    return Solution(units.freeze(sizes.uneven), sites, compared, filled, operators, small)


def _freeze_unconsumed(solver: Solver, contractions: Sequence[Contraction]) -> None:
    """What no weight reads, or where it could not be heard, stays."""
    consumed, tapped, still = (np.zeros(solver.count, dtype=bool) for _ in range(3))
    for c in contractions:
        if c.summed:
            continue
        consumed[solver.labels[c.nodes]] = True
        still[solver.labels[c.nodes]] |= c.still and not c.training
        if c.untapped or c.inner:
            continue
        tapped[solver.labels[c.nodes]] = True
        if c.activation is None or c.dim < 0:
            solver.freeze(c.nodes, f"its consumer {c.op} reads nothing that could be tapped")
    for c in contractions:
        if c.summed and not consumed[solver.labels[c.nodes]].any():
            solver.freeze(c.nodes, f"{c.op} runs over it")
    solver.freeze(np.flatnonzero(~consumed[solver.labels]), NOT_READ)
    solver.freeze(
        np.flatnonzero(~(tapped | still)[solver.labels]), "is consumed in train mode only, or by its own layer"
    )
    solver.relabel()


def _groups(
    model: nn.Module,
    graph: Graph,
    found: Sequence[Contraction],
    routing: Routing,
    places: Places,
    grouping: Grouping,
) -> tuple[AxisGroup, ...]:
    contractions, productions = _by_group(found, grouping), _by_group(graph.productions, grouping)
    rankings = _by_group(graph.rankings, grouping)
    modules = dict(model.named_modules())
    groups = []
    for g in range(len(grouping.rows)):
        group = _group(g, places, grouping, contractions[g], productions[g], modules)
        groups.append(routing.describe(group, [(len(ranking.nodes), ranking.k) for ranking in rankings[g]]))
    names = _unique_names([group.name for group in groups])
    return tuple(replace(group, name=name) for group, name in zip(groups, names, strict=True))


def _told(groups: Sequence[AxisGroup], grouping: Grouping, solver: Solver) -> tuple[AxisGroup, ...]:
    """The groups; one with a single unit says which factors of its views had to stay, if those were several."""
    told = []
    for g, group in enumerate(groups):
        if group.units == 1 and group.frozen == ONE_UNIT:
            why = [reason for flat, reason in solver.lost if (grouping.group[grouping.labels[flat]] == g).any()]
            first = list(dict.fromkeys(why))[:2]
            if len(first) == 2:
                said = f"{ONE_UNIT}: of its views one factor stays, as {first[0]}; of others another, as {first[1]}"
                group = replace(group, frozen=said)
        told.append(group)
    return tuple(told)


def _by_group(facts: Sequence[_OnNodes], grouping: Grouping) -> Mapping[int, list[_OnNodes]]:
    """The facts that concern each group."""
    found: dict[int, list[_OnNodes]] = defaultdict(list)
    for fact in facts:
        for g, _ in grouping.counted(fact.nodes):
            found[g].append(fact)
    return found


def _group(
    g: int,
    places: Places,
    grouping: Grouping,
    contractions: Sequence[Contraction],
    productions: Sequence[Production],
    modules: Mapping[str, nn.Module],
) -> AxisGroup:
    consuming = {c.weight for c in contractions}
    axes = []
    for a, positions in grouping.on_axes(g, places):
        silence = Silence.ZERO if places.axes[a] in consuming else Silence.NONE
        axes.append(GroupAxis(places.axes[a], len(places.nodes[a]), positions, silence))
    units = len(axes[0].positions)

    def placed(nodes: np.ndarray) -> np.ndarray | None:
        """None where not every unit has as many positions as any other."""
        positions = grouping.positions(g, nodes)
        return positions if positions is not None and len(positions) == units else None

    read = [(c, placed(c.nodes)) for c in contractions]
    made = [(p, placed(p.nodes)) for p in productions]
    uneven = (f"its units are of unequal size in {c.op}" for c, positions in read if positions is None)
    name, kind = _named(axes, productions, modules)
    return AxisGroup(
        name=name,
        kind=kind,
        units=units,
        axes=tuple(axes),
        taps=input_taps((c, positions) for c, positions in read if positions is not None),
        outputs=output_taps((p, positions) for p, positions in made if positions is not None),
        frozen=ONE_UNIT if units == 1 else next(uneven, None),
    )


def _named(
    axes: Sequence[GroupAxis], productions: Sequence[Production], modules: Mapping[str, nn.Module]
) -> tuple[str, str]:
    """Name and kind of a group: those of the module that makes its units."""
    holders = [a.axis for a in axes if not a.consumer] or [axes[0].axis]
    first = productions[0].weight if productions else holders[0]
    module = holder(first)
    kind = kind_of(modules.get(module))
    made = next((a.positions for a in axes if a.axis == first), np.zeros((0, 1)))
    if kind == "neuron" and (np.diff(made, axis=1) == 1).any():  # what a head holds lies side by side
        kind = "head"
    return module or first.tensor, kind


def _classes(model: nn.Module, groups: Sequence[AxisGroup]) -> dict[str, str]:
    """Of groups that are named after a module, its class: `features.3` by itself tells a reader little."""
    modules = dict(model.named_modules())
    named = ((group.name, modules.get(group.name.partition("[")[0])) for group in groups)
    return {name: type(module).__name__ for name, module in named if module is not None}


def _unique_names(names: list[str]) -> list[str]:
    """`stem`, `stem[1]`, … where several groups start in one module."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        k = seen[name] = seen.get(name, -1) + 1
        out.append(f"{name}[{k}]" if k else name)
    return out
