"""Parameters out of the tensors of files, and tensors of files out of parameters, as a plan's `Files` say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from fairkern.types import FilePart, Files, FileTensor


def holding(files: Files) -> dict[str, list[FileTensor]]:
    """By parameter the tensors that hold some of it, where it is not one of them as it is."""
    found: dict[str, list[FileTensor]] = {}
    for tensor in files.tensors:
        for name in dict.fromkeys(part.parameter for part in tensor.parts):
            found.setdefault(name, []).append(tensor)
    return found


def parameter_of(
    name: str, shape: Sequence[int], tensors: Sequence[FileTensor], read: Callable[[str], Tensor]
) -> Tensor:
    """A parameter, from the tensors that hold it, one after the other."""
    made: Tensor | None = None
    for tensor in tensors:
        stored = read(tensor.name)
        if made is None:
            made = torch.empty(tuple(shape), dtype=stored.dtype, device="cpu")
        for part, place in chain.from_iterable(tensor.placed()):
            if part.parameter == name:
                there, order = _within(made, part, tensor, len(range(stored.shape[tensor.along])[place]))
                there.copy_(_along(stored, tensor.along, place).permute(order))
    assert made is not None
    return made


def stored_of(tensor: FileTensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """A tensor of files, from parameters in full size; the parameter itself where it is that."""
    first = parameters[tensor.parts[0].parameter]
    made = torch.empty(tensor.shape, dtype=first.dtype, device=first.device)
    for part, place in chain.from_iterable(tensor.placed()):
        there, order = _within(parameters[part.parameter], part, tensor, part.length)
        _along(made, tensor.along, place).permute(order).copy_(there)
    return made


def _along(stored: Tensor, dim: int, place: slice) -> Tensor:
    return stored[(slice(None),) * dim + (place,)] if stored.ndim else stored


def _within(parameter: Tensor, part: FilePart, tensor: FileTensor, length: int) -> tuple[Tensor, list[int]]:
    """What of a parameter a part holds, and which dimension of the part each of its dimensions is."""
    index: list[int | slice] = []
    order = []
    for at in part.index:
        if isinstance(at, int):
            index.append(at)
            continue
        dim, start, step = at
        count = length if dim == tensor.along else tensor.shape[dim]
        index.append(slice(start, start + step * (count - 1) + 1, step))
        order.append(dim)
    return parameter[tuple(index)], order
