"""Scores of one group → the order in which its units go, and the threshold at which the k-th may go."""

from __future__ import annotations

import numpy as np
import torch

from fairkern.ops import tod_curve
from fairkern.types import FloatArray, IndexArray


def removal_order(removal: FloatArray) -> IndexArray:
    """Unit indices in order of removal: ascending score, ties by index. float64 `[.., n]` → int64 `[.., n]`."""
    return np.argsort(removal, axis=-1, kind="stable")


def tolerance_need(removal: FloatArray, protect: FloatArray, limit: int) -> FloatArray:
    """ToD at which at least `k` units of a group may go, for `k = 1 … limit`.

    `need[k−1] = min over k ≤ j ≤ limit of ToD(j)`, so `m(α) = max{k ≤ limit : ToD(k) ≤ α}` is the number of
    entries `≤ α` (FAIR-Pruner, arXiv 2508.02291: the pruning level at tolerance α). O(n log n) for the ranks.
    Of several sets each loses k units of its own: their overlaps are summed and divided by k · sets.

    Args:
        removal: U-scores, float64 `[n]` or `[sets, n]`; low goes first.
        protect: R-scores, of the same shape; high is protected.
        limit: most units that may go, at most n.

    Returns:
        float64 `[limit]`, non-decreasing.

    Example:
        >>> tolerance_need(np.array([0.1, 0.4, 0.3, 0.2]), np.array([1.0, 4.0, 2.0, 3.0]), limit=3)
        array([0.        , 0.5       , 0.66666667])
    """
    if limit == 0:
        return np.zeros(0)
    sets = zip(np.atleast_2d(removal), np.atleast_2d(protect), strict=True)
    curves = [tod_curve(torch.from_numpy(u), torch.from_numpy(r)).numpy()[:limit] for u, r in sets]
    return np.minimum.accumulate(np.mean(curves, axis=0)[::-1])[::-1]


def fraction_need(units: int, limit: int) -> FloatArray:
    """The same fraction of every group: `need[k−1] = k / units`, float64 `[limit]`."""
    return np.arange(1, limit + 1) / units


def pooled_need(removal: FloatArray, limit: int) -> FloatArray:
    """One ranking over all groups: sorted scores as they are, float64 `[limit]`.

    Several sets `[sets, n]` lose their k-th units together, for the mean of their scores.
    """
    return np.sort(np.atleast_2d(removal)).mean(axis=0)[:limit]


def normalized_need(removal: FloatArray, limit: int) -> FloatArray:
    """One ranking over all groups: sorted scores divided by the group's mean magnitude, float64 `[limit]`.

    The mean magnitude makes groups comparable whose signals have different scales. A constant group lies at ±1,
    an all-zero group at 0, so it goes first. Several sets as in `pooled_need`.
    """
    scale = float(np.abs(removal).mean())
    return pooled_need(removal, limit) / (scale if scale > 0 else 1.0)
