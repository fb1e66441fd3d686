"""What is known of what a weight reads, means or second moments, and the fits that are made from it, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fairkern.compensate.fit import Compensation, Fit, by_least_squares, by_means
from fairkern.errors import InputError, PlanMismatchError
from fairkern.types import IndexArray, JointMoments, Moments, Scores

Sums = TypeVar("Sums", bound=Moments | JointMoments)


class Statistics(Protocol):
    """Of what is read at one tap, or at several by one weight. `per_unit` positions in a row share a row of a fit."""

    @property
    def length(self) -> int:
        """Positions of the tap."""

    @property
    def per_unit(self) -> int: ...

    def fit(self, first: int, length: int, removed: IndexArray, intercept: bool) -> Fit:
        """From positions `first … first + length` of the tap without `removed`, which count from there."""


class Means:
    """Mean activations by position: they are all that is known."""

    per_unit = 1

    def __init__(self, mean: Tensor) -> None:
        self.mean, self.length = mean, len(mean)

    def fit(self, first: int, length: int, removed: IndexArray, intercept: bool) -> Fit:
        return by_means(self.mean[first : first + length], removed)


class SecondMoments:
    """Second moments, solved once for every set of positions that consumers ask for."""

    def __init__(self, name: str, moments: Moments | JointMoments, ridge: float) -> None:
        self._name, self._moments, self._ridge = name, moments, ridge
        self.per_unit = moments.per_unit
        self.length = len(moments.total) * moments.per_unit
        self._solved: dict[tuple[int, int, bytes, bool], Fit] = {}

    def fit(self, first: int, length: int, removed: IndexArray, intercept: bool) -> Fit:
        key = (first, length, removed.tobytes(), intercept)
        if key not in self._solved:
            whole = np.unique(removed // self.per_unit)
            if len(whole) * self.per_unit != len(removed):
                raise PlanMismatchError(
                    f"the plan cuts parts of a channel at {self._name}: plan again from these scores"
                )
            moments = self._moments
            part = moments if length == self.length else _part(moments, first // self.per_unit, length // self.per_unit)
            self._solved[key] = by_least_squares(part, whole, intercept=intercept, ridge=self._ridge)
        return self._solved[key]


def of_taps(names: Sequence[str], scores: Scores, method: Compensation, ridge: float) -> Statistics:
    """What `method` takes of these taps' scores. Raises InputError where they do not hold it."""
    by_mean = method is Compensation.MEAN
    missing = next((name for name in names if name not in (scores.means if by_mean else scores.moments)), None)
    if missing is not None and by_mean:
        raise InputError(f"the scores hold no mean of {missing}; score with recipe='default' to compensate means")
    if missing is not None:
        raise InputError(
            f"the scores hold no moments of {missing}; score with gram=True to compensate by least squares"
        )
    if by_mean:
        return Means(torch.from_numpy(np.mean([scores.means[name] for name in names], axis=0)))
    return SecondMoments(names[0], summed([scores.moments[name] for name in names]), ridge)


def summed(parts: Sequence[Sums]) -> Sums:
    """Over taps that one weight reads."""
    first = parts[0]
    if len(parts) == 1:
        return first
    added = [name for name, value in vars(first).items() if isinstance(value, Tensor) or name == "count"]
    sums: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in added}
    return replace(first, **sums)


def unchanged(moments: Moments) -> JointMoments:
    """Of a tap where two models read the same."""
    gram, total = moments.gram, moments.total
    return JointMoments(gram, gram, total, total, moments.count, moments.per_unit)


def _part(moments: Sums, first: int, length: int) -> Sums:
    """Of some positions alone."""
    rows = slice(first, first + length)
    cut: dict[str, Any] = {n: v[(rows,) * v.ndim] for n, v in vars(moments).items() if isinstance(v, Tensor)}
    return replace(moments, **cut)
