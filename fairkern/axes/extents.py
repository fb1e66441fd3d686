"""Sizes that shrink with the groups, and what is made of them: parameters, operations, attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch import nn

from fairkern.axes.grouping import Grouping
from fairkern.axes.routing import Routing
from fairkern.axes.sizes import observed_attributes, size_attributes
from fairkern.axes.tracing import Tracing
from fairkern.types import CostTerm, Extent, SizeAttribute


class Extents:
    """Node vectors as sizes that shrink with the groups, each stored once."""

    def __init__(self, grouping: Grouping, units: Sequence[int]) -> None:
        """`units`: per group, how many it has, or each of its sets."""
        self._grouping, self._units = grouping, units
        self._index: dict[Extent, int] = {}
        self._by_array: dict[int, tuple[np.ndarray, int]] = {}
        self.extents: list[Extent] = []
        self.uneven: dict[int, str] = {}  # groups that have to stay, and why

    def of(self, nodes: np.ndarray) -> int:
        """Index of the extent that counts these positions."""
        known = self._by_array.get(id(nodes))
        if known is not None:
            return known[1]
        parts = []
        for g, count in self._grouping.counted(nodes):
            if count % self._units[g]:
                self.uneven[g] = "its units are of unequal size along one dimension"
            parts.append((g, count // self._units[g]))
        index = self._stored(Extent(len(nodes), tuple(parts)))
        self._by_array[id(nodes)] = (nodes, index)
        return index

    def even(self, nodes: np.ndarray) -> bool:
        """Whether these positions hold every unit of their groups equally often, so that their number can follow."""
        for g, _ in self._grouping.counted(nodes):
            positions = self._grouping.positions(g, nodes)
            if positions is None or len(positions) != np.count_nonzero(self._grouping.group == g):
                return False
        return True

    def alive(self, group: int, unit: int) -> int:
        """1 while this unit stays."""
        return self._stored(Extent(1, ((group, 1),), unit))

    def shrinks(self, index: int) -> bool:
        return bool(self.extents[index].parts)

    def _stored(self, extent: Extent) -> int:
        index = self._index.setdefault(extent, len(self.extents))
        if index == len(self.extents):
            self.extents.append(extent)
        return index


class Lives:
    """Which unit a tensor goes with as a whole: that of the expert of a list, or of the branch, that it lies in."""

    def __init__(self, routing: Routing, grouping: Grouping, branches: Callable[[str], list[tuple[int, int]]]) -> None:
        self._branches = branches
        self._units: dict[str, tuple[int, int]] = {}  # path of an entry -> group and unit
        self._lists = tuple(f"{path}." for path in routing.lists)
        for path, made in routing.lists.items():
            for name, node in zip(made.entries.names, made.logits, strict=True):
                component = grouping.labels[node]
                if grouping.group[component] >= 0:
                    self._units[f"{path}.{name}"] = (int(grouping.group[component]), int(grouping.unit[component]))

    def of(self, tensor: str) -> list[tuple[int, int]]:
        """Groups and units; several where lists lie in each other."""
        inside = [prefix for prefix in self._lists if tensor.startswith(prefix)]
        entries = [prefix + tensor.removeprefix(prefix).partition(".")[0] for prefix in inside]
        return [*(self._units[entry] for entry in entries if entry in self._units), *self._branches(tensor)]


def parameter_terms(tracing: Tracing, model: nn.Module, sizes: Extents, lives: Lives) -> Iterator[CostTerm]:
    """The element count of every parameter."""
    for name, parameter in model.named_parameters():
        coefficient, extents = 1.0, [sizes.alive(*life) for life in lives.of(name)]
        for n, nodes in zip(parameter.shape, tracing.tensors[name], strict=True):
            index = None if nodes is None else sizes.of(nodes)
            if index is None or not sizes.shrinks(index):
                coefficient *= n
            else:
                extents.append(index)
        yield CostTerm(coefficient, tuple(extents))


def flop_terms(tracing: Tracing, sizes: Extents, lives: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[CostTerm]:
    """The FLOPs of every operation on the example inputs. `lives`: by number, units with which an operation goes."""
    for number, operation in enumerate(tracing.graph.flops):
        alive = (sizes.alive(*life) for life in lives.get(number, ()))
        yield CostTerm(operation.factor, (*alive, *(sizes.of(nodes) for nodes in operation.dims)))


def attributes(model: nn.Module, tracing: Tracing, routing: Routing, sizes: Extents) -> Iterator[SizeAttribute]:
    """Attributes that hold a size: those of known classes and of experts, then those recognised by their value."""
    named: set[tuple[str, str]] = set()
    for module, attribute, nodes in (*size_attributes(model, tracing), *routing.attributes(model)):
        named.add((module, attribute))
        yield SizeAttribute(module, attribute, sizes.of(nodes))
    for module, attribute, extent in observed_attributes(model, tracing, sizes.of, sizes.shrinks):
        if (module, attribute) not in named:
            yield SizeAttribute(module, attribute, extent, observed=True)
