"""Symmetric matrices of which the lower half is kept: updated by products, inverted and squeezed where they lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fairkern.ops.gather import gather

_SWEEP = 64  # positions that are swept at a time
_ROWS = 128  # rows that are updated or copied at a time, at least


def add_products(matrix: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """`matrix += scale · leftᵀ right`, which has to be symmetric; the upper half means nothing. left, right: [k, n].

    Row by row of blocks, each as far as the diagonal, so that half of a plain product is done.
    """
    for first, last in _stripes(len(matrix)):
        matrix[first:last, :last].addmm_(left[:, first:last].T, right[:, :last], alpha=scale)


def dot(matrix: Tensor, whole: Tensor) -> float:
    """The sum of the products of all elements; of `matrix` the lower half counts, `whole` has both."""
    total = torch.zeros((), dtype=matrix.dtype, device=matrix.device)
    for first, last in _stripes(len(matrix)):
        beside = (matrix[first:last, :first] * whole[first:last, :first]).sum()
        across = (matrix[first:last, first:last] * whole[first:last, first:last]).tril()
        total += 2 * (beside + across.sum()) - across.diagonal().sum()
    return float(total)


def columns(matrix: Tensor, places: Tensor) -> Tensor:
    """These columns, as rows: [places, n]."""
    below = torch.arange(len(matrix), device=matrix.device) >= places[:, None]
    return torch.where(below, matrix[:, places].T, matrix[places])


def squeezed(matrix: Tensor, kept: Tensor) -> Tensor:
    """The positions `kept`, ascending, in the memory of the matrix, which is lost."""
    n = len(kept)
    for first, last in _stripes(n):  # what is read lies at or behind what is written
        matrix[first:last, :last] = gather(matrix, {0: kept[first:last], 1: kept[:last]})
    return matrix[:n, :n]


def narrowed(matrix: Tensor) -> Tensor:
    """The matrix in float32, in its own memory, which it is lost to. `matrix`: float64, contiguous."""
    n = len(matrix)
    room = matrix.view(torch.float32).view(-1)[: n * n].view(n, n)
    for first, last in _stripes(n):  # what is read lies at or behind what is written
        room[first:last] = matrix[first:last].float()
    return room


def invert(matrix: Tensor) -> bool:
    """The inverse of a positive definite matrix, in its place; whether it is definite, to rounding.

    By sweeps of a block at a time (Gauss-Jordan): a block `P`, and the columns `B` beside it, turn into `−P⁻¹` and
    `B P⁻¹`, and the rest into what is left without it, `− B P⁻¹ Bᵀ`.
    """
    n = len(matrix)
    for first in range(0, n, _SWEEP):
        last = min(n, first + _SWEEP)
        factor, failed = torch.linalg.cholesky_ex(matrix[first:last, first:last])
        if bool(failed) or not bool(torch.isfinite(factor).all()):
            return False
        one = torch.eye(last - first, dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.solve_triangular(factor, one, upper=False)
        beside = torch.cat([matrix[first:last, :first].T, matrix[first:, first:last]])
        beside[first:last] = 0
        half = beside @ inverse.T
        add_products(matrix, half.T, half.T, -1.0)
        whole = half @ inverse
        matrix[first:last, :first] = whole[:first].T
        matrix[last:, first:last] = whole[last:]
        matrix[first:last, first:last] = -(inverse.T @ inverse)
    matrix.neg_()
    return True


def _stripes(n: int) -> Iterator[tuple[int, int]]:
    """First and last of every row of blocks: narrow, so that little is done above the diagonal, but not too many."""
    step = max(_ROWS, n // 32)
    return ((first, min(n, first + step)) for first in range(0, n, step))
