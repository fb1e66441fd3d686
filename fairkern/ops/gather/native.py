"""Calls the compiled gather: one table of descriptors for any number of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fairkern.ops import _native

MAX_DIMS = 12  # of the extension, after merging
Part = tuple[Tensor, Tensor, Mapping[int, Tensor]]


def gather_many(jobs: Sequence[tuple[Tensor, Mapping[int, Tensor]]]) -> list[Tensor]:
    """CPU tensors, validated int64 CPU indices → contiguous results."""
    keep_alive: list[Tensor] = []
    results: list[Tensor] = []
    table: list[list[int]] = []
    for weight, indices in jobs:
        shape = [indices[d].shape[-1] if d in indices else length for d, length in enumerate(weight.shape)]
        result = torch.empty(shape, dtype=weight.dtype, device="cpu")
        held = {dim: index.contiguous() for dim, index in indices.items()}
        keep_alive.extend(held.values())
        results.append(result)
        table.extend(_descriptor(*part) for part in _parts(weight, result, held))
    packed = torch.tensor(table, dtype=torch.int64, device="cpu")
    address = _native.address("table", packed, torch.int64)
    _native.extension().gather(table=address, jobs=len(table), threads=torch.get_num_threads())
    return results


def _parts(weight: Tensor, result: Tensor, indices: Mapping[int, Tensor]) -> Iterator[Part]:
    """One job, or one for each position of dimension 0 where an index has a row for it."""
    if all(index.ndim == 1 for index in indices.values()):
        yield weight, result, indices
        return
    first = indices[0].tolist() if 0 in indices else range(len(weight))
    for position, source in enumerate(first):
        rows = {d: index[position] if index.ndim == 2 else index for d, index in indices.items() if d > 0}
        yield weight[source : source + 1], result[position : position + 1], rows


def _descriptor(weight: Tensor, result: Tensor, indices: Mapping[int, Tensor]) -> list[int]:
    size = weight.element_size()
    dims: list[tuple[int, int, int]] = []  # length in the result, stride in the source in bytes, index address
    for d, length in enumerate(result.shape):
        stride, index = weight.stride(d) * size, indices.get(d)
        if index is not None:
            dims.append((length, stride, _native.address(f"the index of dimension {d}", index, torch.int64)))
        elif dims and dims[-1][2] == 0 and dims[-1][1] == stride * length:
            dims[-1] = (dims[-1][0] * length, stride, 0)  # two whole dimensions that are one in memory
        elif length != 1:
            dims.append((length, stride, 0))
    padding = [0] * (MAX_DIMS - len(dims))
    columns = [[dim[i] for dim in dims] + padding for i in range(3)]
    places = [_native.address(name, t, weight.dtype) for name, t in (("weight", weight), ("result", result))]
    return [*places, size, len(dims), *columns[0], *columns[1], *columns[2]]
