"""Scores and their unit map as one safetensors file: arrays as tensors, all else as JSON in the metadata."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairkern.artefacts.contents import read_content, write_content
from fairkern.artefacts.fields import Fields
from fairkern.artefacts.files import plain
from fairkern.artefacts.tensors import Later
from fairkern.artefacts.units import IndexPool, StoredIndices, read_units, units_content
from fairkern.errors import InputError
from fairkern.types import FloatArray, Moments, Scores, UnitMap


def save_scores(scores: Scores, path: str | os.PathLike[str]) -> None:
    """Writes scores with their unit map atomically as one safetensors file ("fairkern.scores").

    Tensors: `signal.<name>` float64 (all groups, one after the other), `means` float64 (all taps), `index` int64
    (the map's index arrays, each distinct one once), `gram.<k>` float64 [n, n] and `totals` (all taps with moments,
    in order). The metadata holds `format`, `schema`, `fairkern`, `sha256` (a sum over all that the file says) and the
    rest as JSON under `content`. Arrays come back bitwise. Second moments are made full one after the other.

    Raises:
        InputError: provenance that JSON cannot hold, or arrays that are not float64.
        OSError: the folder cannot be made or written, the disk is full.
    """
    pool = IndexPool()
    content: dict[str, Any] = {
        "units": units_content(scores.units, pool),
        "signals": {name: [len(values) for values in groups] for name, groups in scores.signals.items()},
        "means": {name: len(values) for name, values in scores.means.items()},
        "moments": {},
        "grids": {name: [[*grid, count] for grid, count in sizes.items()] for name, sizes in scores.grids.items()},
        "provenance": plain(scores.provenance, "provenance"),
        "index": pool.shapes,
    }
    tensors = {f"signal.{name}": _joined(f"signal {name!r}", groups) for name, groups in scores.signals.items()}
    tensors["means"] = _joined("means", scores.means.values())
    tensors["index"] = pool.joined()
    totals, later = [], {}
    for k, name in enumerate(scores.moments):
        moments = scores.moments[name]
        n, square = len(moments.total), moments.gram
        if square.shape != (n, n) or square.dtype != torch.float64:
            raise InputError(
                f"the Gram matrix of {name!r} is {_named(square.dtype)} of shape "
                f"{tuple(square.shape)}; expected float64 {(n, n)}"
            )
        content["moments"][name] = [n, moments.count, moments.per_unit]
        totals.append(moments.total.numpy())
        like = torch.empty(n, n, dtype=torch.float64, device="meta")
        later[f"gram.{k}"] = Later(like, partial(_gram, scores.moments, name))
    tensors["totals"] = _joined("totals", totals)
    flat = {name: torch.from_numpy(array) for name, array in tensors.items()}
    write_content(path, "scores", {**flat, **later}, content)


def _gram(moments: Mapping[str, Moments], name: str) -> Tensor:
    return moments[name].gram


def load_scores(path: str | os.PathLike[str]) -> Scores:
    """Reads what `save_scores` wrote; tuples in `provenance` have become lists.

    Raises:
        ArtefactError: truncated, foreign, newer, edited or inconsistent; says what was found and where.
        OSError: there is no such file, or it cannot be read.
    """
    tensors, content = read_content(path, "scores", "score again")
    indices = StoredIndices(content["index"], _tensor(content, tensors, "index", torch.int64))
    units = read_units(content["units"], indices)
    return Scores(
        units,
        {name: _signal(entry, name, units, tensors) for name, entry in content["signals"].entries().items()},
        _means(content["means"], units, tensors),
        content["provenance"].mapping(),
        _moments(content["moments"], units, tensors),
        _grids(content.get("grids", {})),
    )


def _grids(entry: Fields) -> dict[str, dict[tuple[int, ...], int]]:
    found: dict[str, dict[tuple[int, ...], int]] = {}
    for name, sizes in entry.entries().items():
        rows = [[part.whole(1) for part in item.items()] for item in sizes.items()]
        if any(len(row) < 2 for row in rows):
            sizes.fail("a grid without a size")
        found[name] = {tuple(grid): count for *grid, count in rows}
    return found


def _joined(what: str, arrays: Any) -> FloatArray:
    parts = [np.asarray(values) for values in arrays]
    for values in parts:
        if values.ndim != 1 or (values.dtype != np.float64 and len(values)):
            raise InputError(f"{what} holds {values.dtype} of shape {values.shape}; expected flat float64 arrays")
    return np.concatenate([np.zeros(0), *parts])


def _tensor(entry: Fields, tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> np.ndarray:
    if name not in tensors:
        entry.fail(f"the tensor {name!r} is missing")
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.ndim != 1:
        entry.fail(f"the tensor {name!r} is {_kind(tensor)}, expected flat {_named(dtype)}")
    return tensor.numpy()


def _kind(tensor: Tensor) -> str:
    return f"{_named(tensor.dtype)} of shape {tuple(tensor.shape)}"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _split(entry: Fields, name: str, lengths: list[int], tensors: Mapping[str, Tensor]) -> list[FloatArray]:
    array = _tensor(entry, tensors, name, torch.float64)
    if sum(lengths) != len(array):
        entry.fail(f"the tensor {name!r} has {len(array)} values, expected {sum(lengths)}")
    ends = np.cumsum([0, *lengths])
    return [array[start:stop] for start, stop in itertools.pairwise(ends)]


def _signal(entry: Fields, name: str, units: UnitMap, tensors: Mapping[str, Tensor]) -> tuple[FloatArray, ...]:
    items = entry.items(len(units.groups))
    lengths = [item.whole() for item in items]
    for item, length, group in zip(items, lengths, units.groups, strict=True):
        if length not in (0, group.total):
            item.fail(f"{length} scores for the {group.total} units of group {group.name!r}")
    return tuple(_split(entry, f"signal.{name}", lengths, tensors))


def _means(entry: Fields, units: UnitMap, tensors: Mapping[str, Tensor]) -> dict[str, FloatArray]:
    taps = _lengths(units)
    named = entry.entries()
    lengths = [item.whole() for item in named.values()]
    for (name, item), length in zip(named.items(), lengths, strict=True):
        if taps.get(name, length) != length:
            item.fail(f"{length} means for the tap {name!r} of length {taps[name]}")
    return dict(zip(named, _split(entry, "means", lengths, tensors), strict=True))


def _lengths(units: UnitMap) -> dict[str, int]:
    return {tap.name: tap.length for group in units.groups for tap in (*group.taps, *group.outputs)}


def _moments(entry: Fields, units: UnitMap, tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
    taps = _lengths(units)
    named = {name: [part.whole(1) for part in item.items(3)] for name, item in entry.entries().items()}
    totals = _split(entry, "totals", [n for n, _, _ in named.values()], tensors)
    found = {}
    for k, ((name, (n, count, per_unit)), total) in enumerate(zip(named.items(), totals, strict=True)):
        square = tensors.get(f"gram.{k}")
        if square is None or square.dtype != torch.float64 or square.shape != (n, n):
            what = "missing" if square is None else _kind(square)
            entry.fail(f"the tensor 'gram.{k}' is {what}, expected float64 of shape {(n, n)}")
        if taps.get(name, n * per_unit) != n * per_unit:
            entry.fail(f"moments of {n} · {per_unit} positions for the tap {name!r} of length {taps[name]}")
        found[name] = Moments(square, torch.from_numpy(total), count, per_unit)
    return found
