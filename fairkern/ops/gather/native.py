"""Calls the compiled gather: one table of descriptors for any number of tensors."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fairkern.ops import _native

MAX_DIMS = 12  # of the extension
_WORD = 8  # bytes of a position


class _Index(NamedTuple):
    """An index, which keeps its id its own, and what the extension reads in its place."""

    given: Tensor
    dense: Tensor
    address: int
    length: int
    in_rows: bool  # one of two dimensions


def gather_many(jobs: Sequence[tuple[Tensor, Mapping[int, Tensor]]]) -> list[Tensor]:
    """CPU tensors, validated int64 CPU indices → contiguous results."""
    known: dict[int, _Index] = {}
    results: list[Tensor] = []
    table: list[int] = []
    count = 0
    for weight, indices in jobs:
        shape, in_rows = list(weight.shape), False
        places = [0] * len(shape)
        for dim, given in indices.items():
            index = known.get(id(given)) or _held(given, known)
            shape[dim], places[dim] = index.length, index.address
            in_rows = in_rows or index.in_rows
        result = weight.new_empty(shape)
        results.append(result)
        if in_rows:
            count += _add_parts(table, weight, result, indices, {d: known[id(index)] for d, index in indices.items()})
        else:
            _add(table, weight, result, places)
            count += 1
    rows = array("q", table)
    _native.extension().gather(table=rows.buffer_info()[0], jobs=count, threads=torch.get_num_threads())
    return results


def _held(index: Tensor, known: dict[int, _Index]) -> _Index:
    dense = index.contiguous()
    address = _native.address("an index", dense, torch.int64)
    known[id(index)] = found = _Index(index, dense, address, index.shape[-1], index.ndim == 2)
    return found


def _add(table: list[int], weight: Tensor, result: Tensor, places: list[int]) -> None:
    """One job: addresses, element size, dims, then of every dim the result's length, the stride in elements and where
    its index lies (0: it has none)."""
    dtype = weight.dtype
    table += _native.address("weight", weight, dtype), _native.address("result", result, dtype)
    table += weight.element_size(), len(places), *result.shape, *weight.stride(), *places


def _add_parts(
    table: list[int], weight: Tensor, result: Tensor, indices: Mapping[int, Tensor], found: Mapping[int, _Index]
) -> int:
    """One job for each position of dimension 0, where an index has a row for it; gives how many."""
    first = indices[0].tolist() if 0 in indices else range(len(weight))
    for position, source in enumerate(first):
        places = [0] * weight.ndim
        for dim, index in found.items():
            if dim > 0:
                places[dim] = index.address + (position * index.length * _WORD if index.in_rows else 0)
        _add(table, weight[source : source + 1], result[position : position + 1], places)
    return len(first)
