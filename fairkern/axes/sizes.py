"""Module attributes that hold a size and must follow the cut: by class and attribute name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from fairkern.axes.trace import Tracing

# class -> attribute -> (tensor of the module, dimension)
_BY_CLASS: tuple[tuple[tuple[type[nn.Module], ...], dict[str, tuple[str, int]]], ...] = (
    ((nn.Linear,), {"in_features": ("weight", 1), "out_features": ("weight", 0)}),
    ((nn.modules.batchnorm._NormBase,), {"num_features": ("weight|running_mean", 0)}),
    ((nn.Embedding,), {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    ((nn.PReLU,), {"num_parameters": ("weight", 0)}),
)


def size_attributes(model: nn.Module, tracing: Tracing) -> Iterator[tuple[str, str, np.ndarray]]:
    """(module path, attribute, nodes whose count it holds), for every module of a known class."""
    first = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}

    def nodes(module: nn.Module, tensor_names: str, dim: int) -> tuple[str, np.ndarray | None] | None:
        for tensor_name in tensor_names.split("|"):
            # not by getattr: a parametrised weight is computed anew by every look at it
            tensor = module._parameters.get(tensor_name, module._buffers.get(tensor_name))
            if tensor is not None:
                name = first[id(tensor)]  # a tied tensor goes by its first name
                return name, tracing.tensors[name][dim]
        return None

    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            yield from _convolution(path, module, tracing, nodes(module, "weight", 0), nodes(module, "weight", 1))
            continue
        if isinstance(module, nn.modules.batchnorm._NormBase) and path in tracing.graph.features:
            yield path, "num_features", tracing.graph.features[path]
            continue
        for classes, attributes in _BY_CLASS:
            if isinstance(module, classes):
                for attribute, (tensor_names, dim) in attributes.items():
                    found = nodes(module, tensor_names, dim)
                    if found is not None and found[1] is not None:
                        yield path, attribute, found[1]


def _convolution(
    path: str,
    module: nn.modules.conv._ConvNd,
    tracing: Tracing,
    dim0: tuple[str, np.ndarray | None] | None,
    dim1: tuple[str, np.ndarray | None] | None,
) -> Iterator[tuple[str, str, np.ndarray]]:
    if dim0 is None or dim1 is None:
        return
    made, read = (dim1[1], dim0[1]) if module.transposed else (dim0[1], dim1[1])
    if module.groups > 1:
        channels, groups = tracing.graph.grouped.get(dim0[0], (None, None))
        read = channels
        if groups is not None:
            yield path, "groups", groups
        if module.transposed:
            made = None  # never cut
    if made is not None:
        yield path, "out_channels", made
    if read is not None:
        yield path, "in_channels", read
