"""The signal by which a plan was made, put beside the threshold that it was held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fairkern.errors import InputError
from fairkern.ops import tod_curve
from fairkern.plans.cost import per_unit
from fairkern.types import FloatArray, Plan, Scores

NAMES = {"wasserstein": "U-score", "taylor": "R-score", "residual": "second-order saliency"}
SYMBOLS = {"wasserstein": "U", "taylor": "R"}
_UNITS = {"residual": "rise of the loss", "taylor": "change of the loss"}
_SHARE = "share of the units that are in both, 0 to 1"
_ROLES = {"removal": "wasserstein", "protect": "taylor"}
_BUDGETS = frozenset({"keep_params", "keep_flops", "keep_latency"})
_POOLED = ("global", "normalized", "priced")


@dataclass(frozen=True)
class Decided:
    """Per plan group what its k-th unit needed to go, `[units]` for k = 1 … units, or empty; and the threshold.

    `what`: the signal in words, and what it is divided by; `unit`: what its numbers are. `missing`: why groups have no
    curve, if some have none.
    """

    what: str
    unit: str
    curves: list[FloatArray]
    threshold: float | None
    tolerance: bool = False  # a Tolerance of Difference, between 0 and 1; else a signal, any numbers above zero
    missing: str = ""


def allocation(plan: Plan) -> str:
    """How it spread what goes over groups."""
    return str(plan.request.get("allocation", "tod"))


def signal_name(plan: Plan, role: str) -> str:
    """The signal that a plan took for `removal` or `protect`."""
    return str(plan.request.get(role, _ROLES[role]))


def signal_of(scores: Scores, plan: Plan, name: str, role: str = "") -> list[FloatArray]:
    """A signal, an array `[sets · units]` per plan group; empty where a group has none.

    `role`: "removal" or "protect", where the plan was made by it: then a group that loses units has it.
    Raises InputError where these are not the scores of that plan.
    """
    if name not in scores.signals:
        raise InputError(
            f"the plan was made with {role or 'the signal'}={name!r}; these scores hold {sorted(scores.signals)}"
        )
    by_name = {group.name: values for group, values in zip(scores.units.groups, scores.signals[name], strict=True)}
    for group in plan.groups:
        expected = (group.total,) if role and group.removed.size else (0, group.total)
        if group.name not in by_name or len(by_name[group.name]) not in expected:
            raise InputError(f"the scores have no {name} of the {group.total} units of group {group.name!r}")
    return [by_name[group.name] for group in plan.groups]


def decided(scores: Scores, plan: Plan) -> Decided | None:
    """What decided how much goes of each group; None where that was no signal ("uniform", a number of units)."""
    kind, name = allocation(plan), signal_name(plan, "removal")
    threshold = plan.result.get("tolerance")
    if kind not in ("tod", *_POOLED) or "drop" in plan.request:
        return None
    if kind == "tod":
        return tolerances(scores, plan)
    said, missing = NAMES.get(name, name), _unknown(scores, name)
    unit = _UNITS.get(name, "as measured")
    values = [np.zeros(0)] * len(plan.groups) if missing else signal_of(scores, plan, name, "removal")
    needs = [np.sort(v.reshape(g.sets, -1)).mean(axis=0) for v, g in zip(values, plan.groups, strict=True)]
    if kind == "normalized":
        scales = [float(np.abs(v).mean()) if len(v) else 1.0 for v in values]
        needs = [need / (scale or 1.0) for need, scale in zip(needs, scales, strict=True)]
        said, unit = f"{said}, over the group's mean", "no unit"
    elif kind == "priced" or (scores.units.branches and not _BUDGETS.isdisjoint(plan.request)):
        over, prices = _prices(scores, plan)
        said, unit = f"{said}, over what a unit costs", f"{unit} per {over}"
        if not prices:
            missing = missing or "what units cost in milliseconds is in the latency table, which no report holds"
        branched = {scores.units.groups[g].name for g in scores.units.branched}
        if branched.intersection(group.name for group in plan.groups):
            missing = missing or "whole branches are held against it by what each of them saves"
        names = [group.name for group in plan.groups]
        needs = [
            need / prices[name] if name in prices and name not in branched else np.zeros(0)
            for need, name in zip(needs, names, strict=True)
        ]
    return Decided(said, unit, needs, threshold, False, missing)


def tolerances(scores: Scores, plan: Plan) -> Decided:
    """The Tolerance of Difference of every group; without a threshold where a plan was not decided by it."""
    name, protect = (signal_name(plan, role) for role in ("removal", "protect"))
    what = f"Tolerance of Difference between {SYMBOLS.get(name, name)} and {SYMBOLS.get(protect, protect)}"
    threshold = plan.result.get("tolerance") if allocation(plan) == "tod" else None
    missing = _unknown(scores, name) or _unknown(scores, protect)
    if missing:
        return Decided(what, _SHARE, [np.zeros(0)] * len(plan.groups), threshold, True, missing)
    both = signal_of(scores, plan, name, "removal"), signal_of(scores, plan, protect, "protect")
    curves = [_tolerance(u, r, group.sets) for u, r, group in zip(*both, plan.groups, strict=True)]
    return Decided(what, _SHARE, curves, threshold, True)


def _unknown(scores: Scores, name: str) -> str:
    """Why a signal is not in the scores, though plans are made by it."""
    if name in scores.signals or not (name == "random" or name.startswith("function ")):
        return ""
    return f"the signal was {'drawn' if name == 'random' else 'given as a ' + name}, and is not kept with the scores"


def _tolerance(u: FloatArray, r: FloatArray, sets: int) -> FloatArray:
    if not (len(u) and len(r)):
        return np.zeros(0)
    rows = zip(u.reshape(sets, -1), r.reshape(sets, -1), strict=True)
    curves = [tod_curve(torch.from_numpy(a), torch.from_numpy(b)).numpy() for a, b in rows]
    return np.asarray(np.mean(curves, axis=0))


def _prices(scores: Scores, plan: Plan) -> tuple[str, dict[str, float]]:
    """By what a plan divided a signal, in words, and per group that price of a unit."""
    if "keep_latency" in plan.request:
        return "millisecond", {}
    params, flops = per_unit(scores.units)
    saved, what = (flops, "FLOP") if "keep_flops" in plan.request else (params, "parameter")
    whole = [group.sets for group in scores.units.groups]
    prices = saved / np.array(whole, dtype=np.float64)
    return what, {g.name: float(price) for g, price in zip(scores.units.groups, prices, strict=True) if price > 0}


def by_median(values: FloatArray, floor: float) -> FloatArray:
    """Magnitudes in medians of their group, at least `floor`: groups of different scale side by side on a log axis."""
    middle = float(np.median(np.abs(values))) if len(values) else 1.0
    return np.maximum(np.abs(values) / (middle if middle > 0 else 1.0), floor)


def thinned(curve: FloatArray, most: int) -> list[int]:
    """Places of a curve that are drawn: all, or `most` of them evenly, first and last among them."""
    return sorted({int(i) for i in np.linspace(0, len(curve) - 1, min(most, len(curve))).round()})
