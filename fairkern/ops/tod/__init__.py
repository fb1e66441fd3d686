"""Tolerance of Difference: how far removal and protection signals contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fairkern.errors import InputError
from fairkern.ops import _check
from fairkern.ops._registry import Backend, resolve
from fairkern.ops.tod import native, reference
from fairkern.options import iterable, whole

__all__ = ["tod_curve", "tod_curves"]


def tod_curve(u: Tensor, r: Tensor, *, backend: str = "auto") -> Tensor:
    """Share of the k units with the lowest `u` that are also among the k with the highest `r`, for k = 1 … n.

    Ties are broken by position, in both rankings.

    Args:
        u: [n] removal signal (low: candidate for removal), floating, finite.
        r: [n] protection signal (high: protected), floating, finite.
        backend: "auto", "native" or "reference".

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
    u, r = _checked(u, r)
    return _curves(u, r, [len(u)], backend)


def tod_curves(u: Tensor, r: Tensor, sizes: Sequence[int], *, backend: str = "auto") -> Tensor:
    """`tod_curve` of many axis groups at once: group after group, `sizes[g]` units each.

    Args:
        u, r: [total] as for `tod_curve`, the groups' scores one after another.
        sizes: units per group, each at least 1, `total` together.
        backend: "auto", "native" or "reference".

    Returns:
        float64 [total], the groups' curves one after another: the same numbers as `tod_curve` gives for each.

    Raises:
        InputError, BackendError: as `tod_curve`, and for sizes that do not fit.

    Cost: two sorts of each group, then O(total); "native" in one call, groups spread over the threads.

    Example:
        >>> u, r = torch.tensor([0.1, 0.2, 0.7, 0.3, 0.4]), torch.tensor([5.0, 1.0, 3.0, 2.0, 1.0])
        >>> tod_curves(u, r, [2, 3])
        tensor([1.0000, 1.0000, 0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    u, r = _checked(u, r)
    iterable("sizes", sizes, "whole numbers, units per group")
    sizes = [whole("sizes", size, 1) for size in sizes]
    if not sizes or sum(sizes) != len(u):
        raise InputError(f"sizes are {list(sizes)}; expected sizes of at least 1 that make {len(u)} together")
    return _curves(u, r, sizes, backend)


def _curves(u: Tensor, r: Tensor, sizes: Sequence[int], backend: str) -> Tensor:
    chosen = native if resolve("tod_curve", backend, u.device) is Backend.NATIVE else reference
    return chosen.tod_curves(u, r, sizes)


def _checked(u: object, r: object) -> tuple[Tensor, Tensor]:
    u, r = _check.floating("u", u), _check.floating("r", r)
    _check.same_device(u=u, r=r)
    if u.ndim != 1 or u.shape != r.shape or len(u) == 0:
        raise InputError(f"u has shape {tuple(u.shape)} and r {tuple(r.shape)}; expected both [n] with n ≥ 1")
    for name, values in (("u", u), ("r", r)):
        if bool(torch.isnan(values).any()):
            raise InputError(f"{name} holds NaN, which has no rank")
    return u, r
