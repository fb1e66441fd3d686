"""One ordered list of steps for all bundles, how many of them meet a budget, and which can be given back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fairkern.allocate.bundles import Bundle, Levels
from fairkern.allocate.latency import latency_terms
from fairkern.allocate.options import Target
from fairkern.errors import BudgetError, InputError
from fairkern.plans.cost import Cost, Order
from fairkern.ties import classes, rounding
from fairkern.types import CostTerm, FloatArray, IndexArray, LatencyTable, UnitMap

_FEW = 12  # steps whose shares an error lists


@dataclass(frozen=True)
class Steps:
    """Every single step that the limits allow, in the order in which steps are taken: arrays `[steps]`.

    A step takes a bundle from one allowed number of parts to the next. Sorted by the threshold it needs (made
    ascending, where nothing but rounding tells needs apart); steps of equal need by the fraction of their bundle's run
    of that need, then by bundle.
    """

    need: FloatArray
    bundle: IndexArray
    bundles: int

    @classmethod
    def of(cls, need: Sequence[FloatArray], measured: bool) -> Steps:
        """`need`: per bundle the threshold of each of its steps. `measured`: those that are equal but for rounding
        count as equal."""
        bundle = np.repeat(np.arange(len(need)), [len(n) for n in need])
        flat = np.concatenate([np.zeros(0), *need])
        if not len(flat):
            return cls(flat, bundle, len(need))
        level = classes(flat, rounding(flat, [len(n) for n in need if len(n)])) if measured else flat
        # the place of a step within the run of equal needs of its bundle, as a fraction of that run
        starts = np.flatnonzero(np.concatenate(([True], (level[1:] != level[:-1]) | (bundle[1:] != bundle[:-1]))))
        lengths = np.diff(np.append(starts, len(flat)))
        fraction = (np.arange(1, len(flat) + 1) - np.repeat(starts, lengths)) / np.repeat(lengths, lengths)
        turn = np.lexsort((bundle, fraction, level))
        return cls(np.maximum.accumulate(flat[turn]), bundle[turn], len(need))

    def counts(self, taken: int) -> IndexArray:
        """Steps taken by each bundle after the first `taken` steps: int64 `[bundles]`."""
        return np.bincount(self.bundle[:taken], minlength=self.bundles)


def budget_terms(units: UnitMap, target: Target, latency: LatencyTable | None) -> Sequence[CostTerm]:
    """What a budget is counted in."""
    if target is Target.LATENCY:
        assert latency is not None
        return latency_terms(units, latency)
    return units.params if target is Target.PARAMS else units.flops


class Budget:
    """Whether a removal meets the target."""

    def __init__(self, units: UnitMap, target: Target, keep: float, latency: LatencyTable | None, order: Order) -> None:
        self.cost = Cost(units, budget_terms(units, target, latency), order)
        nothing = np.zeros(len(units.groups), dtype=np.int64)
        self.total = latency.whole if target is Target.LATENCY and latency else self.cost(nothing)
        self.keep = keep
        if not self.total > 0:
            raise InputError(f"{target.value}= needs costs above zero; the map of {units.model} has {self.total}")

    def share(self, removed: IndexArray) -> float:
        return self.cost(removed) / self.total

    def fits(self, removed: IndexArray) -> bool:
        return self.share(removed) <= self.keep or self.keep == 1

    def fits_alone(self, bundles: Sequence[Bundle], removed: IndexArray, fewer: IndexArray) -> IndexArray:
        """Per bundle, whether it alone may go back from `removed` to `fewer` units of its groups."""
        before = self.cost(removed)
        after = before + self.cost.change(removed, removed - fewer)[[bundle.groups[0] for bundle in bundles]]
        for b, bundle in enumerate(bundles):
            if len(bundle.groups) > 1:  # of several groups that meet in a product, changes do not add up
                back = removed.copy()
                back[list(bundle.groups)] = fewer[list(bundle.groups)]
                after[b] = self.cost(back)
        return (after / self.total <= self.keep) | (self.keep == 1)


def fewest(steps: Steps, levels: Levels, budget: Budget, asked: str, allowed: str) -> int:
    """Length of the shortest run of steps that meets the budget.

    Raises BudgetError where none does: `asked` cannot be reached with what is `allowed`.
    """

    def fits(taken: int) -> bool:
        return budget.fits(levels.removed(steps.counts(taken)))

    everything = len(steps.need)
    if not fits(everything):
        few = everything <= _FEW
        shares = [
            budget.share(levels.removed(steps.counts(n))) for n in (range(everything + 1) if few else [everything])
        ]
        reachable = sorted({min(1.0, math.ceil(share * 1e6) / 1e6) for share in shares})
        said = (
            f"reachable shares: {', '.join(map(str, reachable))}; ask for one of those"
            if few
            else f"it can be anything in [{reachable[0]}, 1.0]; ask for a value in that range"
        )
        raise BudgetError(f"{asked} cannot be reached: with {allowed} {said} or loosen the limits")
    return _first_true(0, everything, fits)


def give_back(steps: Steps, taken: int, bundles: Sequence[Bundle], levels: Levels, budget: Budget) -> IndexArray:
    """Returns steps that fit under the budget, the last taken first; steps per bundle.

    A step that does not fit never fits later, since giving back elsewhere only makes it dearer (costs are
    products of extents). So every round either returns steps or closes bundles.
    """
    counts = steps.counts(taken)
    remaining = steps.bundle[:taken][::-1]
    open_ = np.full(len(counts), True)
    while True:
        removed = levels.removed(counts)
        open_ &= budget.fits_alone(bundles, removed, levels.removed(np.maximum(counts - 1, 0)))
        candidate = np.flatnonzero(open_[remaining])
        if not len(candidate):
            return counts
        returned = _longest(remaining[candidate], counts, levels, budget)
        if not returned:  # rounding of fractional costs: the sum fitted, the evaluation does not
            open_[remaining[candidate[0]]] = False
            continue
        counts = counts - np.bincount(remaining[candidate[:returned]], minlength=len(counts))
        remaining = np.delete(remaining, candidate[:returned])


def _longest(candidates: IndexArray, counts: IndexArray, levels: Levels, budget: Budget) -> int:
    """How many of these steps, from the front, can be returned together."""

    def exceeds(returned: int) -> bool:
        fewer = counts - np.bincount(candidates[:returned], minlength=len(counts))
        return not budget.fits(levels.removed(fewer))

    reach = 1
    while reach < len(candidates) and not exceeds(reach):
        reach *= 2
    if reach >= len(candidates) and not exceeds(len(candidates)):
        return len(candidates)
    return _first_true(1, min(reach, len(candidates)), exceeds) - 1


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Smallest n in [low, high] at which a monotone predicate holds; it is taken to hold at `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
