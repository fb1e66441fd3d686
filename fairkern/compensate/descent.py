"""Nonlinear conjugate gradients: what lowers a function of many tensors, of which values and gradients can be had."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Point = Sequence[Tensor]
Function = Callable[[Point], tuple[float, Point]]  # value and gradient

_TRIES = 6  # evaluations along one direction
_LESS = 1e-4  # of what the slope promises has to be gained (Armijo's condition)
_FLAT = 0.5  # of the slope may be left (Wolfe's strong condition)
_AT_LEAST, _AT_MOST = 0.1, 4.0  # times the length tried last


@dataclass(frozen=True)
class _Place:
    """Somewhere along a direction: how far along, value, gradient, and the slope there."""

    length: float
    point: Point
    value: float
    gradient: Point
    slope: float


@dataclass(frozen=True)
class Lowest:
    """The lowest point that was found, its value, and that of where it began."""

    point: Point
    value: float
    first: float


def minimise(function: Function, start: Point, precondition: Callable[[Point], Point], steps: int) -> Lowest:
    """The lowest point that so many steps come to from `start`; `start` itself where none is lower.

    Polak and Ribière's direction, begun anew where it would point back, from gradients that `precondition` has
    multiplied by something positive definite. Along a direction secants of the slope are followed until Wolfe's strong
    conditions hold, for `_TRIES` evaluations at most. The first length is that at which a parabola of this value and
    slope touches zero, where the function is taken to be lowest.

    Cost: little more than one evaluation a step. Memory: six times `start`.
    """
    value, gradient = function(start)
    here = _Place(0.0, start, value, gradient, 0.0)
    scaled = precondition(gradient)
    power = dot(gradient, scaled)
    direction = [-s for s in scaled]
    length = 2 * value / power if power > 0 else 0.0
    for _ in range(steps):
        slope = dot(here.gradient, direction)
        if slope >= 0:
            direction, slope = [-s for s in scaled], -power
        if not slope < 0 or not length > 0:
            break
        found = _lower(function, here, direction, slope, length)
        if found is None:
            break
        before, here, scaled = here.gradient, found, precondition(found.gradient)
        last, power = power, dot(here.gradient, scaled)
        turned = max(0.0, (power - dot(before, scaled)) / last)
        following = [turned * d - s for d, s in zip(direction, scaled, strict=True)]
        following_slope = dot(here.gradient, following)
        length = found.length * min(slope / following_slope, _AT_MOST) if following_slope < 0 else found.length
        direction = following
    return Lowest(here.point, here.value, value)


def _lower(function: Function, here: _Place, direction: Point, slope: float, length: float) -> _Place | None:
    """A place along `direction` that is lower than `here`: one where Wolfe's conditions hold, or the lowest tried."""
    best = None
    for _ in range(_TRIES):
        point = [p + length * d for p, d in zip(here.point, direction, strict=True)]
        value, gradient = function(point)
        there = _Place(length, point, value, gradient, dot(gradient, direction))
        if not (math.isfinite(value) and math.isfinite(there.slope)):
            length *= _AT_LEAST
            continue
        if value < here.value and (best is None or value < best.value):
            best = there
        if value <= here.value + _LESS * length * slope and abs(there.slope) <= _FLAT * abs(slope):
            return there
        rises = there.slope - slope
        wanted = -slope / rises if rises > 0 else _AT_MOST
        length *= min(max(wanted, _AT_LEAST), _AT_MOST)
    return best


def dot(a: Point, b: Point) -> float:
    """The sum over all tensors, in float64."""
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
