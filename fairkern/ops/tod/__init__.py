"""Tolerance of Difference: how far removal and protection signals contradict each other."""

from __future__ import annotations

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check
from fairkern.ops._registry import resolve
from fairkern.ops.tod import reference

__all__ = ["tod_curve"]


def tod_curve(u: Tensor, r: Tensor, *, backend: str = "auto") -> Tensor:
    """Share of the k units with the lowest `u` that are also among the k with the highest `r`, for k = 1 … n.

    Ties are broken by position, in both rankings.

    Args:
        u: [n] removal signal (low: candidate for removal), floating, finite.
        r: [n] protection signal (high: protected), floating, finite.
        backend: "auto" or "reference".

    Returns:
        float64 [n]; entry k − 1 is ToD(k), between 0 and 1. The last is 1.

    Raises:
        InputError: shapes, dtypes, or values that have no rank (NaN). BackendError: the backend cannot run here.

    Cost: two stable sorts, then O(n).

    Source: arXiv 2508.02291, Tolerance of Difference.

    Example:
        >>> tod_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([5.0, 1.0, 2.0, 3.0]))
        tensor([1.0000, 0.5000, 0.6667, 1.0000], dtype=torch.float64)
    """
    u, r = _check.floating("u", u), _check.floating("r", r)
    _check.same_device(u=u, r=r)
    if u.ndim != 1 or u.shape != r.shape or len(u) == 0:
        raise InputError(f"u has shape {tuple(u.shape)} and r {tuple(r.shape)}; expected both [n] with n ≥ 1")
    for name, values in (("u", u), ("r", r)):
        if bool(torch.isnan(values).any()):
            raise InputError(f"{name} holds NaN, which has no rank")
    resolve("tod_curve", backend, u.device)
    return reference.tod_curve(u, r)
