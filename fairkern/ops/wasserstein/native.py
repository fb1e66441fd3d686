"""Calls the compiled `class_wasserstein` and `wasserstein_1d`: allocate results, pass addresses and strides."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.ops import _native
from fairkern.ops._check import accumulator
from fairkern.ops.wasserstein.config import network_limit

_REDUCTIONS = {"max": 0, "mean": 1, "pairs": 2}


def class_wasserstein(
    x: Tensor,
    order: Tensor,
    offsets: Tensor,
    reduce: str,
    isa: int = 0,
    directions: Tensor | None = None,
    limit: int | None = None,
    placed: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """[N, C, P], any strides → [C] or [pairs, C]; with `directions` [D, P], of the result's dtype, x is [N, C, D].

    With `placed`, x is [R, C]: rows for some positions of each sample, all others being zero, of E sets of C units,
    those of one set after those of another, and of one sample after those of another. `placed`: where the rows of each
    set's samples begin, int64 [E · N + 1], and the position of each row, int64 [R]; the result is of E · C units.

    `isa` forces an instruction set, `limit` the samples per class up to which a network sorts them (for tests and
    measurements).
    """
    classes = len(offsets) - 1
    begins, places = (None, None) if placed is None else (of.contiguous() for of in placed)
    units = x.shape[1] if begins is None else x.shape[1] * ((len(begins) - 1) // len(order))
    columns = x.shape[2] if directions is None or placed is None else len(directions)
    if directions is not None:
        directions = directions.contiguous()
    order, offsets = order.contiguous(), offsets.contiguous()
    shape = (classes * (classes - 1) // 2, units) if reduce == "pairs" else (units,)
    out = torch.empty(shape, dtype=accumulator(x.dtype), device="cpu")
    _native.extension().class_wasserstein(
        element=_native.ELEMENTS[x.dtype],
        x=_native.address("x", x, x.dtype),
        stride_n=x.stride(0),
        stride_c=x.stride(1),
        stride_p=x.stride(2) if placed is None else 0,
        units=units,
        projections=columns if directions is None else directions.shape[1],
        rows=_native.address("order", order, torch.int64),
        offsets=_native.address("offsets", offsets, torch.int64),
        classes=classes,
        reduce=_REDUCTIONS[reduce],
        out=_native.address("out", out, accumulator(x.dtype)),
        threads=torch.get_num_threads(),
        isa=isa,
        directions=0 if directions is None else _native.address("directions", directions, out.dtype),
        positions=columns,
        network_limit=network_limit(out.dtype) if limit is None else limit,
        begins=0 if begins is None else _native.address("begins", begins, torch.int64),
        places=0 if places is None else _native.address("places", places, torch.int64),
        per_set=x.shape[1],
    )
    return out


def wasserstein_1d(x: Tensor, y: Tensor, p: int, isa: int = 0, limit: int | None = None) -> Tensor:
    """[N, C], [M, C] of one dtype, any strides → [C]; `isa` and `limit` as for `class_wasserstein`."""
    out = torch.empty(x.shape[1], dtype=accumulator(x.dtype), device="cpu")
    _native.extension().wasserstein_1d(
        element=_native.ELEMENTS[x.dtype],
        x=_native.address("x", x, x.dtype),
        x_stride_n=x.stride(0),
        x_stride_c=x.stride(1),
        n=x.shape[0],
        y=_native.address("y", y, x.dtype),
        y_stride_n=y.stride(0),
        y_stride_c=y.stride(1),
        m=y.shape[0],
        columns=x.shape[1],
        power=p,
        network_limit=network_limit(out.dtype) if limit is None else limit,
        out=_native.address("out", out, accumulator(x.dtype)),
        threads=torch.get_num_threads(),
        isa=isa,
    )
    return out
