"""The definition of the Gram matrix, in plain torch."""

from __future__ import annotations

from torch import Tensor

from fairkern.surroundings import uncast

ROWS = 128  # of the upper triangle at a time


@uncast
def gram(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Σ a aᵀ and Σ a over all dimensions but `dim`; the lower triangle is the upper one."""
    vectors = x.movedim(dim, 0).reshape(x.shape[dim], -1)
    product = vectors.new_empty(len(vectors), len(vectors))
    for row in range(0, len(vectors), ROWS):
        product[row : row + ROWS, row:] = vectors[row : row + ROWS] @ vectors[row:].T
    return product.triu() + product.triu(1).T, vectors.sum(1)
