"""A model's parameters as files hold them: as they are, or in parts of other tensors (experts of a stack, halves)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fairkern.artefacts.shards import Shards
from fairkern.types import FilePart, Files, FileTensor


class Stored:
    """Where `paged.Weights` gets the values of parameters from. `shapes`: those of the model's tensors by their names.

    A parameter is there where files hold all of it. Reading takes the memory of the parameter and of one tensor of the
    files, or of the rows of it that are needed.
    """

    def __init__(self, shards: Shards, shapes: Mapping[str, Sequence[int]], files: Files | None = None) -> None:
        self._shards, self._shapes = shards, shapes
        self._parts: dict[str, list[tuple[FileTensor, FilePart, slice]]] = defaultdict(list)
        for tensor in () if files is None else files.tensors:
            if tensor.name in shards.shapes:
                for part, at in _places(tensor):
                    self._parts[part.parameter].append((tensor, part, at))
        made = {tensor.name for parts in self._parts.values() for tensor, _, _ in parts}
        self._plain = {name for name in shards.shapes if name not in made}
        self._whole = {
            name
            for name, parts in self._parts.items()
            if name in shapes and sum(math.prod(_sizes(*part)) for part in parts) == math.prod(shapes[name])
        }

    def __contains__(self, name: str) -> bool:
        return name in self._whole or name in self._plain

    def read(self, name: str) -> Tensor:
        """A parameter, in the dtype of the files, on the CPU in memory of its own."""
        if name not in self._whole:
            return self._shards.read(name)
        parts = self._parts[name]
        dtype = self._shards.dtypes[parts[0][0].name]
        values = torch.empty(tuple(self._shapes[name]), dtype=dtype, device="cpu")
        for tensor, part, at in parts:
            _placed(values, part, _sizes(tensor, part, at)).copy_(self._read(tensor, part, at))
        return values

    def _read(self, tensor: FileTensor, part: FilePart, at: slice) -> Tensor:
        """A part, with its dimensions in the order of the parameter's."""
        if tensor.along == 0 and tensor.shape and at.step == 1:
            held = self._shards.read(tensor.name, at.start, at.stop)
        else:
            held = self._shards.read(tensor.name)
            held = held[(slice(None),) * tensor.along + (at,)] if tensor.shape else held
        order = [place[0] for place in part.index if not isinstance(place, int)]
        rest = [dim for dim in range(held.ndim) if dim not in order]  # of one position
        return held.permute(*rest, *order).reshape([held.shape[dim] for dim in order])


def _places(tensor: FileTensor) -> list[tuple[FilePart, slice]]:
    """Each part, and its positions along the dimension in which they lie one behind the other, or take turns."""
    found: list[tuple[FilePart, slice]] = []
    start = k = 0
    while k < len(tensor.parts):
        turns, length = tensor.parts[k].turns, tensor.parts[k].length
        stop = start + turns * length
        found += [(part, slice(start + turn, stop, turns)) for turn, part in enumerate(tensor.parts[k : k + turns])]
        start, k = stop, k + turns
    return found


def _sizes(tensor: FileTensor, part: FilePart, _: slice) -> list[int]:
    return [part.length if dim == tensor.along else size for dim, size in enumerate(tensor.shape)]


def _placed(values: Tensor, part: FilePart, sizes: Sequence[int]) -> Tensor:
    """The view of a parameter that a part of these sizes holds."""
    index: list[int | slice] = []
    for place in part.index:
        if isinstance(place, int):
            index.append(place)
        else:
            dim, start, step = place
            index.append(slice(start, start + step * (sizes[dim] - 1) + 1, step))
    return values[tuple(index)]
