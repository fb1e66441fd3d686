"""A gather as the Triton kernel sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fairkern.ops.gather.config import MAX_OUTER


@dataclass(frozen=True)
class Dim:
    """One loop of the job."""

    length: int  # of the result
    stride: int  # of the source, in bytes
    index: Tensor | None


def dims(weight: Tensor, indices: Mapping[int, Tensor]) -> list[Dim]:
    """Whole neighbours that are one run in memory are one loop, and a whole dimension of length 1 is none.

    Elements of 16 bytes are a last dimension of two halves.
    """
    size = weight.element_size()
    walk = [(dim, length, weight.stride(dim) * size) for dim, length in enumerate(weight.shape)]
    found: list[Dim] = []
    for dim, length, stride in [*walk, *([(weight.ndim, 2, 8)] if size == 16 else [])]:
        index = indices.get(dim)
        if index is not None:
            found.append(Dim(len(index), stride, index.contiguous()))
        elif length == 1:
            continue
        elif found and found[-1].index is None and found[-1].stride == stride * length:
            found[-1] = Dim(found[-1].length * length, stride, None)
        else:
            found.append(Dim(length, stride, None))
    return found


def unsupported(weight: Tensor, indices: Mapping[int, Tensor]) -> str | None:
    """Why the kernel cannot take this job, or None."""
    here = dims(weight, indices)
    outer = len(here) - (1 if here and here[-1].index is None else 0)
    if outer > MAX_OUTER:
        return f"the Triton gather takes at most {MAX_OUTER} dimensions before the last, and this job has {outer}"
    return None
