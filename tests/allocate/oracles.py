"""Definitions, written as slowly as they read."""

from __future__ import annotations


def tod_by_sets(u: list[float], r: list[float]) -> list[float]:
    """ToD(k) = |k lowest U ∩ k highest R| / k, ties by index."""
    lowest = sorted(range(len(u)), key=lambda i: (u[i], i))
    highest = sorted(range(len(r)), key=lambda i: (-r[i], i))
    return [len(set(lowest[:k]) & set(highest[:k])) / k for k in range(1, len(u) + 1)]
