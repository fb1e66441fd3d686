"""Second-order (OBS) saliency, the signal "residual": what is lost with a unit, once those that stay make up for it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.capture.jobs import Job, several
from fairkern.errors import NonFiniteError
from fairkern.model.linear import groups_of
from fairkern.model.sharded import whole, whole_row
from fairkern.model.tensors import device_of, tensor_of
from fairkern.ops.eliminate import Elimination, View, eliminate, halves
from fairkern.ops.eliminate.config import RIDGE
from fairkern.types import AxisGroup, FloatArray, Moments, Side, Tap, UnitMap

_OUTPUTS = 1024  # of a weight that are taken at a time, in float64


def jobs(units: UnitMap) -> list[Job]:
    """All that the signal "residual" takes, by group and set.

    `solve` does one of them, in any order, process or machine, and `signal` puts together what they gave:

        powers = store.powers(samples)
        made = {job: solve(job, model, units, moments, powers) for job in jobs(units)}
        scores = signal(units, made)

    `solve` reads `moments[name]` for the names of `job.moments` alone, so that a mapping may make them when they are
    asked for; once all jobs that name it are done, a moment can go. Nothing is random and no job knows of the others:
    the result is the same to the bit whoever did which, given the same moments. To share them out evenly, give each
    in turn, the dearest first, to whoever has least to do.
    """
    found = []
    for g in units.scored:
        group = units.groups[g]
        if any(tap.side.whole for tap in group.taps):
            names = [name for tap in group.taps for name in experts_of(tap)]
            cost = float(sum(tap.length**2 for tap in group.taps))
            found.append(Job(g, None, tuple(dict.fromkeys(names)), cost, 0))
            continue
        for part in range(group.sets):
            own = part if group.sets > 1 else None
            read = [(name, _width(group, tap)) for tap in group.taps for name, _ in readings_of(tap, units, own)]
            widths = dict(read)
            cost, memory = (sum(width**k for width in widths.values()) for k in (3, 2))
            found.append(Job(g, own, tuple(widths), float(cost), 16 * memory))
    return found


def squares(job: Job, model: nn.Module, units: UnitMap, per_unit: Mapping[str, int]) -> dict[str, Tensor]:
    """What a job reads of weights, by names of moments: the lower half of `W Wᵀ` of all that read there, float64.
    `per_unit`: as the moments have it.

    Weights in shards are gathered for it, one at a time, so that all processes that hold some have to ask, in the same
    order; `solve` then asks for none.
    """
    group = units.groups[job.group]
    if any(tap.side.whole for tap in group.taps):
        return {}
    return {
        name: _squares(model, tap, per_unit[name], expert)
        for tap in {tap.name: tap for tap in group.taps}.values()
        for name, expert in readings_of(tap, units, job.part)
    }


def solve(
    job: Job,
    model: nn.Module,
    units: UnitMap,
    moments: Mapping[str, Moments],
    powers: Mapping[str, float],
    *,
    most: float = 1.0,
    told: Callable[[float], None] | None = None,
    outputs: Mapping[str, Tensor] | None = None,
) -> FloatArray:
    """The scores of a job's units, float64 `[units]` (`[sets · units]` of whole experts), made where the weights are.

    `outputs`: its `squares`, where they are known.
    `most`: the share of them that goes one after the other; the others follow, as `ops.eliminate` says. `told` is
    called with the share that is done. Memory: two matrices as large as each of the moments.
    """
    group = units.groups[job.group]
    if any(tap.side.whole for tap in group.taps):
        return _whole(group, moments, powers)
    taps = {tap.name: tap for tap in group.taps}.values()
    heard = {name: (tap, e) for tap in taps for name, e in readings_of(tap, units, job.part)}
    count = min(group.units, math.ceil(most * group.units))

    def ordered(ridge: float) -> Elimination:
        known = outputs or {}
        readings = {n: (tap, _reading(model, tap, moments, n, e, known.get(n))) for n, (tap, e) in heard.items()}
        prices = _gradient_powers(readings, powers)
        views = [reading.view(prices[name], ridge) for name, (_, reading) in readings.items()]
        return eliminate(views, most=count, overwrite=True, told=told)

    found = _with_ridge(ordered, lambda: all(bool(torch.isfinite(moments[name].gram).all()) for name in heard))
    scores = np.empty(group.units)
    scores[found.order.cpu().numpy()] = _rising(found.error.cpu().numpy())
    return scores


def signal(units: UnitMap, made: Mapping[Job, FloatArray]) -> dict[int, FloatArray]:
    """Per scored group, float64 [sets · units], from what `solve` gave for every one of `jobs(units)`."""
    found: dict[int, list[FloatArray]] = {}
    for job in jobs(units):
        found.setdefault(job.group, []).append(made[job])
    return {g: np.concatenate(parts) for g, parts in found.items()}


def residual(
    model: nn.Module,
    units: UnitMap,
    moments: Mapping[str, Moments],
    powers: Mapping[str, float],
    *,
    most: float = 1.0,
    told: Callable[[float], None] | None = None,
) -> dict[int, FloatArray]:
    """Per scored group, float64 [sets · units]: what the loss of a sample is expected to rise by without a unit.

    That is the second-order saliency of Optimal Brain Surgeon, with the squared gradient for the curvature (Fisher's),
    taken to be the same in all directions of what the consumers give: the squared error that is left there, times the
    mean squared gradient. That follows from the gradient power at the tap (`powers`, Σ (∂L/∂a)² per sample) over
    `tr W Wᵀ`. (Twice the rise, to be exact.)

    Units go one after the other, the cheapest first, and all that stay are refitted by least squares each time; a
    unit's score is what its own step adds, summed over the consumers. Weights of a recurrent layer that read its own
    states, where no gradient comes by, are one consumer with as much at stake as those outside, the mean of theirs. So
    the scores order the units of a group as they are best removed, and later ones are never cheaper.

    Each fused expert is fitted for itself. Whole experts are not refitted: an expert's score is that of all it adds,
    and of what another one adds in its place, taken to be as large and to have nothing to do with it. Nor are branches
    of residual blocks: a branch's score is that of all it adds.

    Cost: n³ multiply-adds per tap in float64, where the weights are; on a CPU small groups several at a time. `most`
    and `told` as for `solve`, of all that is done.
    """
    done = functools.partial(solve, model=model, units=units, moments=moments, powers=powers, most=most)
    return signal(units, several(jobs(units), done, device_of(model), told))


def _width(group: AxisGroup, tap: Tap) -> int:
    """About how many entries the moments at a tap have: channels that a flatten has spread over places are one each."""
    return tap.length // tap.positions.shape[1] if group.kind == "channel" else tap.length


def _gradient_powers(readings: Mapping[str, tuple[Tap, _Reading]], powers: Mapping[str, float]) -> dict[str, float]:
    """By name: the mean squared gradient of the loss at what the consumers give."""
    found = {name: powers[name] / r.size if r.size > 0 else 0.0 for name, (_, r) in readings.items()}
    stake = sum(found[name] * r.power for name, (tap, r) in readings.items() if tap.side.scored)
    inside = {name: (tap, r) for name, (tap, r) in readings.items() if not tap.side.scored}
    own = Counter(axis.module for tap, _ in inside.values() for axis in tap.weights)
    for name, (tap, r) in inside.items():
        share = len(tap.weights) / own[tap.weights[0].module]
        found[name] = share * stake / r.power if r.power > 0 else 0.0
    return found


def _with_ridge(ordered: Callable[[float], Elimination], finite: Callable[[], bool]) -> Elimination:
    """With a ridge of `RIDGE` mean variances; tenfold, where that is lost in the rounding of sums that are `finite`."""
    by = RIDGE
    while True:
        try:
            return ordered(by)
        except NonFiniteError:
            if not finite():
                raise
        by *= 10


def _rising(errors: FloatArray) -> FloatArray:
    """Equal errors a rounding apart, so that sorting gives the order of elimination back."""
    out = errors.copy()
    for k in range(1, len(out)):
        if out[k] <= out[k - 1]:
            out[k] = np.nextafter(out[k - 1], np.inf)
    return out


def readings_of(tap: Tap, units: UnitMap, part: int | None) -> list[tuple[str, int | None]]:
    """Names of the moments kept at a tap, and the expert that each belongs to; `part`: of this one only."""
    if tap.side is not Side.INNER:
        return [(tap.name, None)]
    experts = range(units.shapes[tap.weights[0].tensor][0]) if part is None else [part]
    return [(tap.of_expert(e), e) for e in experts]


def experts_of(tap: Tap) -> list[str]:
    """Names of the moments of whole experts or branches."""
    return [tap.of_expert(int(e)) for e in tap.positions[:, 0]]


def _whole(group: AxisGroup, moments: Mapping[str, Moments], powers: Mapping[str, float]) -> FloatArray:
    found = np.zeros(group.total)
    for tap in group.taps:
        times = 2 if tap.side is Side.EXPERT else 1
        found += [times * float(moments[n].gram.sum()) * powers[n] / moments[n].count for n in experts_of(tap)]
    return found


class _Reading(NamedTuple):
    """What is read at one tap, and what its consumers make of it, in squares of their output. Matrices of its own."""

    covariance: Tensor
    output: Tensor  # W Wᵀ, its lower half
    rows: Tensor
    power: float  # of the consumers' outputs
    size: float  # tr W Wᵀ

    def view(self, price: float, ridge: float) -> View:
        """With a ridge of so many mean variances; something in their place where there are none. In the same memory."""
        variances = self.covariance.diagonal()
        scale = float(variances.mean())
        variances.add_(ridge * scale if scale > 0 else 1.0)
        return View(self.covariance, self.output.mul_(price), self.rows)


def _reading(
    model: nn.Module,
    tap: Tap,
    moments: Mapping[str, Moments],
    name: str,
    expert: int | None = None,
    known: Tensor | None = None,
) -> _Reading:
    """One tap, of one `expert` where it lies in several. Its moments may be made for this, and are not held. `known`:
    its `W Wᵀ`, if it is.

    An expert has no intercept, and so moments about zero; nor has a recurrent layer without biases.
    """
    groups = [groups_of(model.get_submodule(axis.module)) for axis in tap.weights]
    device = tensor_of(model, tap.weights[0].tensor).device
    held = moments[name]
    per_unit = held.per_unit
    covariance = held.gram.to(device, torch.float64) / held.count
    if expert is None and _has_intercept(model, tap):
        mean = held.total.to(device, torch.float64) / held.count
        covariance.addr_(mean, mean, alpha=-1)
    del held
    output = _squares(model, tap, per_unit, expert) if known is None else known.clone()
    power, size = halves.dot(output, covariance), float(output.diagonal().sum())
    for count in groups:
        _keep_within_groups(covariance, count)
    rows = torch.from_numpy(np.ascontiguousarray(tap.positions[:, ::per_unit] // per_unit))
    return _Reading(covariance, output, rows.to(device), power, size)


def _squares(model: nn.Module, tap: Tap, per_unit: int, expert: int | None) -> Tensor:
    """`W Wᵀ`, its lower half, summed over the weights that read at a tap."""
    output: Tensor | None = None
    for axis in tap.weights:
        tensor, dim = tensor_of(model, axis.tensor), axis.dim
        weight = whole(tensor) if expert is None else whole_row(axis.tensor, tensor, expert)
        weight = weight.movedim(dim if expert is None else dim - 1, 0)
        groups = groups_of(model.get_submodule(axis.module))
        if output is None:
            width = len(weight) * groups // per_unit
            output = torch.zeros(width, width, dtype=torch.float64, device=weight.device)
        _add_squared(output, weight, groups, per_unit)
    assert output is not None
    return output


def _has_intercept(model: nn.Module, tap: Tap) -> bool:
    modules = [model.get_submodule(axis.module) for axis in tap.weights]
    return not all(isinstance(m, nn.RNNBase) and not m.bias for m in modules)


def _add_squared(output: Tensor, weight: Tensor, groups: int, per_unit: int) -> None:
    """`W Wᵀ` over the rows that the moments have, its lower half. `weight`: [positions of the axis, …]."""
    if groups == 1:
        flat = weight.reshape(len(weight) // per_unit, -1)
        for part in flat.split(_OUTPUTS, 1):
            wide = part.double()
            halves.add_products(output, wide.T, wide.T, 1.0)
        return
    made = [part.double().reshape(len(weight), -1) for part in weight.chunk(groups, 1)]
    output += torch.block_diag(*(part @ part.T for part in made))  # each group reads rows of its own


def _keep_within_groups(covariance: Tensor, groups: int) -> None:
    """What a grouped convolution can use to make up for a position: those of the same group."""
    n = len(covariance) // groups
    for g in range(groups):
        own = slice(g * n, (g + 1) * n)
        covariance[own, : own.start] = 0
        covariance[own, own.stop :] = 0
