"""Compensation in one shot: every consumer that loses inputs is fitted to what it read in the uncut model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from fairkern.compact.descriptors import Index, check, kept, tensors_of
from fairkern.compensate.correction import Consumer, Correction, by_axis, cannot_take, carried
from fairkern.compensate.fit import Compensation
from fairkern.compensate.intercepts import Biases, Places
from fairkern.compensate.statistics import Statistics, of_taps
from fairkern.errors import InputError, PlanMismatchError
from fairkern.model.sharded import whole
from fairkern.model.tensors import tensor_of
from fairkern.ops.eliminate.config import RIDGE
from fairkern.types import Axis, Plan, PlanAxis, Scores, Tap


def corrections(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    method: Compensation,
    ridge: float = RIDGE,
    places: Places | None = None,
) -> list[Correction]:
    """What `fold` has to add to the cut model, for every consumer that loses inputs; reads the uncut `model`.

    The fit is made at the consumer's input, so it holds for any linear consumer: a linear layer, a convolution of
    any kernel and stride (mixing channels commutes with it), the output projection of attention, what a recurrent layer
    reads of its own states, a function that is given a weight. A grouped convolution mixes within its groups.
    The intercept goes into the bias; a linear layer or convolution without one gets one where `places` has room for it
    (default: anywhere). Where a convolution pads with zeros it counts as much as it does on average (`borders`). A
    consumer that can have no bias is fitted without intercept, through zero, and a weight that another role shares
    (tied to an embedding) stays as it is. `ridge` counts in mean variances of what stays (through zero: mean squares).

    Raises PlanMismatchError (scores or plan of another model), InputError (`scores` without what `method` needs; means
    where no weight has a bias or may be given one).
    Cost: per tap one Cholesky factorisation in float64, per consumer one matrix product.
    """
    check(model, plan)
    if {name: tuple(shape) for name, shape in scores.units.shapes.items()} != dict(plan.shapes):
        raise PlanMismatchError("the scores were made for another model than the plan: score this model and plan again")
    places = places or Places(model, plan, scores.units, Biases.ADDED)
    cases = decided(model, plan, scores, method, places.why_not)
    check_means(cases, method, places)
    return solved(model, cases, scores, method, ridge)


@dataclass(frozen=True, eq=False)
class Case:
    """A consumer that loses inputs, and what is to become of it: known before anything is solved.

    `note`: why it stays as it is; empty where it is fitted. `no_bias`: why it has no bias and is given none.
    """

    item: PlanAxis
    taps: Sequence[Tap]
    note: str
    no_bias: str = ""
    index: Index = field(default_factory=dict)  # how the plan cuts its weight
    consumer: Consumer | None = None  # none of experts

    @property
    def gives_bias(self) -> bool:
        """Whether an intercept goes into its bias, one that it has or is given."""
        return not self.note and self.consumer is not None and not self.no_bias


def decided(
    model: nn.Module, plan: Plan, scores: Scores, method: Compensation, why_not: Callable[[Axis], str]
) -> list[Case]:
    """A case for every consumer that loses inputs. Reads shapes of `model`, and no values; no moments either.

    `why_not`: why what contracts an axis, and has no bias, is given none (`Places.why_not`).
    """
    taps = by_axis(tap for group in scores.units.groups for tap in group.taps)
    names = {name: held.names for held in tensors_of(model) for name in held.names}
    cuts = kept(plan)
    cases = []
    for item in plan.axes:
        if not item.consumer or not item.removed.size:
            continue
        axis, read = item.axis, taps.get(item.axis, [])
        note = cannot_take(model, scores.units, axis) or _cannot_be_fitted(names[axis.tensor], read, method)
        index = cuts.get(axis.tensor, {})
        if note or read[0].side.of_experts:
            cases.append(Case(item, read, note, index=index))
            continue
        consumer = Consumer(model, axis, index, read, scores)
        no_bias = consumer.no_bias or ("" if consumer.has_bias else why_not(axis))
        if method is Compensation.MEAN and no_bias:
            note = f"it has no bias and is given none: {no_bias}"
        elif not consumer.reads(read[0].length):
            note = "its tap holds other positions than its weight"
        cases.append(Case(item, read, note, no_bias, index, consumer))
    return cases


def check_means(cases: Sequence[Case], method: Compensation, places: Places) -> None:
    """Raises InputError where means are to be folded into biases, and none of the cases has or may be given one."""
    without = [case.no_bias for case in cases if case.no_bias]
    if method is Compensation.MEAN and without and all(case.note for case in cases):
        otherwise = "" if places.asked is Biases.ADDED else ", or biases=True"
        raise InputError(
            "compensate='mean' folds means into biases, and no weight that loses inputs has one or is given one "
            f"({without[0]}): use compensate='least_squares'{otherwise}"
        )


def solved(
    model: nn.Module, cases: Sequence[Case], scores: Scores, method: Compensation, ridge: float = RIDGE
) -> list[Correction]:
    """The corrections of cases, each system once, and the moments of one as long as a case waits for them. Weights in
    shards are gathered for it, one after the other, and corrections are of what this process holds."""
    known: dict[tuple[str, ...], Statistics] = {}
    waits = Counter(
        tuple(tap.name for tap in case.taps) for case in cases if case.consumer is not None and not case.note
    )
    found = []
    for case in cases:
        if case.note:
            found.append(Correction(case.item.axis, None, None, 1.0, case.note))
        elif case.consumer is None:
            found.append(_of_experts(model, case, scores, ridge).held_of(model))
        else:
            heard = tuple(tap.name for tap in case.taps)
            statistics = known.pop(heard) if heard in known else of_taps(heard, scores, method, ridge)
            waits[heard] -= 1
            if waits[heard]:
                known[heard] = statistics
            made = case.consumer.correction(statistics, intercept=not case.no_bias)
            note = f"fitted through zero, without intercept: {case.no_bias}" if case.no_bias else ""
            found.append(replace(made, note=note).held_of(model))
    return found


def _cannot_be_fitted(names: Sequence[str], taps: Sequence[Tap], method: Compensation) -> str:
    """Why a weight of these names, read at these taps, stays as it is; empty if it is fitted."""
    if len(names) > 1:
        return f"{' and '.join(names)} are one tensor"
    if not taps:
        return "no tap reads what it contracts"
    if taps[0].side.whole:
        return "whole experts are left to the router"
    if taps[0].side.of_experts and method is Compensation.MEAN:
        return "what experts read differs from token to token by their gates"
    return ""


def _of_experts(model: nn.Module, case: Case, scores: Scores, ridge: float) -> Correction:
    """The down projections of fused experts: each is fitted to what it reads, without intercept.

    An expert adds its output, and so an intercept, only to the tokens that are sent to it, times a weight of theirs.
    """
    item, index = case.item, case.index
    weight, dim = whole(tensor_of(model, item.axis.tensor)), item.axis.dim
    rest = {d - 1: positions for d, positions in index.items() if d not in (0, dim)}
    weights, fits = [], []
    for expert in index.get(0, torch.arange(len(weight), device="cpu")).tolist():
        names = [tap.of_expert(expert) for tap in case.taps]
        statistics = of_taps(names, scores, Compensation.LEAST_SQUARES, ridge)
        removed = item.removed[expert] if item.removed.ndim == 2 else item.removed
        fit = statistics.fit(0, statistics.length, removed, intercept=False)
        weights.append(carried(weight[expert], dim - 1, rest, fit, statistics.per_unit)[0])
        fits.append(fit)
    return Correction(
        item.axis,
        torch.stack(weights),
        None,
        float(np.mean([fit.unexplained for fit in fits])),
        "fitted through zero, without intercept: experts answer some tokens only",
        float(np.mean([fit.with_intercept for fit in fits])),
    )
