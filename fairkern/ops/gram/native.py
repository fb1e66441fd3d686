"""Calls the compiled Gram matrix: passes addresses and strides, adds to what is given."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.ops import _native
from fairkern.ops._strides import merged, padded
from fairkern.ops.gram.reference import ROWS


def add(x: Tensor, flat: Tensor, isa: int = 0) -> None:
    """`Σ a aᵀ` over all dimensions of `x` but the first, that of the units, added to `flat`, a `Packed`'s numbers.

    Products are summed in the dtype that `x` widens to, 256 at a time, and then in float64. Dimensions that take more
    than two loops are copied into one first. `isa` forces an instruction set.
    """
    if not x.numel():
        return
    loops = merged(x, range(1, x.ndim))
    if len(loops) > 2:
        x = x.contiguous()
        loops = merged(x, range(1, x.ndim))
    (outer, stride_outer), (inner, stride_inner) = padded(loops, 2)
    _native.extension().gram(
        element=_native.ELEMENTS[x.dtype],
        x=_native.address("x", x, x.dtype),
        stride_c=x.stride(0),
        stride_outer=stride_outer,
        stride_inner=stride_inner,
        channels=len(x),
        outer=outer,
        inner=inner,
        rows=ROWS,
        out=_native.address("the sums", flat, torch.float64),
        threads=torch.get_num_threads(),
        isa=isa,
    )
