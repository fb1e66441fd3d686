"""What a weight read, told from what it reads now at the positions that stay: the one fit behind compensation."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairkern.ops.eliminate.config import RIDGE
from fairkern.ops.gather import gather
from fairkern.ops.ridge import solve
from fairkern.types import IndexArray, JointMoments, Moments


class Compensation(enum.Enum):
    """What is folded into the consumers: nothing, the removed units' means, their least-squares prediction, that layer
    after layer, each on what it reads once those before it have been cut, or what all layers together can do for the
    outputs."""

    NONE = "none"
    MEAN = "mean"
    LEAST_SQUARES = "least_squares"
    SEQUENTIAL = "sequential"
    JOINT = "joint"

    @property
    def compares(self) -> bool:
        """Whether it looks at the data again, in the cut model and in the uncut one."""
        return self in (Compensation.SEQUENTIAL, Compensation.JOINT)


@dataclass(frozen=True, eq=False)
class Fit:
    """`a[told] ≈ weights @ b[kept] + intercept`, beside what position `i` of `b` tells of `a[i]` where it stays.

    `a` is what a weight read in the model as it was, `b` what it reads now. Where nothing has changed but that
    positions go, those that stay tell all of themselves, and only those that go are `told`. `unexplained` is the
    squared error over the squares of what goes, about the mean if there is an intercept; NaN where it is not known.
    `with_intercept`, where there is none: what an intercept would leave of the same squares. Float64 on the CPU.
    """

    told: IndexArray
    kept: IndexArray
    weights: Tensor  # [told, kept]
    intercept: Tensor  # [told]
    unexplained: float
    with_intercept: float = torch.nan


def by_means(mean: Tensor, removed: IndexArray) -> Fit:
    """The removed units' means and nothing of what they do around them."""
    kept = _others(len(mean), removed)
    weights = torch.zeros((len(removed), len(kept)), dtype=torch.float64, device="cpu")
    return Fit(removed, kept, weights, mean[torch.from_numpy(removed)], 1.0)


def by_least_squares(
    moments: Moments | JointMoments, removed: IndexArray, *, intercept: bool = True, ridge: float = RIDGE
) -> Fit:
    """The best linear prediction from all positions but `removed`, with a ridge of `ridge` · their mean variance.

    `Moments` are those of a model that has not been changed: `b` is `a`. The ridge draws towards `a[kept] = b[kept]`.
    Solved by Cholesky in float64. A unit that never varies predicts nothing, and dependent units share; where the
    ridge is lost in rounding it grows tenfold until the factorisation holds.

    Raises NonFiniteError. Cost: kept³ / 6 + told · kept² multiply-adds, which is a third of what ordering the same
    positions takes where half of them go; memory: 3 · kept² + 3 · told · kept numbers.
    """
    joint, count = moments if isinstance(moments, JointMoments) else None, moments.count
    read = moments.total / count
    kept = _others(len(read), removed)
    told = removed if joint is None else np.arange(len(read), dtype=np.int64)
    k, t = torch.from_numpy(kept), torch.from_numpy(told)
    if joint is not None and joint.kept is not None:
        assert torch.equal(joint.kept, k)
        inner, cross, now = joint.gram / count, joint.cross / count, joint.changed / count
    else:
        now = (read if joint is None else joint.changed / count)[k]
        inner = gather(moments.gram, {0: k, 1: k}).div_(count)
        cross = gather(moments.gram if joint is None else joint.cross, {0: t, 1: k}).div_(count)
    if intercept:
        inner.addr_(now, now, alpha=-1)
        cross.addr_(read[t], now, alpha=-1)
    if joint is not None:
        cross[k] -= inner
    through_zero = joint is None and not intercept
    weights, added = solve(inner, torch.cat([cross, now[None]]) if through_zero else cross, ridge)
    weights, to_mean = weights[: len(t)], weights[len(t) :]
    shift = torch.zeros(len(t), dtype=torch.float64, device="cpu")
    if intercept:
        shift = read[t] - weights @ now
        if joint is not None:
            shift[k] -= now
    unexplained = with_intercept = torch.nan
    if joint is None:
        power = float((moments.gram.diagonal()[t] / count - (read[t].square() if intercept else 0.0)).sum())
        unexplained = _share(power - _explained(weights, cross, added), power)
        if through_zero:  # a constant beside what stays, from the same system
            constant = (read[t] - weights @ now) / (1.0 - to_mean @ now)
            turned = weights - torch.outer(constant, to_mean[0])
            with_intercept = _share(power - _explained(turned, cross, added) - float(constant @ read[t]), power)
    return Fit(told, kept, weights, shift, unexplained, with_intercept)


def _explained(weights: Tensor, cross: Tensor, added: float) -> float:
    """The power that a fit explains: by `weights @ (inner + added) = cross` the inner matrix is not needed."""
    return float((weights * cross).sum()) + added * float(weights.square().sum())


def _share(left: float, power: float) -> float:
    return max(left, 0.0) / power if power > 0 else 0.0


def _others(n: int, removed: IndexArray) -> IndexArray:
    return np.setdiff1d(np.arange(n, dtype=np.int64), removed)
