"""Calls the compiled projection: passes addresses and strides, writes into what is given."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.ops import _native
from fairkern.ops._check import accumulator
from fairkern.ops._strides import merged


def project(x: Tensor, directions: Tensor, rows: Tensor | None, out: Tensor, isa: int = 0) -> Tensor:
    """[N, C, D…], [D, P], rows [R] or None → `out` [R or N, C, P], float32, or float64 for float64 `x`.

    Positions whose strides are not one run in memory are copied into one first. `isa` forces an instruction set.
    """
    if not out.numel():
        return out
    loops = merged(x, range(2, x.ndim))
    if len(loops) > 1:
        x, rows = (x if rows is None else x[rows]).contiguous(), None
        loops = merged(x, range(2, x.ndim))
    positions, stride_d = loops[0] if loops else (directions.shape[0], 1)
    directions = directions.contiguous()
    rows = None if rows is None else rows.contiguous()
    _native.extension().project(
        element=_native.ELEMENTS[x.dtype],
        x=_native.address("x", x, x.dtype),
        stride_n=x.stride(0),
        stride_c=x.stride(1),
        stride_d=stride_d,
        rows=0 if rows is None else _native.address("rows", rows, torch.int64),
        samples=out.shape[0],
        channels=out.shape[1],
        positions=positions,
        directions=_native.address("directions", directions, out.dtype),
        projections=out.shape[2],
        out=_native.address("out", out, accumulator(x.dtype)),
        threads=torch.get_num_threads(),
        isa=isa,
    )
    return out
