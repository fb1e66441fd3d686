"""Views of one memory: which dimension of one tensor has the positions of which dimension of another."""

from __future__ import annotations

from torch import Tensor


def same_positions(tensor: Tensor, other: Tensor, dim: int) -> int | None:
    """The dimension of `other`, on the same memory, that goes over the same positions as `dim` of `tensor`.

    It has the length and the stride, and starts at the same place along it. None where no dimension does, or several.
    """
    size, stride = tensor.shape[dim], tensor.stride(dim)
    found = [i for i, n in enumerate(other.shape) if n == size and other.stride(i) == stride]
    if len(found) != 1 or stride == 0 or not _nested(tensor) or not _nested(other):
        return None
    wider = [s for t in (tensor, other) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1 and s > stride]
    starts = {t.storage_offset() % min(wider, default=2**62) // stride for t in (tensor, other)}
    return found[0] if len(starts) == 1 else None


def _nested(tensor: Tensor) -> bool:
    """Whether a step along a dimension is at least as long as all that lies in the dimensions within."""
    within = 1
    for stride, size in sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride < within:
            return False
        within = stride * size
    return True
