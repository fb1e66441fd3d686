"""Calls the compiled steps: allocates what they choose, passes addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fairkern.ops import _native


class Arrays(NamedTuple):
    """One view, of units of one position each, in CPU memory; all but the matrices float64, and changed."""

    inverse: Tensor  # [n, n], the lower half counts; float64 or float32
    output: Tensor  # [n, n]
    rows: Tensor  # int64 [units, 1], contiguous as all others but the matrices, whose rows are
    noise: Tensor  # [n]
    alive: Tensor  # [n]
    inverse_diagonal: Tensor  # [units, 1, 1]
    output_diagonal: Tensor  # [units, 1, 1]
    half: Tensor  # [steps, n]
    mixed: Tensor  # [steps, n]


def steps(views: Sequence[Arrays], count: int, isa: int = 0) -> tuple[Tensor, Tensor]:
    """The units, int64 [count], and what each adds, float64 [count]."""
    chosen = torch.empty(count, dtype=torch.int64, device="cpu")
    added = torch.empty(count, dtype=torch.float64, device="cpu")
    dtype = views[0].inverse.dtype
    table = torch.tensor([_row(view, dtype) for view in views], dtype=torch.int64, device="cpu")
    _native.extension().eliminate_steps(
        element=_native.ELEMENTS[dtype],
        table=_native.address("table", table, torch.int64),
        count=len(views),
        units=len(views[0].rows),
        steps=count,
        chosen=_native.address("chosen", chosen, torch.int64),
        added=_native.address("added", added, torch.float64),
        threads=torch.get_num_threads(),
        isa=isa,
    )
    return chosen, added


class Small(NamedTuple):
    """One view, of units of one position each, in CPU memory; both matrices are lost."""

    covariance: Tensor  # float64 [n, n], contiguous as all; the lower half counts
    output: Tensor  # float64 [n, n]
    rows: Tensor  # int64 [units, 1]


def whole(
    views: Sequence[Small], most: int, rounding: float, isa: int = 0
) -> tuple[Tensor, Tensor, Tensor, int | None]:
    """The units, `most` of them as they went and the others by index, int64 [units]; what each added, or would add,
    float64 [units]; how far off the latter may be, float64 [units - most]; and the first view whose covariance is not
    definite, if there is one: then the others mean nothing."""
    units = len(views[0].rows)
    chosen = torch.empty(units, dtype=torch.int64, device="cpu")
    added = torch.empty(units, dtype=torch.float64, device="cpu")
    off = torch.empty(units - most + 1, dtype=torch.float64, device="cpu")  # one more: it has an address
    table = torch.tensor([_small(view) for view in views], dtype=torch.int64, device="cpu")
    failed = _native.extension().eliminate_small(
        table=_native.address("table", table, torch.int64),
        count=len(views),
        units=units,
        most=most,
        rounding=rounding,
        chosen=_native.address("chosen", chosen, torch.int64),
        added=_native.address("added", added, torch.float64),
        off=_native.address("off", off, torch.float64),
        isa=isa,
    )
    return chosen, added, off[:-1], failed if failed >= 0 else None


def _small(view: Small) -> list[int]:
    covariance = _native.address("covariance", view.covariance, torch.float64)
    output = _native.address("output", view.output, torch.float64)
    return [covariance, output, len(view.covariance), _native.address("rows", view.rows, torch.int64)]


def _row(view: Arrays, dtype: torch.dtype) -> list[int]:
    matrices = [_native.address(name, getattr(view, name), dtype) for name in ("inverse", "output")]
    sizes = [view.inverse.stride(0), view.output.stride(0), len(view.inverse)]
    rows = _native.address("rows", view.rows, torch.int64)
    names = ("noise", "alive", "inverse_diagonal", "output_diagonal", "half", "mixed")
    return [*matrices, *sizes, rows, *(_native.address(name, getattr(view, name), torch.float64) for name in names)]
