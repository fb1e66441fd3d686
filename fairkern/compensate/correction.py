"""What is added to a consumer: made from a fit of what it reads, and folded into the model that was cut."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.compact.descriptors import Index
from fairkern.compensate.borders import grids_of, kernel_shares, within
from fairkern.compensate.fit import Fit
from fairkern.compensate.statistics import Statistics
from fairkern.model.autocast import forget_casts
from fairkern.model.linear import bias_of, give_bias, groups_of, output_dim
from fairkern.model.sharded import is_sharded, local, part_of, whole
from fairkern.model.tensors import tensor_of
from fairkern.ops.gather import gather
from fairkern.plans.renaming import Renaming
from fairkern.types import Axis, Plan, Scores, Tap, UnitMap

_AT_ONCE = 1 << 23  # elements that are made in float64 at once


@dataclass(frozen=True, eq=False)
class Correction:
    """What is added to one consumer of the cut model.

    `weight`: shaped like the cut weight; None where nothing could be done, and `note` says why. `bias`: [outputs],
    None where there is no intercept. `unexplained`: the share of the removed activations' power (of their variance,
    with an intercept) that the units that stay do not predict. `with_intercept`, of a weight that is fitted through
    zero: the share of the same power that would be left if it could be given a bias; NaN elsewhere.
    """

    axis: Axis
    weight: Tensor | None
    bias: Tensor | None
    unexplained: float
    note: str = ""
    with_intercept: float = math.nan

    def held_of(self, model: nn.Module) -> Correction:
        """What this process adds, to what it holds of the weight and the bias of a model in shards."""
        if self.weight is None:
            return self
        place = bias_of(model, self.axis) if self.bias is not None else None
        bias = None if place is None or self.bias is None else _held(place[0]._parameters[place[1]], self.bias)
        return replace(self, weight=_held(tensor_of(model, self.axis.tensor), self.weight), bias=bias)


def _held(tensor: Tensor | None, made: Tensor) -> Tensor:
    """Of what is added to the cut tensor what is added here; `tensor`: the uncut one."""
    if tensor is None or not is_sharded(tensor):
        return made
    part = part_of("a parameter", tensor)
    start, stop = part.share(made.shape[part.dim], part.rank)
    return made.narrow(part.dim, start, stop - start).clone()


class Consumer:
    """One weight that contracts over an axis at some taps, and how a plan cuts it."""

    def __init__(self, model: nn.Module, axis: Axis, index: Index, taps: Sequence[Tap], scores: Scores) -> None:
        self.axis, self.index, self.taps = axis, index, taps
        module = model.get_submodule(axis.module)
        self._tensor = tensor_of(model, axis.tensor)
        self.length = self._tensor.shape[axis.dim]
        self.groups = groups_of(module)
        self._out = output_dim(module, axis)
        place = bias_of(model, axis)
        self.has_bias = place is not None and place[0]._parameters[place[1]] is not None
        by_function = any(site.weight for tap in taps for site in tap.sites)
        may_have = self.has_bias or (place is not None and not by_function)
        self.no_bias = "" if may_have else "it can have none"
        self._module, self._scores = module, scores

    @cached_property
    def _shares(self) -> Tensor | None:
        """Made when an intercept is: what is decided before asks for none."""
        return kernel_shares(self._module, grids_of(self.taps, self._scores))

    def reads(self, positions: int) -> bool:
        """Whether so many are the positions of its weight, in the groups of a convolution."""
        return positions == self.length * self.groups

    def correction(self, statistics: Statistics, *, intercept: bool) -> Correction:
        """What makes up for the positions that go, and for what differs at those that stay."""
        every = np.arange(self.length, dtype=np.int64)
        removed = np.setdiff1d(every, self.index.get(self.axis.dim, every))
        weights, biases, fits = [], [], []
        for group, part, index in self._parts():
            fit = statistics.fit(group * self.length, self.length, removed, intercept)
            weight, shift = carried(part, self.axis.dim, index, fit, statistics.per_unit)
            weights.append(weight)
            fits.append(fit)
            if intercept:
                shift = within(shift, self._shares)
                biases.append(shift.sum([d for d in range(shift.ndim) if d != self._out]))
        return Correction(
            self.axis,
            torch.cat(weights, 0) if len(weights) > 1 else weights[0],
            (torch.cat(biases) if len(biases) > 1 else biases[0]) if biases else None,
            float(np.mean([fit.unexplained for fit in fits])),
            with_intercept=float(np.mean([fit.with_intercept for fit in fits])),
        )

    def _parts(self) -> Iterator[tuple[int, Tensor, Index]]:
        """Each group of a convolution of which rows stay, its weight and those rows; else the whole weight."""
        whole_weight = whole(self._tensor)
        if self.groups == 1:
            yield 0, whole_weight, self.index
            return
        rows = len(whole_weight) // self.groups
        stays = self.index.get(0, torch.arange(len(whole_weight), device="cpu"))
        for g in range(self.groups):
            here = stays[(stays >= g * rows) & (stays < (g + 1) * rows)] - g * rows
            if len(here):
                yield g, whole_weight[g * rows : (g + 1) * rows], {**self.index, 0: here}


def carried(weight: Tensor, dim: int, index: Index, fit: Fit, per_unit: int) -> tuple[Tensor, Tensor]:
    """`Σ_t weight[t] · M[t, kept]`, shaped like the cut weight, and `Σ_t weight[t] · b[t]` with size 1 along `dim`.

    Float64 products, made and kept for some positions of another dimension at a time, so that beside the result little
    is held; that is float32 where the weight is no wider.
    """
    rows = (fit.told[:, None] * per_unit + np.arange(per_unit)).reshape(-1)
    index = {**index, dim: torch.from_numpy(rows)}
    across = next((d for d in range(weight.ndim) if d != dim), None)
    if across is None:
        return _carried(weight, dim, index, fit, per_unit)
    stays = index.get(across, torch.arange(weight.shape[across], device="cpu"))
    size = max(len(rows), len(fit.kept) * per_unit) * math.prod(
        len(index[d]) if d in index else n for d, n in enumerate(weight.shape) if d not in (dim, across)
    )
    parts = stays.split(max(1, _AT_ONCE // max(1, size)))
    if len(parts) == 1:
        return _carried(weight, dim, index, fit, per_unit)
    into: tuple[Tensor, ...] = ()
    at = 0
    for part in parts:  # each into its place: all of them and the whole would be twice the result
        made = _carried(weight, dim, {**index, across: part}, fit, per_unit)
        if not into:
            into = tuple(x.new_empty([*x.shape[:across], len(stays), *x.shape[across + 1 :]]) for x in made)
        for whole_one, x in zip(into, made, strict=True):
            whole_one.narrow(across, at, len(part)).copy_(x)
        at += len(part)
    return into[0], into[1]


def _carried(weight: Tensor, dim: int, index: Index, fit: Fit, per_unit: int) -> tuple[Tensor, Tensor]:
    part = gather(weight, {d: positions.to(weight.device) for d, positions in index.items()})
    part = part.movedim(dim, 0).to(torch.float64, memory_format=torch.contiguous_format)
    rest = part.shape[1:]
    flat = part.reshape(len(fit.told), -1)  # [told, per unit · rest]
    made = (fit.weights.T.to(flat) @ flat).to(_kept_in(weight))
    shift = (fit.intercept.to(flat) @ flat).reshape(per_unit, *rest).sum(0)
    return made.reshape(len(fit.kept) * per_unit, *rest).movedim(0, dim), shift.unsqueeze(dim)


def _kept_in(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def by_axis(taps: Iterable[Tap]) -> dict[Axis, list[Tap]]:
    """Where each weight reads the positions of an axis, every tap once."""
    found: dict[Axis, dict[str, Tap]] = {}
    for tap in taps:
        for axis in tap.weights:
            found.setdefault(axis, {}).setdefault(tap.name, tap)
    return {axis: list(named.values()) for axis, named in found.items()}


def cannot_take(model: nn.Module, units: UnitMap, axis: Axis) -> str:
    """Why what is added to this tensor would not be added to what contracts its axis; empty if it would."""
    if ".parametrizations." in f".{axis.tensor}":
        return "a parametrization computes the weight from it"
    if axis.tensor in units.computed:
        return "the weight is computed from it"
    module = model.get_submodule(axis.module)
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed and module.groups > 1:
        return "a transposed convolution in groups cannot mix its inputs across them"
    return ""


def fold(small: nn.Module, plan: Plan, found: Iterable[Correction]) -> None:
    """Add corrections to the model that was cut. A missing bias is registered as a parameter like the weight."""
    renaming = Renaming(plan)
    with torch.no_grad():
        for correction in found:
            if correction.weight is None:
                continue
            name = renaming.after(correction.axis.tensor)
            assert name is not None  # nothing is corrected that goes whole
            weight = local(tensor_of(small, name))
            for into, more in zip(_in_parts(weight), _in_parts(correction.weight), strict=True):
                _add(into, more)
            if correction.bias is not None:
                bias = local(_bias(small, Axis(name, correction.axis.dim)))
                _add(bias, correction.bias)
    forget_casts()


def _add(into: Tensor, more: Tensor) -> None:
    """Rounded once."""
    if into.dtype == more.dtype:
        into.add_(more)
    else:
        into.copy_(_sum(into, more))


def _sum(values: Tensor, more: Tensor) -> Tensor:
    """Before it is rounded. Of one dtype that is what adding them does, without copies in float64."""
    return values + more if values.dtype == more.dtype else values.double() + more


def fold_whole(model: nn.Module, whole: nn.Module, cuts: Mapping[str, Index], correction: Correction) -> None:
    """Give a copy in full size of `model` the values that `fold` will give what is left of it; its other values stay.

    A correction of the same weight that it was given before is replaced.
    """
    assert correction.weight is not None
    axis = correction.axis
    index = cuts.get(axis.tensor, {})
    weight, before = tensor_of(whole, axis.tensor), tensor_of(model, axis.tensor)
    stays = index.get(0, torch.arange(before.shape[0], device="cpu"))
    with torch.no_grad():
        for rows, more in zip(stays.split(_rows(correction.weight)), _in_parts(correction.weight), strict=True):
            places = _places({**index, 0: rows}, before.shape)
            weight[places] = _sum(before[places], more).to(weight)
        if correction.bias is not None:
            bias, held = _bias(whole, axis), bias_of(model, axis)
            out = output_dim(model.get_submodule(axis.module), axis)
            assert held is not None
            assert out is not None
            own = held[0]._parameters[held[1]]
            given = torch.zeros_like(bias) if own is None else own.detach()
            (stays,) = _places({0: index[out]} if out in index else {}, bias.shape)
            bias[stays] = _sum(given[stays], correction.bias).to(bias)
    forget_casts()


def _bias(model: nn.Module, axis: Axis) -> nn.Parameter:
    """The bias that is added to what this axis is contracted to; one of zeros is registered where there is none."""
    place = bias_of(model, axis)
    assert place is not None
    module, name = place
    if module._parameters[name] is None:
        give_bias(module)
    return module.get_parameter(name)


def _in_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Some rows after the other: what is made of them in float64 is small beside the tensor."""
    return tensor.split(_rows(tensor))


def _rows(tensor: Tensor) -> int:
    return max(1, _AT_ONCE * len(tensor) // max(1, tensor.numel()))


def _places(index: Index, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Where the values that stay lie in a tensor of this shape: positions per dimension, up to the last that is cut,
    broadcast to their shape. Behind it numbers lie side by side, and are copied many at a time."""
    rows = index.get(0, torch.arange(shape[0], device="cpu"))
    found = []
    upto = max(index, default=0) + 1
    for dim, length in enumerate(shape[:upto]):
        positions = index.get(dim, torch.arange(length, device="cpu"))
        lead = [1] * dim
        if positions.ndim == 2:  # every position of dimension 0 keeps others
            positions, lead = positions[rows], [len(rows), *lead[1:]]
        found.append(positions.reshape(*lead, -1, *[1] * (upto - dim - 1)))
    return tuple(found)


def unexplained(units: UnitMap, found: Sequence[Correction]) -> dict[str, float]:
    """Group name → the mean over its consumers of what the units that stay do not predict."""
    shares = {c.axis: c.unexplained for c in found}
    means = {}
    for group in units.groups:
        own = [shares[a.axis] for a in group.axes if a.axis in shares]
        if own:
            means[group.name] = float(np.mean(own))
    return means


def through_zero(found: Iterable[Correction]) -> dict[str, dict[str, float]]:
    """Weight → what is left of what goes where it was fitted without an intercept, and what one would have left."""
    return {
        c.axis.tensor: {"unexplained": c.unexplained, "with_intercept": c.with_intercept}
        for c in found
        if c.weight is not None and not math.isnan(c.with_intercept)
    }
