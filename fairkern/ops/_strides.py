"""How many loops it takes to walk over some dimensions of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor


def merged(tensor: Tensor, dims: Iterable[int]) -> list[tuple[int, int]]:
    """(length, stride) per loop over `dims`, in their order; neighbours that are one run in memory are one loop.

    Dimensions of length 1 take no loop.
    """
    loops: list[tuple[int, int]] = []
    for dim in dims:
        length, stride = tensor.shape[dim], tensor.stride(dim)
        if length == 1:
            continue
        if loops and loops[-1][1] == length * stride:
            loops[-1] = (loops[-1][0] * length, stride)
        else:
            loops.append((length, stride))
    return loops


def padded(loops: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """`loops` with loops of length 1 put in front until there are `count`."""
    return [(1, 0)] * (count - len(loops)) + list(loops)


def innermost(stride: int, length: int) -> bool:
    """Whether neighbours along a dimension are neighbours in memory."""
    return stride == 1 or length == 1
