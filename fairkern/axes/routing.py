"""Experts: which of them a router can leave out, and inner positions that every fused expert cuts for itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from fairkern.axes.dims import Track
from fairkern.axes.facts import Contraction, Edge, Factors
from fairkern.axes.grouped_choice import GroupedChoice, grouped_choices, ordinary
from fairkern.axes.listed import RoutedList, counts, routed_lists
from fairkern.axes.routers import Routers
from fairkern.axes.solver import Solver
from fairkern.axes.tracing import Tracing
from fairkern.model.fused import multiple
from fairkern.model.tensors import LISTS
from fairkern.types import Axis, AxisGroup, CallSite, GroupAxis, Side, Silence

# names under which modules and configurations keep the number of experts and the inner size of one
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_INNER = ("intermediate_dim", "moe_intermediate_size", "expert_dim", "intermediate_size")


class Routing:
    """What the trace says of the experts of a model.

    An expert can go where masking it is removing it: its positions lie on the experts' own tensors, on a router
    (a matrix that makes a logit for each expert) and on vectors, and are joined with nothing else. A softmax over
    the logits and a choice of the k largest then hold no expert back: with a logit of −inf it is as good as gone.

    Where a router chooses groups of experts first, each group loses as many (`grouped_choice.py`).

    Fused experts are traced to their router. Modules of a list are matched with one (`listed.py`), where a proof is
    going to follow: then nothing but the model's output holds them back here.
    """

    def __init__(self, model: nn.Module, tracing: Tracing, listed: bool) -> None:
        self._tracing = tracing
        self.routed: np.ndarray | None = None  # per node: whether it belongs to an expert that can be left out
        self.listed: np.ndarray | None = None  # to one that is a module of a list
        self.lists: dict[str, RoutedList] = {}
        self._own: dict[str, str] = {}  # tensor with a row per expert -> module
        self._multiple: dict[str, int] = {}
        self._routers: dict[str, frozenset[Axis]] = {}  # module -> axes of routers
        self._grouped: dict[str, GroupedChoice] = {}
        for path, layout in tracing.fused.items():
            module = model.get_submodule(path)
            self._multiple[path] = multiple(module)
            self._own |= {f"{path}.{name}".lstrip("."): path for name in layout.held(module)}
        if tracing.fused or (listed and tracing.graph.rankings and any(isinstance(m, LISTS) for m in model.modules())):
            choices = grouped_choices(tracing.graph)
            routers = Routers(tracing, [edge for choice in choices for edge in choice.edges])
            if tracing.fused:
                self._find_fused(routers, choices)
            if listed:
                self._find_listed(model, routers, choices)
        choices = list(self._grouped.values())
        self.edges: list[Edge] = ordinary(tracing.graph, choices) + [e for choice in choices for e in choice.edges]

    def _down(self, path: str) -> str:
        return f"{path}.{self._tracing.fused[path].down}".lstrip(".")

    def open_factors(self) -> list[Factors]:
        """The views of which it is open which factor carries units: not those of which every group loses as many."""
        decided = {view for choice in self._grouped.values() for view in choice.views}
        return [relation for relation in self._tracing.graph.factors if relation not in decided]

    def hold(self, solver: Solver) -> None:
        """What stays within the groups that a router chooses has the experts in them stay."""
        for choice in self._grouped.values():
            for within in choice.within:
                reason = solver.any_reason(within)
                if reason is not None:
                    solver.freeze(choice.flat, reason)
        solver.relabel()

    def counted(self, solver: Solver) -> None:
        """How many experts a group has follows those of the first group: all lose as many."""
        for choice in self._grouped.values():
            solver.edges += [Edge(within, choice.flat[0]) for within in choice.within]
        solver.relabel()

    def _group(self, path: str, nodes: np.ndarray, known: Routers, choices: Sequence[GroupedChoice]) -> np.ndarray:
        """Keeps the choice of groups among these experts, if there is one; and, per node, whether it counts what is
        within its groups."""
        within = np.zeros(self._tracing.graph.nodes, dtype=bool)
        choice = GroupedChoice.of_all([c for c in choices if known.key(c.flat.reshape(-1)) == known.key(nodes)])
        if choice is not None:
            self._grouped[path] = choice
            for places in choice.within:
                within |= known.joined(places)
        return within

    def _find_fused(self, known: Routers, choices: Sequence[GroupedChoice]) -> None:
        graph, tensors = self._tracing.graph, self._tracing.tensors
        self.routed = np.zeros(graph.nodes, dtype=bool)
        for path in self._tracing.fused:
            experts = tensors[self._down(path)][0]
            if experts is None:
                continue
            routers = known.of(experts, {name for name, owner in self._own.items() if owner == path})
            if routers:
                self._routers[path] = routers
                self.routed |= known.joined(experts) | self._group(path, experts, known, choices)
                # the down projection contracts what an expert made of its tokens: that is where it is heard whole
                down = Axis(self._down(path), 0)
                inner = [c for c in graph.contractions if c.weight.tensor == down.tensor and c.side is Side.INNER]
                graph.contractions += [replace(c, weight=down, nodes=experts, dim=1, side=Side.EXPERT) for c in inner]

    def _find_listed(self, model: nn.Module, known: Routers, choices: Sequence[GroupedChoice]) -> None:
        graph = self._tracing.graph
        logits = {known.key(ranking.nodes): ranking.nodes for ranking in graph.rankings}
        found = [(routers, nodes) for nodes in logits.values() if (routers := known.of(nodes))]
        self.listed = np.zeros(graph.nodes, dtype=bool)
        for made in routed_lists(model, self._tracing, found):
            self.listed |= self._group(made.path, made.logits, known, choices)
            entries = graph.new(len(made.logits))
            graph.join(entries, made.logits)
            self._tracing.tensors[made.path] = (entries,)
            self._own[made.path], self._routers[made.path], self.lists[made.path] = made.path, made.routers, made
            self.listed = np.concatenate([self.listed | known.joined(made.logits), np.ones(len(entries), dtype=bool)])
            known.more(len(entries))
            held = Track((len(entries),), (entries,))
            axis, site = Axis(made.path, 0), CallSite(made.path)
            graph.contractions.append(
                Contraction(axis, entries, held, 0, site, "the experts of a list", side=Side.EXPERT)
            )
        if self.routed is not None:
            self.routed = np.concatenate([self.routed, np.zeros(graph.nodes - len(self.routed), dtype=bool)])

    def describe(self, group: AxisGroup, ranked: Sequence[tuple[int, int]]) -> AxisGroup:
        """The group as experts or as inner positions of experts, if it is either.

        `ranked`: for every choice of the k largest among so many of its units, how many and k.
        """
        owners = {self._own.get(a.axis.tensor) for a in group.axes}
        path = next((p for p in owners if p is not None), None)
        if path is None:
            return group
        if any(tap.side.whole for tap in group.taps):
            routers = self._routers[path]
            axes = tuple(replace(a, silence=self._silence(a, routers)) for a in group.axes)
            least = max([1, self._tracing.slots.get(path, 1), *(k for n, k in ranked if n == group.units)])
            needed = f"{least} a token"
            sets, choice = 1, self._grouped.get(path)
            if choice is not None:
                sets, chosen = len(choice.flat), choice.chosen
                least = max(choice.least, -(-least // chosen))
                needed = f"{least} in each group"
            units = group.units // sets
            frozen = group.frozen or (None if least < units else f"all of them are needed: {needed}")
            return replace(
                group, name=path, kind="expert", axes=axes, units=units, sets=sets, least=least, frozen=frozen
            )
        own = len(owners) == 1 and all(a.axis.dim > 0 for a in group.axes)
        if own and group.taps and all(tap.side is Side.INNER for tap in group.taps):
            name = f"{path}.{self._tracing.fused[path].up}".lstrip(".")
            experts = self._tracing.tensors[self._down(path)][0]
            sets = 1 if experts is None else len(experts)
            return replace(group, name=name, kind="expert neuron", sets=sets, multiple=self._multiple[path])
        return group

    def _silence(self, held: GroupAxis, routers: Collection[Axis]) -> Silence:
        """Of an expert's axis: at its router; the modules of a list have no weight that could be set to zero."""
        if held.axis in routers:
            return Silence.MINUS_INFINITY
        return Silence.NONE if held.axis.tensor in self.lists else held.silence

    def attributes(self, model: nn.Module) -> Iterator[tuple[str, str, np.ndarray]]:
        """(module path, attribute, nodes whose count it holds) for the numbers of experts and their inner sizes."""
        for made in self.lists.values():
            yield from ((place, name, made.logits) for place, name in counts(model, made))
            found = _configuration(model, made.path, _COUNTS, len(made.logits))
            if found is not None:
                yield (*found, made.logits)
        for path, layout in self._tracing.fused.items():
            down = self._tracing.tensors[self._down(path)]
            parent = path.rpartition(".")[0]
            routers = sorted({a.module for a in self._routers.get(path, ())})
            for names, nodes, where in (
                (_COUNTS, down[0], [path, *routers, parent, ""]),
                (_INNER, down[layout.inner_dim], [path]),
            ):
                if nodes is None:
                    continue
                for place in dict.fromkeys(where):
                    held = vars(model.get_submodule(place))
                    yield from ((place, n, nodes) for n in names if _holds(held.get(n), len(nodes)))
                found = _configuration(model, path, names, len(nodes))
                if found is not None:
                    yield (*found, nodes)


def _holds(value: Any, n: int) -> bool:
    return type(value) is int and value == n


def _configuration(model: nn.Module, path: str, names: Sequence[str], n: int) -> tuple[str, str] | None:
    """The entry of the experts' configuration that holds `n`, under the first module that has this configuration."""
    config = getattr(model.get_submodule(path), "config", None)
    held: Mapping[str, nn.Module] = dict(model.named_modules())
    first = next((p for p, m in held.items() if config is not None and m.__dict__.get("config") is config), None)
    # a layer without experts may have the same size under a more general name, so the first name that exists decides
    name = next((name for name in names if hasattr(config, name)), None)
    if first is None or name is None or not _holds(getattr(config, name), n):
        return None
    return first, f"config.{name}"
