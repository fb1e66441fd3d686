"""Example inputs and outputs of any nesting: varying the one, comparing the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.model.nested import map_tensors, tensors_in

_AT_ONCE = 2**20  # elements that are compared at once


def vary(inputs: Any, seed: int) -> Any:
    """Other inputs of the same shapes, dtypes and devices, from an own generator.

    Floating tensors become normal noise with the example's mean and standard deviation (1 where it is
    constant); integer tensors keep their values in another order, so that they stay valid indices, and bool tensors
    their rows, so that masks of samples with padding stay such. Sparse and nested ones stay what they are.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def other(tensor: Tensor) -> Tensor:
        if tensor.numel() == 0 or tensor.layout is not torch.strided:
            return tensor.clone()
        if tensor.dtype == torch.bool and tensor.dim() > 1:
            return tensor[torch.randperm(len(tensor), generator=generator, device="cpu").to(tensor.device)]
        if not (tensor.is_floating_point() or tensor.is_complex()):
            order = torch.randperm(tensor.numel(), generator=generator, device="cpu").to(tensor.device)
            return tensor.reshape(-1)[order].reshape(tensor.shape)
        wide = torch.complex128 if tensor.is_complex() else torch.float64
        example = tensor.detach().to("cpu", wide)
        spread = example.std(correction=0)
        noise = torch.randn(tensor.shape, dtype=wide, generator=generator, device="cpu")
        return (example.mean() + noise * (spread if spread > 0 else 1)).to(tensor.device, tensor.dtype)

    return map_tensors(inputs, other)


def distance(expected: Any, found: Any) -> float:
    """How far two outputs of one nesting are apart: the largest over their tensors of max|a − b| / max|a|.

    A tensor that is tiny beside the others (below 1e-6 of the largest) is measured against that bound. Places
    where both hold the same infinity agree; NaN, another shape or another number of tensors give inf.
    Raises InputError when there is no tensor in `expected`.
    """
    a, b = list(tensors_in(expected)), list(tensors_in(found))
    if not a:
        raise InputError(
            "the model returns an output without any tensor: nothing can be compared; return what the loss reads as "
            "tensors (in a tuple, a dictionary or an object)"
        )
    if [x.shape for x in a] != [y.shape for y in b]:
        return float("inf")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.numel()]
    sizes = [max(float(part.abs().nan_to_num(0.0, 0.0, 0.0).max()) for (part,) in _parts(x)) for x, _ in pairs]
    floor = max(1e-6 * max(sizes, default=0.0), torch.finfo(torch.float64).tiny)
    worst = 0.0
    for (x, y), size in zip(pairs, sizes, strict=True):
        for one, other in _parts(x, y):
            gap = torch.where(one == other, 0.0, (one - other).abs()).max()
            if not torch.isfinite(gap):
                return float("inf")
            worst = max(worst, float(gap) / max(size, floor))
    return worst


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape in float64, a part at a time: logits are as large as weights."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    for start in range(0, len(flat[0]), _AT_ONCE):
        yield tuple(_wide(tensor[start : start + _AT_ONCE]) for tensor in flat)


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.to(torch.float64)
