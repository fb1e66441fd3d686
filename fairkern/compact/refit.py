"""Refit consumers on what they read once the layers before them have been cut, so that errors do not add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.compact.apply import apply, copy_with
from fairkern.compact.biases import bias_of, give_bias, made_dim, may_be_added
from fairkern.compact.borders import grids_of, kernel_shares, within
from fairkern.compact.compensate import Correction, fold
from fairkern.compact.descriptors import kept
from fairkern.compact.masked import masked
from fairkern.compact.mixing import solve
from fairkern.ops.eliminate.config import RIDGE
from fairkern.types import Axis, JointMoments, Moments, Plan, Scores

Measure = Callable[[nn.Module, Sequence[str]], Mapping[str, JointMoments]]
"""Joint moments of the given model and a changed one, at some taps."""


def refit(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    found: Sequence[Correction],
    order: Sequence[str],
    measure: Measure,
    steps: int | None = None,
    ridge: float = RIDGE,
    backend: str = "auto",
) -> nn.Module:
    """The cut model, its consumers making up for what `plan` removes layer after layer.

    It works on a copy in full size whose consumers ignore what goes. That starts from the one-shot fit. Then, tap by
    tap in the order of the forward pass, every consumer gets the weights that best give back, from what now arrives
    there, what it computed in `model`: with `a` read before and `b` now, `W ← W C_ab C_bb⁻¹` over the positions that
    stay. In the end the copy is cut. `found`: the one-shot corrections; what they leave alone is left alone here.
    Experts, whose tokens are others once something has been cut, keep their one-shot fit.

    `steps`: refit in so many groups of taps, each measured once; None: every tap for itself.
    Cost: `steps` measurements, and per tap one Cholesky factorisation.
    """
    changed = copy_with(model, [])
    indices = kept(plan)
    taps: dict[Axis, set[str]] = {}
    for group in scores.units.groups:
        for tap in group.taps:
            for axis in tap.weights:
                taps.setdefault(axis, set()).add(tap.name)
    correctable = [c for c in found if c.weight is not None and taps.get(c.axis, set()) <= set(order)]
    experts = [c for c in found if c.weight is not None and c not in correctable]
    stays = {c.axis: indices[c.axis.tensor][c.axis.dim] for c in correctable}
    shares = {c.axis: _shares(model, c.axis, scores) for c in correctable}
    for c in correctable:
        known = _sum([_unchanged(scores.moments[n]) for n in sorted(taps[c.axis])])
        _refit(model, changed, c, stays[c.axis], known, ridge, shares[c.axis])
    # a weight that is read at several taps is refitted once everything before the last of them has been
    last = {c.axis: max(order.index(name) for name in taps[c.axis]) for c in correctable}
    places = sorted(set(last.values()))
    for part in np.array_split(np.array(places), max(1, min(steps or len(places), len(places)))):
        chosen = [c for c in correctable if last[c.axis] in set(part.tolist())]
        if chosen:
            names = sorted({name for c in chosen for name in taps[c.axis]}, key=order.index)
            with masked(changed, plan, strict=False):  # experts do not ignore what goes by themselves
                joint = measure(changed, names)
            for c in chosen:
                known = _sum([joint[n] for n in sorted(taps[c.axis])])
                _refit(model, changed, c, stays[c.axis], known, ridge, shares[c.axis])
    small = _cut(changed, plan, indices, backend)
    fold(small, experts)
    return small


def _cut(changed: nn.Module, plan: Plan, indices: Mapping[str, Mapping[int, Tensor]], backend: str) -> nn.Module:
    """`changed` cut in place; biases that the plan does not know are cut like the outputs of their weights."""
    added = {n: p for n, p in changed.named_parameters() if n not in plan.shapes and may_be_added(changed, n, plan)}
    for name in added:
        changed.get_submodule(name.rpartition(".")[0])._parameters["bias"] = None
    small = apply(changed, plan, inplace=True, backend=backend)
    for name, bias in added.items():
        path = name.rpartition(".")[0]
        module = small.get_submodule(path)
        outputs = indices.get(f"{path}.weight" if path else "weight", {}).get(made_dim(module))
        value = bias.detach() if outputs is None else bias.detach()[outputs.to(bias.device)]
        module.bias = nn.Parameter(value, requires_grad=bias.requires_grad)
    return small


def _unchanged(moments: Moments) -> JointMoments:
    """Of a model that has not been changed: the fit is that of one shot."""
    return JointMoments(
        moments.gram, moments.gram, moments.total, moments.total, moments.count, moments.per_unit
    )  # fmt: skip


def _shares(model: nn.Module, axis: Axis, scores: Scores) -> Tensor | None:
    """How much of a convolution's kernel counts for a constant."""
    taps = {tap.name: tap for group in scores.units.groups for tap in group.taps if axis in tap.weights}
    return kernel_shares(model.get_submodule(axis.module), grids_of(taps.values(), scores))


def _refit(
    model: nn.Module,
    changed: nn.Module,
    correction: Correction,
    stays: Tensor,
    joint: JointMoments,
    ridge: float,
    shares: Tensor | None,
) -> None:
    axis = correction.axis
    before, weight = _weight(model, axis).detach(), _weight(changed, axis)
    intercept = correction.bias is not None
    module = changed.get_submodule(axis.module)
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed else 1
    rows = (stays[:: joint.per_unit] // joint.per_unit).numpy()
    n = weight.shape[axis.dim] // joint.per_unit
    made, shifts = [], []
    for g in range(groups):
        mixing, shift = _solve(_part(joint, g * n, n), rows, intercept, ridge)
        part = before if groups == 1 else before.chunk(groups, 0)[g]
        moved = part.double().movedim(axis.dim, 0)
        flat = moved.reshape(n, -1)
        new = (mixing.T.to(flat) @ flat).reshape(len(stays), *moved.shape[1:]).movedim(0, axis.dim)
        made.append(new)
        carried = (shift.to(flat) @ flat).reshape(joint.per_unit, *moved.shape[1:]).sum(0)
        shifts.append(within(carried, shares))
    with torch.no_grad():
        weight.zero_()
        weight.index_copy_(axis.dim, stays.to(weight.device), torch.cat(made, 0 if groups > 1 else axis.dim).to(weight))
        if intercept:
            _set_bias(model, changed, axis, torch.cat(shifts) if groups > 1 else shifts[0])


def _solve(joint: JointMoments, rows: np.ndarray, intercept: bool, ridge: float) -> tuple[Tensor, Tensor]:
    """`a ≈ mixing @ b[rows] + shift`: [n, kept], [n]. The ridge draws towards `a[rows] = b[rows]`."""
    cross, own = torch.from_numpy(joint.cross) / joint.count, torch.from_numpy(joint.gram) / joint.count
    mean, changed = torch.from_numpy(joint.total) / joint.count, torch.from_numpy(joint.changed) / joint.count
    if intercept:
        cross, own = cross - torch.outer(mean, changed), own - torch.outer(changed, changed)
    k = torch.from_numpy(rows)
    inner = own[k][:, k]
    keep = torch.zeros((len(mean), len(k)), dtype=torch.float64)
    keep[k, torch.arange(len(k))] = 1
    mixing = keep + solve(inner, cross[:, k] - keep @ inner, ridge)
    shift = mean - mixing @ changed[k] if intercept else torch.zeros_like(mean)
    return mixing, shift


def _set_bias(model: nn.Module, changed: nn.Module, axis: Axis, carried: Tensor) -> None:
    place, original = bias_of(changed, axis), bias_of(model, axis)
    assert place is not None
    assert original is not None
    module, name = place
    if module._parameters[name] is None:
        give_bias(module)
    bias = module.get_parameter(name)
    given = original[0]._parameters[name]
    shift = carried.reshape(len(bias), -1).sum(1)  # outputs come first once the contracted dimension is gone
    bias.copy_((shift + (0 if given is None else given.detach().double())).to(bias))


def _weight(model: nn.Module, axis: Axis) -> Tensor:
    module, name = model.get_submodule(axis.module), axis.tensor.rpartition(".")[2]
    held = module._parameters.get(name, module._buffers.get(name))
    assert held is not None
    return held


def _part(joint: JointMoments, first: int, length: int) -> JointMoments:
    if first == 0 and length == len(joint.total):
        return joint
    rows = slice(first, first + length)
    return JointMoments(
        joint.cross[rows, rows], joint.gram[rows, rows], joint.total[rows], joint.changed[rows], joint.count,
        joint.per_unit,
    )  # fmt: skip


def _sum(parts: Sequence[JointMoments]) -> JointMoments:
    first = parts[0]
    return JointMoments(
        np.sum([p.cross for p in parts], axis=0),
        np.sum([p.gram for p in parts], axis=0),
        np.sum([p.total for p in parts], axis=0),
        np.sum([p.changed for p in parts], axis=0),
        sum(p.count for p in parts),
        first.per_unit,
    )
