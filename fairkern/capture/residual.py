"""Second-order (OBS) saliency, the signal "residual": what is lost with a unit, once those that stay make up for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.errors import NonFiniteError
from fairkern.model.linear import groups_of
from fairkern.model.sharded import whole
from fairkern.model.tensors import named_tensors
from fairkern.ops.eliminate import Elimination, View, eliminate
from fairkern.ops.eliminate.config import RIDGE
from fairkern.types import AxisGroup, Moments, Side, Tap, UnitMap


def residual(
    model: nn.Module, units: UnitMap, moments: Mapping[str, Moments], powers: Mapping[str, float]
) -> dict[int, np.ndarray]:
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

    Cost: about 4 n³ multiply-adds per tap in float64, where the weights are.
    """
    tensors = named_tensors(model)
    scores = {}
    for g in units.scored:
        group = units.groups[g]
        if any(tap.side.whole for tap in group.taps):
            scores[g] = _whole(group, moments, powers)
            continue
        taps = {tap.name: tap for tap in group.taps}.values()
        scores[g] = np.empty(group.total)
        for part, values in enumerate(np.split(scores[g], group.sets)):
            readings = {
                name: (tap, _reading(model, tensors, tap, moments[name], expert))
                for tap in taps
                for name, expert in _readings(tap, units, part if group.sets > 1 else None)
            }
            gradient_powers = _gradient_powers(readings, powers)
            found = _eliminated([(r, gradient_powers[name]) for name, (_, r) in readings.items()])
            values[found.order.cpu().numpy()] = _rising(found.error.cpu().numpy())
    return scores


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


def _eliminated(readings: Sequence[tuple[_Reading, float]]) -> Elimination:
    """Of readings, each with its gradient power.

    With a ridge of `RIDGE` mean variances; tenfold, where that is lost in the rounding of the sums.
    """
    by = RIDGE
    while True:
        try:
            return eliminate([View(r.ridged(by), power * r.output, r.rows) for r, power in readings])
        except NonFiniteError:
            if not all(bool(torch.isfinite(r.covariance).all()) for r, _ in readings):
                raise
        by *= 10


def _rising(errors: np.ndarray) -> np.ndarray:
    """Equal errors a rounding apart, so that sorting gives the order of elimination back."""
    out = errors.copy()
    for k in range(1, len(out)):
        if out[k] <= out[k - 1]:
            out[k] = np.nextafter(out[k - 1], np.inf)
    return out


def _readings(tap: Tap, units: UnitMap, part: int | None) -> list[tuple[str, int | None]]:
    """Names of the moments kept at a tap, and the expert that each belongs to; `part`: of this one only."""
    if tap.side is not Side.INNER:
        return [(tap.name, None)]
    experts = range(units.shapes[tap.weights[0].tensor][0]) if part is None else [part]
    return [(tap.of_expert(e), e) for e in experts]


def _whole(group: AxisGroup, moments: Mapping[str, Moments], powers: Mapping[str, float]) -> np.ndarray:
    found = np.zeros(group.total)
    for tap in group.taps:
        names = [tap.of_expert(int(e)) for e in tap.positions[:, 0]]
        times = 2 if tap.side is Side.EXPERT else 1
        found += [times * float(moments[n].gram.sum()) * powers[n] / moments[n].count for n in names]
    return found


class _Reading(NamedTuple):
    """What is read at one tap, and what its consumers make of it, in squares of their output."""

    covariance: Tensor
    output: Tensor  # W Wᵀ
    rows: Tensor
    power: float  # of the consumers' outputs
    size: float  # tr W Wᵀ

    def ridged(self, by: float) -> Tensor:
        """The covariance and so many mean variances; something in their place where there are none."""
        scale = float(self.covariance.diagonal().mean())
        ridge = torch.full_like(self.covariance.diagonal(), by * scale if scale > 0 else 1.0)
        return self.covariance + torch.diag(ridge)


def _reading(
    model: nn.Module, tensors: Mapping[str, Tensor], tap: Tap, moments: Moments, expert: int | None = None
) -> _Reading:
    """One tap, of one `expert` where it lies in several.

    An expert has no intercept, and so moments about zero; nor has a recurrent layer without biases.
    """
    weights = [_towards(whole(tensors[axis.tensor]).double(), axis.dim, expert) for axis in tap.weights]
    device = weights[0].device
    covariance = moments.gram.to(device) / moments.count
    if expert is None and _has_intercept(model, tap):
        mean = moments.total.to(device) / moments.count
        covariance = covariance - torch.outer(mean, mean)
    output = torch.zeros_like(covariance)
    for axis, weight in zip(tap.weights, weights, strict=True):
        output += _squared(weight, groups_of(model.get_submodule(axis.module)), moments.per_unit)
    power, size = float((output * covariance).sum()), float(output.diagonal().sum())
    for axis in tap.weights:
        covariance = _within_groups(covariance, groups_of(model.get_submodule(axis.module)))
    rows = torch.from_numpy(np.ascontiguousarray(tap.positions[:, :: moments.per_unit] // moments.per_unit))
    return _Reading(covariance, output, rows.to(device), power, size)


def _has_intercept(model: nn.Module, tap: Tap) -> bool:
    modules = [model.get_submodule(axis.module) for axis in tap.weights]
    return not all(isinstance(m, nn.RNNBase) and not m.bias for m in modules)


def _towards(weight: Tensor, dim: int, expert: int | None) -> Tensor:
    """[positions of the axis, …]."""
    return weight.movedim(dim, 0) if expert is None else weight[expert].movedim(dim - 1, 0)


def _squared(weight: Tensor, groups: int, per_unit: int) -> Tensor:
    """`W Wᵀ` over the rows that the moments have. `weight`: [positions of the axis, …]."""
    if groups == 1:
        flat = weight.reshape(len(weight) // per_unit, -1)
        return flat @ flat.T
    made = [part.reshape(len(weight), -1) for part in weight.chunk(groups, 1)]  # each group reads rows of its own
    return torch.block_diag(*(part @ part.T for part in made))


def _within_groups(covariance: Tensor, groups: int) -> Tensor:
    """What a grouped convolution can use to make up for a position: those of the same group."""
    if groups == 1:
        return covariance
    n = len(covariance) // groups
    return torch.block_diag(*(covariance[g * n : (g + 1) * n, g * n : (g + 1) * n] for g in range(groups)))
