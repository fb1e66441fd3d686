"""The definition of the Gram matrix, in plain torch."""

from __future__ import annotations

from torch import Tensor


def gram(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Σ a aᵀ and Σ a over all dimensions but `dim`; the lower triangle is the upper one."""
    vectors = x.movedim(dim, 0).reshape(x.shape[dim], -1)
    product = vectors @ vectors.T
    return product.triu() + product.triu(1).T, vectors.sum(1)
