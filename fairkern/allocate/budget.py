"""Scores and a target → a plan: one ordered list of steps, cut where the target is met."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from typing_extensions import Unpack

from fairkern.allocate.bundles import Bundle, Levels, bundle, joined
from fairkern.allocate.drop import dropped
from fairkern.allocate.latency import latency_cost
from fairkern.allocate.options import (
    Allocation,
    Planning,
    PlanningOptions,
    Target,
    ignored_groups,
    limits,
    parse_target,
)
from fairkern.allocate.prices import costs, priced, together
from fairkern.allocate.signals import (
    RANDOM,
    check_range,
    check_signal,
    defaults,
    is_function,
    levels,
    name_of,
    read_signal,
)
from fairkern.allocate.steps import Budget, Steps, budget_terms, fewest, give_back
from fairkern.allocate.tod import (
    fraction_need,
    normalized_need,
    pooled_need,
    removal_order,
    tolerance_curves,
    tolerance_need,
)
from fairkern.errors import InputError
from fairkern.options import TABLE, instance, several
from fairkern.plans.build import build
from fairkern.plans.cost import Order, told_apart
from fairkern.plans.removals import NONE
from fairkern.plans.serving import Constraints, Tie, constraints, serving
from fairkern.types import FloatArray, IndexArray, LatencyTable, Plan, Scores, UnitMap


def allocate(
    scores: Scores,
    *,
    tod: float | None = None,
    keep_params: float | None = None,
    keep_flops: float | None = None,
    keep_latency: float | None = None,
    drop: Mapping[str, int] | None = None,
    latency: LatencyTable | None = None,
    **options: Unpack[PlanningOptions],
) -> Plan:
    """Which units go for a tolerance or a budget. Milliseconds; neither model nor data is needed.

    Within a group, units go in ascending order of the removal signal. Ties go by index, and what differs by no more
    than rounding is a tie (`fairkern.ties`), so that a plan does not depend on how the data was batched. How many go is
    decided by one threshold for all groups: with `allocation="tod"` the Tolerance of Difference (FAIR-Pruner,
    arXiv 2508.02291), with `"uniform"` the fraction of the group, with `"global"` the removal signal itself, with
    `"normalized"` the removal signal divided by its mean magnitude in the group, with `"priced"` the removal signal
    divided by what a unit of the group costs in the whole model, in the currency of the budget: the least of the signal
    for what is saved, where costs add up. In a group of several sets (the inner units of experts) every set loses as
    many units as the others, and not the same ones.

    Groups that have to lose equal shares move together, as one bundle: with `"uniform"` all of one kind with as many
    units, each of as many positions; with `serve=` those that the server counts by one number. A bundle's threshold is
    the mean of its groups' thresholds, weighted by the units that go with it (or by what they cost, where that is the
    price), so that it says what a unit is worth, as that of a group with several sets does.

    A budget is solved for that threshold; between the last threshold that keeps too much and the first that keeps
    little enough, bundles are cut partway, by equal fractions and then step by step; steps that still fit under the
    budget are given back, the last removed first. So the plan keeps at most what was asked for, and giving any single
    step back would exceed it.

    Args:
        scores: what `score` returned.
        tod: the tolerance α, from 0 to 1: remove `max{k : ToD(k) ≤ α}` units of each group.
        keep_params: at most this share of the whole model's parameters stays, above 0, at most 1. What cannot be
            cut counts as well.
        keep_flops: the same for FLOPs of a forward pass over the example inputs.
        keep_latency: the same for the milliseconds that `latency` predicts.
        drop: so many units of every group of a kind go, exactly: `{"expert": 2}`. What is tied to them goes along.
        latency: the measured table that `keep_latency` is solved with.
        allocation: "tod", "uniform", "global", "normalized" or "priced"; None takes "priced" where the scores hold the
            residual (the second-order saliency) and a unit costs the same whatever else goes (`adds_up`: transformers),
            "global" elsewhere with the residual and where no classes are compared, else and for a tolerance "tod".
        removal: signal that decides the order; low goes first. A name in `scores.signals`, "random", or a function
            `Group → scores [units]`. None: "residual" where there is one ("wasserstein" with "tod"), else
            "wasserstein", or "taylor" where no classes were compared.
        protect: signal that ToD holds against it; high stays. Only read for `allocation="tod"`.
        round_to: channels that stay in a group are a multiple of this, where the group is cut at all; or such numbers
            by kind of unit, `{"neuron": 128, "head": 1}`.
        max_remove: at most `floor(max_remove · n)` of a group's n units go; between 0 and 1.
        min_keep: at least so many units of each group stay.
        ignore: `fnmatch` patterns of group names or of producing modules that are not cut; "layer4" and
            "layer4.*" both protect all that layer4 produces.
        serve: who loads what is left. "hf": what a field of the model's configuration counts is equal in all layers,
            heads in a number that the configuration admits; "vllm": heads are, other widths are free by layer; "gguf",
            "gguf:TYPE" and "deci": free by layer where the architecture deci can hold the model, else as "hf"; what is
            left of every contraction is a whole number of TYPE's blocks. What the server has no number for stays.

    Returns:
        A Plan. `result` holds costs before and after, `tolerance` (the solved threshold; None if nothing goes)
        and `thresholds`, per plan group the threshold that its bundle's removed count needs (None if it stays whole).

    Raises:
        InputError: not exactly one target, an option out of range or unknown, a pattern that matches nothing, a
            signal that is missing or not finite, a map without prunable groups, a server that cannot load the model.
        BudgetError: the target cannot be met under these limits; names the reachable shares, or their range.

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
    target, value = parse_target(kind, tod, keep_params, keep_flops, keep_latency, drop)
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
    check_range(scores, kind, removal, asked)
    served = constraints(units, serving(asked.serve))
    limit = limits(units, ignored, asked, served.multiples)
    same = [tie.groups for tie in served.ties if tie.same]
    first_signal = together(read_signal(scores, "removal", removal), same)
    measured = kind.pools and not (is_function(removal) or removal == RANDOM)
    counted = target in (Target.PARAMS, Target.FLOPS, Target.LATENCY)
    pays = kind is Allocation.PRICED or (measured and kind is Allocation.GLOBAL and units.branches and counted)
    weights = np.array([group.sets for group in units.groups], dtype=np.float64)
    if pays:
        terms = budget_terms(units, target, latency) if counted else units.params
        saved = costs(units, terms)
        first_signal = priced(units, first_signal, terms, saved, same)
        if kind is Allocation.PRICED:
            weights = saved
    ranked = levels(removal, first_signal)
    held: dict[int, FloatArray] = {}
    if kind is Allocation.TOD:
        held = levels(asked.protect, together(read_signal(scores, "protect", asked.protect), same))
    elif not isinstance(asked.protect, str) or asked.protect != Planning.protect:
        check_signal(scores, "protect", asked.protect)  # it is not read, but the plan names it
    told = {g for g in ranked if kind is not Allocation.TOD or g in held}
    ties, stays = _tied(units, served, ignored, told, equal=kind is Allocation.UNIFORM and target is not Target.DROP)
    if asked.serve and not ties:
        held_by: dict[str, list[str]] = {}
        for g, reason in stays.items():
            held_by.setdefault(reason, []).append(units.groups[g].name)
        why = "; ".join(f"{several(names)}: {reason}" for reason, names in held_by.items())
        raise InputError(f"serve={asked.serve!r} leaves no group to cut: {why or 'all are ignored'}")
    bundles = [bundle(units, tie, limit) for tie in ties]
    none = {g for made in bundles if not len(made.parts) for g in made.groups}
    stays |= dict.fromkeys(none if asked.serve else (), "limits and server allow no smaller number of them")
    needs = _needs(kind, {g: ranked[g] for g in told}, held, first_signal)
    prices = [_price(kind, made, needs, weights) for made in bundles]
    steps = Steps.of(prices, measured)
    moved = Levels.of(bundles, len(units.groups))

    request = {
        target.value: value,
        "allocation": kind.value,
        "removal": name_of(removal),
        "protect": name_of(asked.protect),
        "round_to": asked.round_to,
        "max_remove": asked.max_remove,
        "min_keep": asked.min_keep,
        "ignore": list(asked.ignore),
        "serve": asked.serve,
    }
    order = {g: removal_order(ranked[g]) for g in told_apart(units) if g in ranked}
    taken = 0
    if target is Target.DROP:
        counts = dropped(units, bundles, moved, value, ignored, stays)
    elif target is Target.TOD:
        taken = int(np.searchsorted(steps.need, value, side="right"))
        counts = steps.counts(taken)
    else:
        budget = Budget(units, target, value, latency, order)
        names = ["max_remove", "min_keep", "round_to", "ignore", *(["serve"] if asked.serve else [])]
        allowed = ", ".join(f"{name}={request[name]!r}" for name in names)
        taken = fewest(steps, moved, budget, f"{target.value}={value!r}", allowed)
        counts = give_back(steps, taken, bundles, moved, budget)
    removed = moved.removed(counts)
    predicted = {} if latency is None else _predicted(units, latency, removed, order)
    reached = [float(price[n - 1]) if n else None for price, n in zip(prices, counts.tolist(), strict=True)]
    return build(
        units,
        [removal_order(ranked[g])[..., : removed[g]] if removed[g] else NONE for g in range(len(units.groups))],
        request,
        {
            "tolerance": float(steps.need[taken - 1]) if taken else None,
            "thresholds": [reached[b] if (b := moved.bundle[g]) >= 0 else None for g in units.prunable],
            **predicted,
        },
        Constraints(stays=stays).said(asked.serve),
    )


def _tied(
    units: UnitMap, served: Constraints, ignored: frozenset[int], told: set[int], equal: bool
) -> tuple[list[Tie], dict[int, str]]:
    """What moves together of the groups that have scores, and of those that a server's ties hold back, why."""
    stays = dict(served.stays)
    ties = []
    for tie in served.ties:
        still = next((g for g in tie.groups if g in ignored or g not in told), None)
        if still is None:
            ties.append(tie)
            continue
        why = "is ignored" if still in ignored else "has no score"
        name = units.groups[still].name
        stays |= {g: f"it moves with {name}, which {why}" for g in tie.groups if g != still and g not in ignored}
    free = [g for g in units.prunable if g in told and g not in ignored and g not in stays]
    return joined(units, ties, free, equal), stays


def _needs(
    kind: Allocation, ranked: dict[int, FloatArray], held: dict[int, FloatArray], removal: dict[int, FloatArray]
) -> dict[int, FloatArray]:
    """Per group the threshold at which its k-th unit goes, k = 1 … units; for ToD the curve."""
    if kind is Allocation.TOD:
        return tolerance_curves(ranked, {g: held[g] for g in ranked})
    if kind is Allocation.UNIFORM:
        return {g: fraction_need(ranked[g].shape[-1]) for g in ranked}
    need = normalized_need if kind is Allocation.NORMALIZED else pooled_need
    return {g: need(removal[g]) for g in ranked}


def _price(
    kind: Allocation, made: Bundle, needs: dict[int, FloatArray], weights: FloatArray | IndexArray
) -> FloatArray:
    """Per step of a bundle the threshold that it needs, ascending."""
    price = made.price(needs, weights)
    if kind is Allocation.TOD and len(made.parts):
        price = tolerance_need(price[: made.parts[-1]])
    return price[made.parts - 1]


def _predicted(units: UnitMap, latency: LatencyTable, removed: IndexArray, order: Order) -> dict[str, float]:
    left = latency_cost(units, latency, order)(removed) if removed.any() else latency.whole
    return {"latency_before_ms": latency.whole, "latency_after_ms": left}
