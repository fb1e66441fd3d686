"""The definition of gather: one `index_select` per dimension."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


def gather(weight: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    """Any dtype: the elements are moved as bytes of the same size."""
    result = weight.view(_SAME_SIZE[weight.element_size()])
    for dim, index in indices.items():
        result = result.index_select(dim, index)
    result = result.contiguous() if indices else result.clone(memory_format=torch.contiguous_format)
    return result.view(weight.dtype)
