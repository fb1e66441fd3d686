"""Calls the compiled gather: one table of descriptors for any number of tensors."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fairkern.ops import _native

MAX_DIMS = 12  # of the extension, after merging
_REST = [(0,) * (MAX_DIMS - n) for n in range(MAX_DIMS + 1)]  # behind n dimensions
Part = tuple[Tensor, Tensor, Mapping[int, Tensor]]
_Indices = dict[int, tuple[Tensor, Tensor, int]]  # by identity: an index, what is read in its place, and its address


def gather_many(jobs: Sequence[tuple[Tensor, Mapping[int, Tensor]]]) -> list[Tensor]:
    """CPU tensors, validated int64 CPU indices → contiguous results."""
    known: _Indices = {}
    results: list[Tensor] = []
    table = array("q")
    count = 0
    for weight, indices in jobs:
        shape = list(weight.shape)
        for dim, index in indices.items():
            shape[dim] = index.shape[-1]
        result = weight.new_empty(shape)
        results.append(result)
        if any(index.ndim == 2 for index in indices.values()):
            for part in _parts(weight, result, indices):
                table.extend(_descriptor(*part, known))
                count += 1
        else:
            table.extend(_descriptor(weight, result, indices, known))
            count += 1
    _native.extension().gather(table=table.buffer_info()[0], jobs=count, threads=torch.get_num_threads())
    return results


def _parts(weight: Tensor, result: Tensor, indices: Mapping[int, Tensor]) -> Iterator[Part]:
    """One job for each position of dimension 0, where an index has a row for it."""
    first = indices[0].tolist() if 0 in indices else range(len(weight))
    for position, source in enumerate(first):
        rows = {d: index[position] if index.ndim == 2 else index for d, index in indices.items() if d > 0}
        yield weight[source : source + 1], result[position : position + 1], rows


def _descriptor(weight: Tensor, result: Tensor, indices: Mapping[int, Tensor], known: _Indices) -> list[int]:
    size = weight.element_size()
    lengths: list[int] = []  # of the result
    strides: list[int] = []  # of the source, in bytes
    places: list[int] = []  # of indices: addresses
    for d, (length, step) in enumerate(zip(result.shape, weight.stride(), strict=True)):
        stride = step * size
        index = indices.get(d)
        if index is not None:
            found = known.get(id(index))
            place = _address(d, index, known) if found is None else found[2]
        elif length == 1:
            continue
        elif places and places[-1] == 0 and strides[-1] == stride * length:
            lengths[-1] *= length  # two whole dimensions that are one in memory
            strides[-1] = stride
            continue
        else:
            place = 0
        lengths.append(length)
        strides.append(stride)
        places.append(place)
    rest = _REST[len(lengths)]
    ends = [_native.address(name, t, weight.dtype) for name, t in (("weight", weight), ("result", result))]
    return [*ends, size, len(lengths), *lengths, *rest, *strides, *rest, *places, *rest]


def _address(dim: int, index: Tensor, known: _Indices) -> int:
    dense = index.contiguous()
    address = _native.address(f"the index of dimension {dim}", dense, torch.int64)
    known[id(index)] = index, dense, address
    return address
