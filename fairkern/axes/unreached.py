"""What the example inputs did not reach: parameters that stay, and whatever they might read."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from torch import nn

from fairkern.axes.tracing import Tracing
from fairkern.model.tensors import named_tensors


def freeze_unreached(model: nn.Module, tracing: Tracing) -> None:
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


def note_train_only(model: nn.Module, tracing: Tracing) -> None:
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
