"""Fused experts: which of them a router can leave out, and inner positions that every expert cuts for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from fairkern.axes.graph import Contraction
from fairkern.axes.trace import Tracing
from fairkern.experts import multiple
from fairkern.types import Axis, AxisGroup

# names under which modules and configurations keep the number of experts and the inner size of one
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_INNER = ("intermediate_dim", "moe_intermediate_size", "expert_dim", "intermediate_size")


class Routing:
    """What the trace says of the fused experts of a model.

    An expert can go where masking it is removing it: its positions lie on the experts' own tensors, on a router
    (a matrix that makes a logit for each expert) and on vectors, and are joined with nothing else. A softmax over
    the logits and a choice of the k largest then hold no expert back: with a logit of −inf it is as good as gone.
    """

    def __init__(self, model: nn.Module, tracing: Tracing) -> None:
        self._tracing = tracing
        self.nodes: np.ndarray | None = None  # per node: whether it belongs to an expert that can be left out
        self._own: dict[str, str] = {}  # tensor with a row per expert -> module
        self._multiple: dict[str, int] = {}
        self._routers: dict[str, set[Axis]] = {}  # module -> axes of routers
        for path, layout in tracing.experts.items():
            module = model.get_submodule(path)
            self._multiple[path] = multiple(module)
            self._own |= {f"{path}.{name}".lstrip("."): path for name in layout.held(module)}
        if tracing.experts:
            self._find(model)

    def _down(self, path: str) -> str:
        return f"{path}.{self._tracing.experts[path].down}".lstrip(".")

    def _find(self, model: nn.Module) -> None:
        graph, tensors = self._tracing.graph, self._tracing.tensors
        ones = np.ones(sum(len(a) for a, _ in graph.edges), dtype=np.int8)
        ends = [np.concatenate([edge[i] for edge in graph.edges]) for i in (0, 1)]
        _, labels = connected_components(coo_array((ones, tuple(ends)), shape=(graph.nodes,) * 2), directed=False)
        self.nodes = np.zeros(graph.nodes, dtype=bool)
        contracted = {(c.weight.tensor, c.weight.dim) for c in graph.contractions}
        axes_of = _AxesOf(tensors, labels)
        for path in self._tracing.experts:
            experts = tensors[self._down(path)][0]
            if experts is None:
                continue
            components = np.unique(labels[experts])
            touched = axes_of(components)
            others = [a for a in touched if self._own.get(a.tensor) != path or a.dim != 0]
            ranks = {a: len(tensors[a.tensor]) for a in others}
            routers = {a for a in others if ranks[a] == 2 and (a.tensor, 1 - a.dim) in contracted}
            whole = all(np.array_equal(np.unique(labels[tensors[a.tensor][a.dim]]), components) for a in touched)
            plain = all(a in routers or ranks[a] == 1 for a in others)
            if routers and plain and whole and len(components) == len(experts):
                self._routers[path] = routers
                self.nodes |= np.isin(labels, components)
                self._consume(path, experts)

    def _consume(self, path: str, experts: np.ndarray) -> None:
        """The down projection contracts what an expert made of its tokens: that is where a whole expert is heard."""
        graph, down = self._tracing.graph, self._down(path)
        inner = [c for c in graph.contractions if c.weight.tensor == down and c.side == "inner"]
        graph.contractions += [
            Contraction(Axis(down, 0), experts, c.activation, 1, c.site, c.op, c.training, side="expert") for c in inner
        ]

    def describe(self, group: AxisGroup, ranked: Sequence[int]) -> AxisGroup:
        """The group as experts or as inner positions of experts, if it is either.

        `ranked`: for every choice of the k largest among its units, k.
        """
        owners = {self._own.get(a.axis.tensor) for a in group.axes}
        path = next((p for p in owners if p is not None), None)
        if path is None:
            return group
        if any(tap.side == "expert" for tap in group.taps):
            routers = self._routers[path]
            axes = tuple(replace(a, routes=a.axis in routers) for a in group.axes)
            least = max([1, *ranked])
            frozen = group.frozen or (None if least < group.units else f"all of them are needed: {least} a token")
            return replace(group, name=path, kind="expert", axes=axes, least=least, frozen=frozen)
        own = len(owners) == 1 and all(a.axis.dim > 0 for a in group.axes)
        if own and group.taps and all(tap.side == "inner" for tap in group.taps):
            name = f"{path}.{self._tracing.experts[path].up}".lstrip(".")
            experts = self._tracing.tensors[self._down(path)][0]
            sets = 1 if experts is None else len(experts)
            return replace(group, name=name, kind="expert neuron", sets=sets, multiple=self._multiple[path])
        return group

    def attributes(self, model: nn.Module) -> Iterator[tuple[str, str, np.ndarray]]:
        """(module path, attribute, nodes whose count it holds) for the numbers of experts and their inner sizes."""
        for path, layout in self._tracing.experts.items():
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


class _AxesOf:
    """The axes that any of some components touch; positions are sorted by component once."""

    def __init__(self, tensors: Mapping[str, tuple[np.ndarray | None, ...]], labels: np.ndarray) -> None:
        held = [(Axis(name, i), d) for name, dims in tensors.items() for i, d in enumerate(dims) if d is not None]
        self._axes = [axis for axis, _ in held]
        component = labels[np.concatenate([nodes for _, nodes in held])]
        order = np.argsort(component, kind="stable")
        self._component = component[order]
        self._axis = np.repeat(np.arange(len(held)), [len(nodes) for _, nodes in held])[order]

    def __call__(self, components: np.ndarray) -> list[Axis]:
        first = np.searchsorted(self._component, components, "left")
        last = np.searchsorted(self._component, components, "right")
        found = [self._axis[a:b] for a, b in zip(first, last, strict=True)]
        return [self._axes[i] for i in np.unique(np.concatenate(found))]


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
