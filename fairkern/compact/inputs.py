"""Example inputs and outputs of any nesting: calling, casting, varying, comparing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fairkern.errors import InputError


def call(model: nn.Module, inputs: Any) -> Any:
    """`model` on example inputs: a tuple is positional, a mapping is keywords, anything else one argument."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nesting of tuples, lists and mappings with `function` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of a nested output, in order: tuples, named tuples, lists, mappings, dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def vary(inputs: Any, seed: int) -> Any:
    """Other inputs of the same shapes, dtypes and devices, from an own generator.

    Floating tensors become normal noise with the example's mean and standard deviation (1 where it is
    constant); integer and bool tensors keep their values in another order, so that they stay valid indices.
    """
    generator = torch.Generator().manual_seed(seed)

    def other(tensor: Tensor) -> Tensor:
        if tensor.numel() == 0:
            return tensor.clone()
        if not (tensor.is_floating_point() or tensor.is_complex()):
            order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
            return tensor.reshape(-1)[order].reshape(tensor.shape)
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        example = tensor.detach().to("cpu", wide)
        spread = example.std(correction=0)
        noise = torch.randn(tensor.shape, dtype=wide, generator=generator)
        return (example.mean() + noise * (spread if spread > 0 else 1)).to(tensor.device, tensor.dtype)

    return map_tensors(inputs, other)


def distance(expected: Any, found: Any) -> float:
    """How far two outputs of one nesting are apart: the largest over their tensors of max|a − b| / max|a|.

    A tensor that is tiny beside the others (below 1e-6 of the largest) is measured against that bound. Places
    where both hold the same infinity agree; NaN, another shape or another number of tensors give inf.
    Raises InputError when there is no tensor in `expected`.
    """
    pairs = list(zip(a := list(tensors_in(expected)), b := list(tensors_in(found)), strict=False))
    if not a:
        raise InputError(f"the model returns {type(expected).__name__} without any tensor: nothing can be compared")
    if len(a) != len(b) or any(x.shape != y.shape for x, y in pairs):
        return float("inf")
    wide = [(_wide(x), _wide(y)) for x, y in pairs if x.numel()]
    sizes = [float(x.abs().nan_to_num(0.0, 0.0, 0.0).max()) for x, _ in wide]
    floor = max([1e-6 * max(sizes, default=0.0), torch.finfo(torch.float64).tiny])
    worst = 0.0
    for (x, y), size in zip(wide, sizes, strict=True):
        gap = torch.where(x == y, 0.0, (x - y).abs()).max()
        if not torch.isfinite(gap):
            return float("inf")
        worst = max(worst, float(gap) / max(size, floor))
    return worst


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.detach().to(torch.float64)
