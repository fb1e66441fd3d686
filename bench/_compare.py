"""Time two callables in turn, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
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

    def as_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "relative_cost": self.relative_cost,
            "ours_s": self.ours.as_dict(),
            "rival_s": self.rival.as_dict(),
        }


def compare(
    ours: Callable[[], object],
    rival: Callable[[], object],
    rounds: int = 15,
    warmup: int = 2,
    synchronize: Callable[[], object] | None = None,
) -> Comparison:
    """Call both `rounds` times, alternating, after `warmup` untimed calls of each.

    Which of the two goes first changes from round to round. `synchronize` (for example
    `torch.cuda.synchronize`) is called before each reading of the clock.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; at least 1 is needed")
    for _ in range(warmup):
        ours()
        rival()
    seconds: tuple[list[float], list[float]] = ([], [])
    calls = (ours, rival)
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            seconds[which].append(_timed(calls[which], synchronize))
    return Comparison(Timing.of(seconds[0]), Timing.of(seconds[1]))


def _timed(call: Callable[[], object], synchronize: Callable[[], object] | None) -> float:
    if synchronize is not None:
        synchronize()
    start = time.perf_counter()
    call()
    if synchronize is not None:
        synchronize()
    return time.perf_counter() - start
