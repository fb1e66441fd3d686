"""The definition of the Tolerance-of-Difference curve, and the same for many groups at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tod_curve(u: Tensor, r: Tensor) -> Tensor:
    """[n], [n] → float64 [n].

    A unit lies in both prefixes of length k iff its worse rank is below k, so the sizes of all overlaps are one
    histogram and one running sum.
    """
    n = len(u)
    worse = torch.maximum(ranks(u, descending=False), ranks(r, descending=True))
    overlaps = torch.bincount(worse).cumsum(0)
    return overlaps.to(torch.float64) / torch.arange(1, n + 1, device=u.device, dtype=torch.float64)


def ranks(values: Tensor, descending: bool) -> Tensor:
    """0-based ranks; ties go by position."""
    order = values.sort(stable=True, descending=descending).indices
    result = torch.empty_like(order)
    result[order] = torch.arange(len(values), device=values.device)
    return result


def tod_curves(u: Tensor, r: Tensor, sizes: Sequence[int]) -> Tensor:
    """[total], [total] → float64 [total]: the curve of each group, group after group."""
    parts = zip(u.split(list(sizes)), r.split(list(sizes)), strict=True)
    return torch.cat([tod_curve(own_u, own_r) for own_u, own_r in parts])
