"""Compensation: what the removed units carried, folded into the consumers' weights that stay, and their biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.compact.descriptors import Index, check, kept, tensors_of
from fairkern.compensate.borders import grids_of, kernel_shares, within
from fairkern.compensate.mixing import Compensation, Mixing, by_least_squares, by_means
from fairkern.errors import InputError, PlanMismatchError
from fairkern.model.linear import bias_of, give_bias, groups_of, output_dim
from fairkern.model.tensors import tensor_of
from fairkern.ops.eliminate.config import RIDGE
from fairkern.ops.gather import gather
from fairkern.plans.renaming import Renaming
from fairkern.types import Axis, IndexArray, Moments, Plan, PlanAxis, Scores, Side, Tap, UnitMap


@dataclass(frozen=True, eq=False)
class Correction:
    """What is added to one consumer of the cut model.

    `weight`: shaped like the cut weight; None where nothing could be done, and `note` says why. `bias`: [outputs],
    None where there is no intercept. `unexplained`: the share of the removed activations' power (of their variance,
    with an intercept) that the units that stay do not predict.
    """

    axis: Axis
    weight: Tensor | None
    bias: Tensor | None
    unexplained: float
    note: str = ""


def corrections(
    model: nn.Module, plan: Plan, scores: Scores, method: Compensation, ridge: float = RIDGE
) -> list[Correction]:
    """What `fold` has to add to the cut model, for every consumer that loses inputs; reads the uncut `model`.

    The fit is made at the consumer's input, so it holds for any linear consumer: a linear layer, a convolution of
    any kernel and stride (mixing channels commutes with it), the output projection of attention, what a recurrent layer
    reads of its own states, a function that is given a weight. A grouped convolution mixes within its groups.
    The intercept goes into the bias; a linear layer or convolution without one gets one. Where a convolution pads with
    zeros it counts as much as it does on average (`borders`). A consumer that can have no bias is fitted without
    intercept, and a weight that another role shares (tied to an embedding) stays as it is.
    `ridge` counts in mean variances of what stays.

    Raises PlanMismatchError (scores or plan of another model), InputError (`scores` without what `method` needs).
    Cost: per tap one Cholesky factorisation in float64, per consumer one matrix product.
    """
    check(model, plan)
    if {name: tuple(shape) for name, shape in scores.units.shapes.items()} != dict(plan.shapes):
        raise PlanMismatchError("the scores were made for another model than the plan: score this model and plan again")
    taps: dict[Axis, list[Tap]] = {}
    for group in scores.units.groups:
        for tap in group.taps:
            for axis in tap.weights:
                known = taps.setdefault(axis, [])
                if tap.name not in [t.name for t in known]:
                    known.append(tap)
    names = {name: held.names for held in tensors_of(model) for name in held.names}
    cuts = kept(plan)
    solved: dict[object, Mixing] = {}
    found = []
    for item in plan.axes:
        if item.consumer and item.removed.size:
            fixed = cannot_take(model, item.axis)
            if fixed:
                found.append(Correction(item.axis, None, None, 1.0, fixed))
                continue
            consumer = _Consumer(model, item.axis, cuts[item.axis.tensor])
            if len(names[item.axis.tensor]) > 1:
                note = f"{' and '.join(names[item.axis.tensor])} are one tensor"
                found.append(Correction(item.axis, None, None, 1.0, note))
            elif item.axis not in taps:
                found.append(Correction(item.axis, None, None, 1.0, "no tap reads what it contracts"))
            elif taps[item.axis][0].side.of_experts:
                found.append(_experts(consumer, item, taps[item.axis], scores, method, ridge))
            else:
                statistics = _Statistics(taps[item.axis], scores, method, ridge)
                found.append(consumer.correction(statistics, item.removed, solved))
    return found


def cannot_take(model: nn.Module, axis: Axis) -> str:
    """Why what is added to this tensor would not be added to what contracts its axis; empty if it would."""
    if ".parametrizations." in f".{axis.tensor}":
        return "a parametrization computes the weight from it"
    module = model.get_submodule(axis.module)
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed and module.groups > 1:
        return "a transposed convolution in groups cannot mix its inputs across them"
    return ""


def fold(small: nn.Module, plan: Plan, found: Sequence[Correction]) -> None:
    """Add corrections to the model that was cut. A missing bias is registered as a parameter like the weight."""
    renaming = Renaming(plan)
    with torch.no_grad():
        for correction in found:
            if correction.weight is None:
                continue
            name = renaming.after(correction.axis.tensor)
            assert name is not None  # nothing is corrected that goes whole
            weight = dict(small.named_parameters())[name]
            weight.add_(correction.weight.to(weight))
            if correction.bias is not None:
                place = bias_of(small, Axis(name, correction.axis.dim))
                assert place is not None
                module, name = place
                if module._parameters[name] is None:
                    give_bias(module)
                module.get_parameter(name).add_(correction.bias.to(weight))


class _Statistics:
    """Sums over every tap at which a weight contracts the same positions; of one `expert` where they lie in several."""

    def __init__(
        self, taps: Sequence[Tap], scores: Scores, method: Compensation, ridge: float, expert: int | None = None
    ) -> None:
        self.key = tuple(tap.name if expert is None else tap.of_expert(expert) for tap in taps)
        self.length = taps[0].length
        self.method, self.ridge = method, ridge
        self.grids = grids_of(taps, scores)
        self.by_function = any(site.weight for tap in taps for site in tap.sites)
        if method is Compensation.MEAN:
            missing = [name for name in self.key if name not in scores.means]
            if missing:
                raise InputError(
                    f"the scores hold no mean of {missing[0]}; score with recipe='default' to compensate means"
                )
            self.mean = np.mean([scores.means[name] for name in self.key], axis=0)
            self.per_unit = 1
            return
        missing = [name for name in self.key if name not in scores.moments]
        if missing:
            raise InputError(
                f"the scores hold no moments of {missing[0]}; score with gram=True to compensate by least squares"
            )
        parts = [scores.moments[name] for name in self.key]
        self.per_unit = parts[0].per_unit
        self.moments = Moments(
            np.sum([m.gram for m in parts], axis=0),
            np.sum([m.total for m in parts], axis=0),
            sum(m.count for m in parts),
            self.per_unit,
        )

    def mixing(self, first: int, length: int, removed: IndexArray, intercept: bool) -> Mixing:
        """From positions `first … first + length` of the tap; `removed` counts from there."""
        if self.method is Compensation.MEAN:
            return by_means(self.mean[first : first + length], removed)
        per = self.per_unit
        rows = slice(first // per, (first + length) // per)
        whole, m = np.unique(removed // per), self.moments
        if len(whole) * per != len(removed):
            raise PlanMismatchError(f"the plan cuts parts of a channel at {self.key[0]}: plan again from these scores")
        part = m if len(m.total) * per == length else Moments(m.gram[rows, rows], m.total[rows], m.count, per)
        return by_least_squares(part, whole, intercept=intercept, ridge=self.ridge)


class _Consumer:
    """One weight that contracts over an axis, and how the plan cuts it."""

    def __init__(self, model: nn.Module, axis: Axis, index: Index) -> None:
        self.axis, self.index = axis, index
        module = self.module = model.get_submodule(axis.module)
        self.weight = tensor_of(model, axis.tensor)
        self.groups = groups_of(module)
        place = bias_of(model, axis)
        self.bias = None if place is None else place[0]._parameters[place[1]]
        self.may_have_bias = place is not None
        self.out = output_dim(module, axis)

    def correction(self, statistics: _Statistics, removed: IndexArray, solved: dict[object, Mixing]) -> Correction:
        intercept = self.may_have_bias and not (statistics.by_function and self.bias is None)
        if statistics.method is Compensation.MEAN and not intercept:
            return Correction(self.axis, None, None, 1.0, "it has no bias and can be given none")
        length = self.weight.shape[self.axis.dim]
        if statistics.length != length * self.groups:
            return Correction(self.axis, None, None, 1.0, "its tap holds other positions than its weight")
        weights, biases, shares = [], [], []
        reached = kernel_shares(self.module, statistics.grids)
        for group, (part, index) in enumerate(self._parts()):
            key = (statistics.key, group, intercept, removed.tobytes())
            if key not in solved:
                solved[key] = statistics.mixing(group * length, length, removed, intercept)
            mixing = solved[key]
            weight, shift = _mixed(part, self.axis.dim, index, mixing, statistics.per_unit)
            weights.append(weight)
            shares.append(mixing.unexplained)
            if intercept:
                assert self.out is not None
                shift = within(shift, reached)
                biases.append(shift.sum([d for d in range(shift.ndim) if d != self.out]))
        return Correction(
            self.axis,
            torch.cat(weights, 0) if len(weights) > 1 else weights[0],
            (torch.cat(biases) if len(biases) > 1 else biases[0]) if biases else None,
            float(np.mean(shares)),
            "" if intercept else "fitted without intercept: it has no bias and can be given none",
        )

    def _parts(self) -> Iterator[tuple[Tensor, Index]]:
        """The weight of each group of a convolution and the rows of it that stay; else the whole weight."""
        if self.groups == 1:
            yield self.weight.detach(), self.index
            return
        rows = self.weight.shape[0] // self.groups
        stays = self.index.get(0, torch.arange(len(self.weight)))
        for g in range(self.groups):
            here = stays[(stays >= g * rows) & (stays < (g + 1) * rows)] - g * rows
            yield self.weight.detach()[g * rows : (g + 1) * rows], {**self.index, 0: here}


def _experts(
    consumer: _Consumer, item: PlanAxis, taps: Sequence[Tap], scores: Scores, method: Compensation, ridge: float
) -> Correction:
    """The down projections of fused experts: each is fitted to what it reads, without intercept.

    An expert adds its output, and so an intercept, only to the tokens that are sent to it, times a weight of theirs.
    """
    if taps[0].side is Side.EXPERT:
        return Correction(item.axis, None, None, 1.0, "whole experts are left to the router")
    if method is Compensation.MEAN:
        return Correction(item.axis, None, None, 1.0, "what experts read differs from token to token by their gates")
    stays = consumer.index.get(0, torch.arange(len(consumer.weight))).tolist()
    rest = {d - 1: positions for d, positions in consumer.index.items() if d not in (0, item.axis.dim)}
    weights, shares = [], []
    for expert in stays:
        statistics = _Statistics(taps, scores, method, ridge, expert)
        removed = item.removed[expert] if item.removed.ndim == 2 else item.removed
        mixing = statistics.mixing(0, statistics.length, removed, intercept=False)
        part = consumer.weight.detach()[expert]
        weights.append(_mixed(part, item.axis.dim - 1, rest, mixing, statistics.per_unit)[0])
        shares.append(mixing.unexplained)
    return Correction(item.axis, torch.stack(weights), None, float(np.mean(shares)), "fitted without intercept")


def _mixed(weight: Tensor, dim: int, index: Index, mixing: Mixing, per_unit: int) -> tuple[Tensor, Tensor]:
    """`Σ_r weight[r] · M[r, kept]`, shaped like the cut weight, and `Σ_r weight[r] · b[r]` with size 1 along `dim`."""
    rows = (mixing.removed[:, None] * per_unit + np.arange(per_unit)).reshape(-1)
    carried = weight.index_select(dim, torch.from_numpy(rows).to(weight.device))
    carried = gather(carried, {other: p.to(weight.device) for other, p in index.items() if other != dim})
    carried = carried.double().movedim(dim, 0)
    rest = carried.shape[1:]
    flat = carried.reshape(len(mixing.removed), -1)  # [removed, per unit · rest]
    made = mixing.weights.T.to(flat) @ flat
    shift = (mixing.intercept.to(flat) @ flat).reshape(per_unit, *rest).sum(0)
    return made.reshape(-1, *rest).movedim(0, dim), shift.unsqueeze(dim)


def unexplained(units: UnitMap, found: Sequence[Correction]) -> dict[str, float]:
    """Group name → the mean over its consumers of what the units that stay do not predict."""
    by_axis = {c.axis: c.unexplained for c in found}
    means = {}
    for group in units.groups:
        shares = [by_axis[a.axis] for a in group.axes if a.axis in by_axis]
        if shares:
            means[group.name] = float(np.mean(shares))
    return means
