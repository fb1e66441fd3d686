"""Scores of groups → the order in which their units go, and the threshold at which the k-th may go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fairkern.ops import tod_curves
from fairkern.types import FloatArray, IndexArray


def removal_order(removal: FloatArray) -> IndexArray:
    """Unit indices in order of removal: ascending score, ties by index. float64 `[.., n]` → int64 `[.., n]`."""
    return np.argsort(removal, kind="stable")


def tolerance_curves(removal: Mapping[int, FloatArray], protect: Mapping[int, FloatArray]) -> dict[int, FloatArray]:
    """Per group, ToD(k) for `k = 1 … n`: the share of the k lowest U that are among the k highest R.

    The curves of all groups are made at once. Of several sets each loses k units of its own: their overlaps are summed
    and divided by k · sets.

    Args:
        removal: U-scores per group, float64 `[n]` or `[sets, n]`; low goes first.
        protect: R-scores per group, of the same shape; high is protected.

    Returns:
        float64 `[n]` per group.

    Example:
        >>> u, r = np.array([0.1, 0.4, 0.3, 0.2]), np.array([1.0, 4.0, 2.0, 3.0])
        >>> tolerance_curves({7: u}, {7: r})[7]
        array([0.        , 0.5       , 0.66666667, 1.        ])
    """
    if not removal:
        return {}
    rows = [(g, row) for g, scores in removal.items() for row in range(len(np.atleast_2d(scores)))]
    sizes = [removal[g].shape[-1] for g, _ in rows]
    flat = [torch.from_numpy(np.concatenate([signal[g].reshape(-1) for g in removal])) for signal in (removal, protect)]
    curves = np.split(tod_curves(flat[0], flat[1], sizes).numpy(), np.cumsum(sizes)[:-1])
    return {g: np.mean([c for (owner, _), c in zip(rows, curves, strict=True) if owner == g], axis=0) for g in removal}


def tolerance_need(curve: FloatArray) -> FloatArray:
    """The ToD at which at least `k` units may go: `need[k−1] = min over j ≥ k of ToD(j)`.

    So `m(α) = max{k : ToD(k) ≤ α}` is the number of entries `≤ α` (FAIR-Pruner, arXiv 2508.02291: the pruning level at
    tolerance α). `curve`: ToD(k) for every k up to the most that may go. Returns as many, non-decreasing.

    Example:
        >>> tolerance_need(np.array([0.0, 0.5, 0.2, 0.6]))
        array([0. , 0.2, 0.2, 0.6])
    """
    return np.minimum.accumulate(curve[::-1])[::-1]


def fraction_need(units: int) -> FloatArray:
    """The same fraction of every group: `need[k−1] = k / units`, float64 `[units]`."""
    return np.arange(1, units + 1) / units


def pooled_need(removal: FloatArray) -> FloatArray:
    """One ranking over all groups: sorted scores as they are, float64 `[n]`.

    Several sets `[sets, n]` lose their k-th units together, for the mean of their scores.
    """
    return np.asarray(np.sort(np.atleast_2d(removal)).mean(axis=0))


def normalized_need(removal: FloatArray) -> FloatArray:
    """One ranking over all groups: sorted scores divided by the group's mean magnitude, float64 `[n]`.

    The mean magnitude makes groups comparable whose signals have different scales. A constant group lies at ±1,
    an all-zero group at 0, so it goes first. Several sets as in `pooled_need`.
    """
    scale = float(np.abs(removal).mean())
    return pooled_need(removal) / (scale if scale > 0 else 1.0)
