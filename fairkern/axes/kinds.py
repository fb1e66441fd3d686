"""What units are called: channels, neurons, heads, experts; and those of a module that stay whole, and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from fairkern.axes.solver import Solver
from fairkern.axes.tracing import Tracing
from fairkern.model.linear import transposed_linear
from fairkern.types import Axis, KeptUnits

OUTPUT = "is a dimension of the model's output"  # nobody expects these to go


def kind_of(module: nn.Module | None) -> str:
    """What the units are that a module makes, one position each."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "channel"
    return "neuron" if isinstance(module, (nn.Linear, nn.MultiheadAttention)) or transposed_linear(module) else "unit"


def holder(axis: Axis) -> str:
    """The module that an axis belongs to; for the original of a parametrized tensor, the module that is so."""
    return f".{axis.module}".partition(".parametrizations.")[0][1:]


def kept_units(model: nn.Module, tracing: Tracing, solver: Solver) -> Iterator[KeptUnits]:
    """Per module and kind, once: units that are there, of which none can be cut, and why not.

    Heads: what a view has split a stream into, where products of two activations run for each alone. Experts: those in
    three-dimensional parameters. Channels and neurons: what a convolution or linear layer makes, unless it is output.
    """
    graph, modules = tracing.graph, dict(model.named_modules())
    seen: set[tuple[str, str]] = set()

    def kept(kind: str, path: str, nodes: np.ndarray | None) -> Iterator[KeptUnits]:
        reason = None if nodes is None else solver.reason(nodes)
        if reason is not None and (kind, path) not in seen and (reason != OUTPUT or kind in ("head", "expert")):
            seen.add((kind, path))
            yield KeptUnits(kind, path, reason)

    parts = np.zeros(solver.count, dtype=bool)
    for relation in graph.factors:
        for ids in () if relation.first else relation.factors:
            parts[solver.labels[ids]] = True
    for product in graph.products:
        if parts[solver.labels[product.nodes]].all():
            yield from kept("head", product.module, product.nodes)
    for path, layout in tracing.fused.items():
        yield from kept("expert", path, tracing.tensors[f"{path}.{layout.down}".lstrip(".")][0])
    for made in graph.productions:
        path = holder(made.weight)
        yield from kept(kind_of(modules.get(path)), path, made.nodes)
