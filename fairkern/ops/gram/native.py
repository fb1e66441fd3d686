"""Calls the compiled Gram matrix: passes addresses and strides, adds to what is given."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.ops import _native
from fairkern.ops._check import accumulator
from fairkern.ops._strides import merged, padded
from fairkern.ops.gram.reference import ROWS


def add(
    x: Tensor,
    flat: Tensor,
    total: Tensor | None = None,
    shift: Tensor | None = None,
    held: tuple[float, float] = (0.0, 0.0),
    isa: int = 0,
) -> int:
    """`Σ a aᵀ` over all dimensions of `x` but the first, that of the units, added to `flat`, a `Packed`'s numbers, and
    `Σ a` added to `total`, float64 [units]; a less `shift`, [units] of the dtype that `x` widens to.

    Products are summed in that dtype, 256 at a time, and then in float64. Dimensions that take more than two loops are
    copied into one first. `isa` forces an instruction set.

    Returns how many vectors were added: all, unless the largest `Σ a²` of a unit has to lie in `held`, from its first
    number up to its second, and does not; then those that came before. That needs a `total`.
    """
    if not x.numel():
        return 0
    loops = merged(x, range(1, x.ndim))
    if len(loops) > 2:
        x = x.contiguous()
        loops = merged(x, range(1, x.ndim))
    (outer, stride_outer), (inner, stride_inner) = padded(loops, 2)
    added: int = _native.extension().gram(
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
        shift=0 if shift is None else _native.address("shift", shift, accumulator(x.dtype)),
        total=0 if total is None else _native.address("total", total, torch.float64),
        least=held[0],
        most=held[1],
        threads=torch.get_num_threads(),
        isa=isa,
    )
    return added
