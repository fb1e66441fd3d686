"""The definition of gather: one `index_select` per dimension."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def gather(weight: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """Any dtype: elements are moved as bytes. Rows of a 2-D index follow dimension 0 of the result."""
    result = weight.view(_SAME_SIZE[weight.element_size()])
    for dim, index in sorted(indices.items()):
        result = result.index_select(dim, index) if index.ndim == 1 else _own(result, dim, index)
    result = result.contiguous() if indices else result.clone(memory_format=torch.contiguous_format)
    return result.view(weight.dtype)


def _own(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """Positions `index[e]` of dimension `dim` for every position e of dimension 0."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = index.shape
    wanted = list(x.shape)
    wanted[dim] = index.shape[1]
    return x.gather(dim, index.view(shape).expand(wanted))
