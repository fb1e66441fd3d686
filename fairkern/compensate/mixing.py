"""What removed units carried, told from those that stay: the least-squares fit behind compensation."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairkern.ops.eliminate.config import RIDGE
from fairkern.ops.ridge import solve
from fairkern.types import IndexArray, Moments


class Compensation(enum.Enum):
    """What is folded into the consumers: nothing, the removed units' means, their least-squares prediction, or that
    layer after layer, each on what it reads once those before it have been cut."""

    NONE = "none"
    MEAN = "mean"
    LEAST_SQUARES = "least_squares"
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, eq=False)
class Mixing:
    """`a_removed ≈ weights @ a_kept + intercept`. Float64 on the CPU."""

    removed: IndexArray
    kept: IndexArray
    weights: Tensor  # [removed, kept]
    intercept: Tensor  # [removed]
    unexplained: float  # Σ squared error / Σ squares of what is removed, about the mean if there is an intercept


def by_means(mean: np.ndarray, removed: IndexArray) -> Mixing:
    """The removed units' means and nothing of what they do around them."""
    kept = _others(len(mean), removed)
    weights = torch.zeros((len(removed), len(kept)), dtype=torch.float64)
    return Mixing(removed, kept, weights, torch.from_numpy(mean[removed]), 1.0)


def by_least_squares(moments: Moments, removed: IndexArray, *, intercept: bool = True, ridge: float = RIDGE) -> Mixing:
    """The best linear prediction of `removed` from all others, with a ridge of `ridge` · the mean variance.

    Solved by Cholesky in float64. A unit that never varies predicts nothing, and dependent units share; where the
    ridge is lost in rounding it grows tenfold until the factorisation holds.

    Raises NonFiniteError. Cost: kept³ / 3 + removed · kept² multiply-adds.
    """
    square = torch.from_numpy(moments.gram) / moments.count
    mean = torch.from_numpy(moments.total) / moments.count
    if intercept:
        square = square - torch.outer(mean, mean)
    kept = _others(len(mean), removed)
    r, k = torch.from_numpy(removed), torch.from_numpy(kept)
    inner, cross, own = square[k][:, k], square[r][:, k], square[r][:, r]
    weights = solve(inner, cross, ridge)
    shift = mean[r] - weights @ mean[k] if intercept else torch.zeros(len(r), dtype=torch.float64)
    error = float((own.diagonal() - 2 * (weights * cross).sum(1) + ((weights @ inner) * weights).sum(1)).sum())
    total = float(own.diagonal().sum())
    return Mixing(removed, kept, weights, shift, max(error, 0.0) / total if total > 0 else 0.0)


def _others(n: int, removed: IndexArray) -> IndexArray:
    return np.setdiff1d(np.arange(n, dtype=np.int64), removed)
