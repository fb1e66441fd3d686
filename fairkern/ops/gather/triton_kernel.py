"""Gather on a GPU without a CUDA compiler: elements are moved as integers of their size.

A job is seen as two outer dimensions × columns × trailing positions, each with a byte-exact stride and perhaps an
index. A program finds its outer positions with scalar arithmetic and copies a block of columns × trailing; where the
whole row is one run in memory, elements are widened to as many bytes as divide every stride, up to 8. Offsets are
int64 throughout.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from fairkern.ops import _triton
from fairkern.ops.gather.config import MAX_OUTER, block
from fairkern.ops.gather.dims import Dim, dims

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def _placed(index, position, HAS_INDEX: tl.constexpr):
    """Where the source has what the result has at `position` of one dimension."""
    if HAS_INDEX:
        position = tl.load(index + position)
    return position


@triton.jit
def _gather_kernel(
    out,
    source,
    index_0,
    index_1,
    index_column,
    rows_1,
    columns,
    trailing,
    row_blocks,
    stride_0,
    stride_1,
    stride_column,
    stride_trailing,
    HAS_0: tl.constexpr,
    HAS_1: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    HAS_COLUMNS: tl.constexpr,
    LONG: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """`ELEMENTS` of one row; without columns a row is one run of `trailing` elements."""
    i_program = tl.program_id(0).to(tl.int64)
    i_row = i_program // row_blocks
    i_0 = _placed(index_0, i_row // rows_1, HAS_0)
    i_1 = _placed(index_1, i_row % rows_1, HAS_1)
    o_element = (i_program % row_blocks) * ELEMENTS + tl.arange(0, ELEMENTS)
    if not LONG:  # dividing is the dear part
        o_element = o_element.to(tl.int32)
    length = (i_program * 0 + columns) * trailing
    mask = o_element < length
    p_row = source + i_0 * stride_0 + i_1 * stride_1
    if HAS_COLUMNS:
        o_column = tl.where(mask, o_element // trailing, 0).to(tl.int64)
        if HAS_COLUMN:
            o_column = tl.load(index_column + o_column, mask=mask, other=0)
        p_source = p_row + o_column * stride_column + (o_element % trailing).to(tl.int64) * stride_trailing
    else:
        p_source = p_row + o_element.to(tl.int64) * stride_trailing
    tl.store(out + i_row * length + o_element, tl.load(p_source, mask=mask, other=0), mask=mask)


def gather(weight: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """Any dtype of 1, 2, 4, 8 or 16 bytes, validated int64 indices on its device → a contiguous result."""
    shape = [len(indices[d]) if d in indices else length for d, length in enumerate(weight.shape)]
    result = torch.empty(shape, dtype=weight.dtype, device=weight.device)
    if not result.numel():
        return result
    here, size = dims(weight, indices), min(weight.element_size(), 8)
    trailing = here.pop() if here and here[-1].index is None else Dim(1, size, None)
    column = here.pop() if here and (trailing.length * size < 1024 or len(here) == MAX_OUTER) else None
    while len(here) < 2:
        here.insert(0, Dim(1, 0, None))
    width = _width(weight, result, trailing, [*here, *([column] if column else [])], size)
    arguments = _arguments(weight, result, (here[0], here[1]), column, trailing, size, width)
    length = (column.length if column else 1) * trailing.length * size // width
    chosen = block(length, weight.device)
    row_blocks = -(-length // chosen.elements)
    arguments |= {"row_blocks": row_blocks, "LONG": length + chosen.elements >= 2**31, "ELEMENTS": chosen.elements}
    programs = here[0].length * here[1].length * row_blocks
    _triton.launch(_gather_kernel, programs, weight.device, arguments, chosen.warps)
    return result


def _width(weight: Tensor, result: Tensor, trailing: Dim, others: list[Dim], size: int) -> int:
    """Bytes moved at a time."""
    if trailing.stride != size:
        return size
    numbers = [weight.data_ptr(), result.data_ptr(), trailing.length * size, *(dim.stride for dim in others)]
    return next(width for width in (8, 4, 2, 1) if width <= size or all(number % width == 0 for number in numbers))


def _arguments(
    weight: Tensor,
    result: Tensor,
    outer: tuple[Dim, Dim],
    column: Dim | None,
    trailing: Dim,
    size: int,
    width: int,
) -> dict[str, object]:
    dtype = _INTEGERS[width]
    stride_trailing = 1 if trailing.stride == size else trailing.stride // width
    return {
        "out": _as_integers(result, dtype),
        "source": _as_integers(weight, dtype),
        "index_0": outer[0].index,
        "index_1": outer[1].index,
        "index_column": column.index if column else None,
        "rows_1": outer[1].length,
        "columns": column.length if column else 1,
        "trailing": trailing.length * size // width,
        "stride_0": outer[0].stride // width,
        "stride_1": outer[1].stride // width,
        "stride_column": column.stride // width if column else 0,
        "stride_trailing": stride_trailing,
        "HAS_0": outer[0].index is not None,
        "HAS_1": outer[1].index is not None,
        "HAS_COLUMN": column is not None and column.index is not None,
        "HAS_COLUMNS": column is not None,
    }


def _as_integers(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The address of `tensor` as one of integers: its first element or elements, seen as `dtype`."""
    elements = max(1, dtype.itemsize // tensor.element_size())
    return tensor.as_strided((elements,), (1,)).view(dtype)
