"""Calls the compiled `class_wasserstein`: allocates the result, passes addresses and strides."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.ops import _native
from fairkern.ops._check import accumulator

_REDUCTIONS = {"max": 0, "mean": 1, "pairs": 2}


def class_wasserstein(
    x: Tensor, order: Tensor, offsets: Tensor, reduce: str, isa: int = 0, directions: Tensor | None = None
) -> Tensor:
    """[N, C, P], any strides → [C] or [pairs, C]; with `directions` [D, P], of the result's dtype, x is [N, C, D].

    `isa` forces an instruction set (for tests).
    """
    classes = len(offsets) - 1
    units, columns = x.shape[1:]
    if directions is not None:
        directions = directions.contiguous()
    order, offsets = order.contiguous(), offsets.contiguous()
    shape = (classes * (classes - 1) // 2, units) if reduce == "pairs" else (units,)
    out = torch.empty(shape, dtype=accumulator(x.dtype))
    _native.extension().class_wasserstein(
        element=_native.ELEMENTS[x.dtype],
        x=x.data_ptr(),
        stride_n=x.stride(0),
        stride_c=x.stride(1),
        stride_p=x.stride(2),
        units=units,
        projections=columns if directions is None else directions.shape[1],
        rows=order.data_ptr(),
        offsets=offsets.data_ptr(),
        classes=classes,
        reduce=_REDUCTIONS[reduce],
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
        isa=isa,
        directions=0 if directions is None else directions.data_ptr(),
        positions=columns,
    )
    return out
