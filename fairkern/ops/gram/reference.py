"""The definition of the Gram matrix, in plain torch."""

from __future__ import annotations

import torch
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


def less(x: Tensor, shift: Tensor) -> Tensor:
    """Vectors along the first dimension less `shift`, in its dtype; laid out as `x`, where its vectors lie side by
    side, else with units first."""
    if x.ndim > 1 and x.stride(0) == 1:
        room = torch.empty(*x.shape[1:], len(x), dtype=shift.dtype, device=x.device).movedim(-1, 0)
    else:
        room = torch.empty(x.shape, dtype=shift.dtype, device=x.device)
    return torch.sub(x, shift.view(-1, *[1] * (x.ndim - 1)), out=room)


def holds_squares(vectors: Tensor, held: tuple[float, float]) -> Tensor:
    """Whether the largest sum of squares of a unit is from the first number of `held` up to the second: bool []."""
    norm = torch.linalg.vector_norm(vectors.reshape(len(vectors), -1), dim=1).amax()
    return (norm >= held[0] ** 0.5) & (norm < held[1] ** 0.5)
