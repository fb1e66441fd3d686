"""Time callables in turn, so that a machine that slows down slows all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds per call at three percentiles, over `rounds` calls."""

    p20: float
    p50: float
    p80: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        p20, p50, p80 = (float(value) for value in np.percentile(seconds, (20, 50, 80)))
        return cls(p20, p50, p80, len(seconds))

    def as_dict(self) -> dict[str, float]:
        return {"p20": self.p20, "p50": self.p50, "p80": self.p80, "rounds": self.rounds}


@dataclass(frozen=True)
class Comparison:
    """Two timings taken in turn. `ratio` is rival over ours: above 1 we are faster."""

    ours: Timing
    rival: Timing

    @property
    def ratio(self) -> float:
        return self.rival.p50 / self.ours.p50

    @property
    def relative_cost(self) -> float:
        """Ours over rival: below 1 we are cheaper."""
        return self.ours.p50 / self.rival.p50

    def bound(self, of: str, target: float, at_least: bool) -> dict[str, Any]:
        """What must hold `of` "ratio" or "relative_cost", and whether it does: part of a row."""
        return {"bounded": of, **bound(getattr(self, of), target, at_least)}

    def as_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "relative_cost": self.relative_cost,
            "ours_s": self.ours.as_dict(),
            "rival_s": self.rival.as_dict(),
        }


def bound(value: float, target: float, at_least: bool) -> dict[str, Any]:
    return {"target": target, "at_least": at_least, "met": value >= target if at_least else value <= target}


def compare(
    ours: Callable[[], object],
    rival: Callable[[], object],
    rounds: int = 15,
    warmup: int = 2,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> Comparison:
    """Call both `rounds` times, alternating, after `warmup` untimed calls of each. Arguments as `in_turn`."""
    return Comparison(*in_turn((ours, rival), rounds, warmup, clock))


def in_turn(
    calls: Sequence[Callable[[], object]],
    rounds: int = 15,
    warmup: int = 2,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> list[Timing]:
    """Call all of them `rounds` times, after `warmup` untimed calls of each.

    The order turns round from round to round. `clock` makes a call and returns its seconds; default: by the host's
    clock.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    read = host_clock if clock is None else clock
    for _ in range(warmup):
        for call in calls:
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    for i in range(rounds):
        order = range(len(calls))
        for which in order if i % 2 == 0 else reversed(order):
            seconds[which].append(read(calls[which]))
    return [Timing.of(values) for values in seconds]


def host_clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
