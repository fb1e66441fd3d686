"""Scores and a target → a plan: one ordered list of steps, cut where the target is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import Unpack

from fairkern.allocate.latency import latency_cost, latency_terms
from fairkern.allocate.options import (
    Allocation,
    Limits,
    Planning,
    PlanningOptions,
    Target,
    ignored_groups,
    limits,
    parse_target,
)
from fairkern.allocate.prices import priced
from fairkern.allocate.signals import RANDOM, check_signal, defaults, is_function, levels, name_of, read_signal
from fairkern.allocate.tod import fraction_need, normalized_need, pooled_need, removal_order, tolerance_needs
from fairkern.errors import BudgetError, InputError
from fairkern.options import TABLE, instance
from fairkern.plans.build import build
from fairkern.plans.cost import Cost, Order, told_apart
from fairkern.plans.removals import NONE
from fairkern.ties import classes, rounding
from fairkern.types import CostTerm, FloatArray, IndexArray, LatencyTable, Plan, Scores, UnitMap


def allocate(
    scores: Scores,
    *,
    tod: float | None = None,
    keep_params: float | None = None,
    keep_flops: float | None = None,
    keep_latency: float | None = None,
    latency: LatencyTable | None = None,
    **options: Unpack[PlanningOptions],
) -> Plan:
    """Which units go for a tolerance or a budget. Milliseconds; neither model nor data is needed.

    Within a group, units go in ascending order of the removal signal. Ties go by index, and what differs by no more
    than rounding is a tie (`fairkern.ties`), so that a plan does not depend on how the data was batched. How many go is
    decided by one threshold for all groups: with `allocation="tod"` the Tolerance of Difference (FAIR-Pruner,
    arXiv 2508.02291), with `"uniform"` the fraction of the group, with `"global"` the removal signal itself, with
    `"normalized"` the removal signal divided by its mean magnitude in the group. In a group of several sets (the inner
    units of experts) every set loses as many units as the others, and not the same ones. A budget is solved for that
    threshold; between the last threshold that keeps too much and the first that keeps little enough, groups are cut
    partway, by equal fractions and then step by step; steps that still fit under the budget are given back, the last
    removed first. So the plan keeps at most
    what was asked for, and giving any single step back would exceed it.

    Args:
        scores: what `score` returned.
        tod: the tolerance α, from 0 to 1: remove `max{k : ToD(k) ≤ α}` units of each group.
        keep_params: at most this share of the whole model's parameters stays, above 0, at most 1. What cannot be
            cut counts as well.
        keep_flops: the same for FLOPs of a forward pass over the example inputs.
        keep_latency: the same for the milliseconds that `latency` predicts.
        latency: the measured table that `keep_latency` is solved with.
        allocation: "tod", "uniform", "global" or "normalized"; None takes "global" where the scores hold the residual
            (the second-order saliency) or compare no classes, else and for a tolerance "tod".
        removal: signal that decides the order; low goes first. A name in `scores.signals`, "random", or a function
            `AxisGroup → scores [units]`. None: "residual" where there is one ("wasserstein" with "tod"), else
            "wasserstein", or "taylor" where no classes were compared.
        protect: signal that ToD holds against it; high stays. Only read for `allocation="tod"`.
        round_to: channels that stay in a group are a multiple of this, where the group is cut at all.
        max_remove: at most `floor(max_remove · n)` of a group's n units go; between 0 and 1.
        min_keep: at least so many units of each group stay.
        ignore: `fnmatch` patterns of group names or of producing modules that are not cut; "layer4" and
            "layer4.*" both protect all that layer4 produces.

    Returns:
        A Plan. `result` holds costs before and after, `tolerance` (the solved threshold; None if nothing goes)
        and `thresholds`, per plan group the threshold that its own removed count needs (None if it stays whole).

    Raises:
        InputError: not exactly one target, an option out of range or unknown, a pattern that matches nothing, a
            signal that is missing or not finite, a map without prunable groups.
        BudgetError: the target cannot be met under these limits; names the reachable range.

    Cost: two sorts of every group's scores, one of all thresholds, and about log2(units) evaluations of the cost.

    Example:
        >>> from fairkern.types import Axis, AxisGroup, CallSite, CostTerm, Extent, Side, Tap
        >>> heard = Tap((CallSite("fc2"),), Side.INPUT, 1, 4, np.arange(4)[:, None], (Axis("fc2.weight", 1),))
        >>> layer = AxisGroup("fc1", "neuron", 4, axes=(), taps=(heard,))
        >>> units = UnitMap("Net", (layer,), (), (Extent(4, ((0, 1),)),), (CostTerm(10.0, (0,)),), (), (), {})
        >>> u, r = np.array([0.1, 0.4, 0.3, 0.2]), np.array([1.0, 4.0, 2.0, 3.0])
        >>> plan = allocate(Scores(units, {"wasserstein": (u,), "taylor": (r,)}, {}), keep_params=0.5)
        >>> plan.groups[0].removed.tolist(), plan.result["tolerance"], plan.result["params_after"]
        ([0, 3], 0.5, 20)
    """
    asked = Planning(**options)
    kind, removal = defaults(scores, asked.allocation, asked.removal, tod is not None)
    target, value = parse_target(kind, tod, keep_params, keep_flops, keep_latency)
    if latency is not None:
        instance("latency", latency, LatencyTable, TABLE)
    elif target is Target.LATENCY:
        raise InputError("keep_latency= needs the table that was measured on this device: pass latency=")
    units = scores.units
    if not units.prunable:
        raise InputError(f"no group of {units.model} can be cut; print(units.explain()) names the reasons")
    ignored = ignored_groups(units, asked.ignore)
    if ignored.issuperset(units.prunable):
        raise InputError(f"ignore={list(asked.ignore)!r} leaves no group to cut; name fewer")
    limit = limits(units, ignored, asked)
    first_signal = read_signal(scores, "removal", removal)
    measured = kind in (Allocation.GLOBAL, Allocation.NORMALIZED) and not (is_function(removal) or removal == RANDOM)
    if measured and kind is Allocation.GLOBAL and units.branches and target is not Target.TOD:
        first_signal = priced(units, first_signal, _terms(units, target, latency))
    ranked = levels(removal, first_signal)
    if kind is Allocation.TOD:
        held = levels(asked.protect, read_signal(scores, "protect", asked.protect))
        both = {g: values for g, values in ranked.items() if g in held}
        needs = tolerance_needs(both, held, {g: int(limit.most[g]) for g in both})
    else:
        needs = _needs(kind, first_signal, limit)
        if not isinstance(asked.protect, str) or asked.protect != Planning.protect:
            check_signal(scores, "protect", asked.protect)  # it is not read, but the plan names it
    steps = _order(needs, limit, measured)

    request = {
        target.value: value,
        "allocation": kind.value,
        "removal": name_of(removal),
        "protect": name_of(asked.protect),
        "round_to": asked.round_to,
        "max_remove": asked.max_remove,
        "min_keep": asked.min_keep,
        "ignore": list(asked.ignore),
    }
    order = {g: removal_order(ranked[g]) for g in told_apart(units) if g in ranked}
    if target is Target.TOD:
        taken = int(np.searchsorted(steps.need, value, side="right"))
        counts = steps.counts(taken)
    else:
        budget = _Budget(units, target, value, latency, order)
        taken = _fewest(steps, limit, budget, request)
        counts = _give_back(steps, taken, limit, budget)
    removed = _removed(limit, counts)
    predicted = {} if latency is None else _predicted(units, latency, removed, order)
    return build(
        units,
        [removal_order(ranked[g])[..., : removed[g]] if removed[g] else NONE for g in range(len(units.groups))],
        request,
        {
            "tolerance": float(steps.need[taken - 1]) if taken else None,
            "thresholds": [float(needs[g][removed[g] - 1]) if removed[g] else None for g in units.prunable],
            **predicted,
        },
    )


def _predicted(units: UnitMap, latency: LatencyTable, removed: IndexArray, order: Order) -> dict[str, float]:
    left = latency_cost(units, latency, order)(removed) if removed.any() else latency.whole
    return {"latency_before_ms": latency.whole, "latency_after_ms": left}


@dataclass(frozen=True)
class _Steps:
    """Every single step that the limits allow, in the order in which steps are taken: arrays `[steps]`.

    A step takes a group from one allowed removed count to the next. Sorted by the threshold it needs (made ascending,
    where nothing but rounding tells needs apart); steps of equal need by the fraction of their group's run of that
    need, then by group.
    """

    need: FloatArray
    group: IndexArray
    groups: int

    def counts(self, taken: int) -> IndexArray:
        """Steps taken in each group after the first `taken` steps: int64 `[groups]`."""
        return np.bincount(self.group[:taken], minlength=self.groups)


def _terms(units: UnitMap, target: Target, latency: LatencyTable | None) -> Sequence[CostTerm]:
    """What a budget is counted in."""
    if target is Target.LATENCY:
        assert latency is not None
        return latency_terms(units, latency)
    return units.params if target is Target.PARAMS else units.flops


class _Budget:
    """Whether a removal meets the target."""

    def __init__(self, units: UnitMap, target: Target, keep: float, latency: LatencyTable | None, order: Order) -> None:
        self.cost = Cost(units, _terms(units, target, latency), order)
        nothing = np.zeros(len(units.groups), dtype=np.int64)
        self.total = latency.whole if target is Target.LATENCY and latency else self.cost(nothing)
        self.keep = keep
        if not self.total > 0:
            raise InputError(f"{target.value}= needs costs above zero; the map of {units.model} has {self.total}")

    def share(self, removed: IndexArray) -> float:
        return self.cost(removed) / self.total

    def fits(self, removed: IndexArray) -> bool:
        return self.share(removed) <= self.keep or self.keep == 1

    def fits_alone(self, removed: IndexArray, returned: IndexArray) -> IndexArray:
        """Per group, whether it alone may get `returned[g]` of its units back."""
        fits = (self.cost(removed) + self.cost.change(removed, returned)) / self.total <= self.keep
        return fits | (self.keep == 1)


def _needs(kind: Allocation, removal: dict[int, FloatArray], limit: Limits) -> dict[int, FloatArray]:
    """Per prunable group the threshold at which at least k units may go, k = 1 … most, but for ToD."""
    if kind is Allocation.UNIFORM:
        return {g: fraction_need(removal[g].shape[-1], int(limit.most[g])) for g in removal}
    need = pooled_need if kind is Allocation.GLOBAL else normalized_need
    return {g: need(removal[g], int(limit.most[g])) for g in removal}


def _order(needs: dict[int, FloatArray], limit: Limits, measured: bool) -> _Steps:
    """`measured`: needs that are equal but for rounding count as equal."""
    groups = len(limit.most)
    need = [needs[g][limit.first[g] - 1 :: limit.step[g]] for g in needs]
    group = np.repeat(np.fromiter(needs, dtype=np.int64), [len(n) for n in need])
    flat = np.concatenate(need)
    if not len(flat):
        return _Steps(flat, group, groups)
    level = classes(flat, rounding(flat, [len(n) for n in need if len(n)])) if measured else flat
    # the place of a step within the run of equal needs of its group, as a fraction of that run
    starts = np.flatnonzero(np.concatenate(([True], (level[1:] != level[:-1]) | (group[1:] != group[:-1]))))
    lengths = np.diff(np.append(starts, len(flat)))
    fraction = (np.arange(1, len(flat) + 1) - np.repeat(starts, lengths)) / np.repeat(lengths, lengths)
    turn = np.lexsort((group, fraction, level))
    return _Steps(np.maximum.accumulate(flat[turn]), group[turn], groups)


def _removed(limit: Limits, counts: IndexArray) -> IndexArray:
    """Units removed after so many steps in each group."""
    return np.where(counts > 0, limit.first + (counts - 1) * limit.step, 0)


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Smallest n in [low, high] at which a monotone predicate holds; it is taken to hold at `high`."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _fewest(steps: _Steps, limit: Limits, budget: _Budget, request: dict[str, Any]) -> int:
    """Length of the shortest run of steps that meets the budget."""

    def fits(taken: int) -> bool:
        return budget.fits(_removed(limit, steps.counts(taken)))

    everything = len(steps.need)
    if not fits(everything):
        name, asked = next(iter(request.items()))
        least = budget.share(_removed(limit, steps.counts(everything)))
        least = min(1.0, math.ceil(least * 1e6) / 1e6)
        allowed = ", ".join(f"{key}={request[key]!r}" for key in ("max_remove", "min_keep", "round_to", "ignore"))
        raise BudgetError(
            f"{name}={asked!r} cannot be reached: with {allowed} it can be anything in [{least}, 1.0]; "
            "ask for a value in that range or loosen the limits"
        )
    return _first_true(0, everything, fits)


def _give_back(steps: _Steps, taken: int, limit: Limits, budget: _Budget) -> IndexArray:
    """Returns steps that fit under the budget, the last taken first; step counts per group.

    A step that does not fit never fits later, since giving back elsewhere only makes it dearer (costs are
    products of extents). So every round either returns steps or closes groups.
    """
    counts = steps.counts(taken)
    remaining = steps.group[:taken][::-1]
    open_ = np.full(len(counts), True)
    while True:
        removed = _removed(limit, counts)
        open_ &= budget.fits_alone(removed, np.where(counts > 1, limit.step, limit.first))
        candidate = np.flatnonzero(open_[remaining])
        if not len(candidate):
            return counts
        returned = _longest(remaining[candidate], counts, limit, budget)
        if not returned:  # rounding of fractional costs: the sum fitted, the evaluation does not
            open_[remaining[candidate[0]]] = False
            continue
        counts = counts - np.bincount(remaining[candidate[:returned]], minlength=len(counts))
        remaining = np.delete(remaining, candidate[:returned])


def _longest(candidates: IndexArray, counts: IndexArray, limit: Limits, budget: _Budget) -> int:
    """How many of these steps, from the front, can be returned together."""

    def exceeds(returned: int) -> bool:
        fewer = counts - np.bincount(candidates[:returned], minlength=len(counts))
        return not budget.fits(_removed(limit, fewer))

    reach = 1
    while reach < len(candidates) and not exceeds(reach):
        reach *= 2
    if reach >= len(candidates) and not exceeds(len(candidates)):
        return len(candidates)
    return _first_true(1, min(reach, len(candidates)), exceeds) - 1
