"""Refit layers on what they read once those before them have been cut, so that errors do not add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fairkern.capture.joint import joint_moments, reading_points
from fairkern.compact.cutting import apply, copy_with
from fairkern.compact.descriptors import kept, may_be_added, tensors_of
from fairkern.compact.mask import masked, without_experts
from fairkern.compensate.borders import grids_of, kernel_shares, within
from fairkern.compensate.one_shot import Correction, cannot_take, fold
from fairkern.model.linear import adds_bias, bias_of, give_bias, groups_of, made_dim
from fairkern.model.tensors import tensor_of
from fairkern.ops.eliminate.config import RIDGE
from fairkern.ops.ridge import solve
from fairkern.plans.renaming import Renaming
from fairkern.types import Axis, CallSite, JointMoments, Moments, Plan, Scores, Side, Tap, UnitMap


def other_taps(model: nn.Module, units: UnitMap) -> list[Tap]:
    """What linear layers and convolutions read that is no group's tap: after a cut it may differ all the same."""
    heard = {site.module for g in units.prunable for tap in units.groups[g].taps for site in tap.sites}
    found = []
    for path, module in model.named_modules():
        if path in heard or not adds_bias(module) or "weight" not in module._parameters:
            continue
        weight, dim = module.get_parameter("weight"), 1 - made_dim(module)
        conv = isinstance(module, nn.modules.conv._ConvNd)
        axis = Axis(f"{path}.weight" if path else "weight", dim)
        length = weight.shape[dim] * groups_of(module)
        place = -1 - len(module.kernel_size) if conv else -1
        nothing = np.zeros((0, 1), dtype=np.int64)
        found.append(Tap((CallSite(path),), Side.INPUT, place, length, nothing, (axis,)))
    return found


def refit(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    found: Sequence[Correction],
    loader: Iterable[Any],
    ridge: float = RIDGE,
    backend: str = "auto",
) -> nn.Module:
    """The cut model, its layers making up for what `plan` removes one after the other.

    It works on a copy in full size whose consumers ignore what goes. That starts from the one-shot fit. Then, tap by
    tap in the order of the forward pass, every layer gets the weights that best give back, from what now arrives
    there, what it computed in `model`: with `a` read before and `b` now, `W ← W C_ab C_bb⁻¹` over the positions that
    stay. Layers that lose no input themselves are refitted as well, since what they read has changed. In the end the
    copy is cut.

    `found`: the one-shot corrections; what they leave alone is left alone here. What reads where the walk does not come
    (experts, whose tokens are others once something has been cut) keeps its one-shot fit. A weight that is read at
    several taps is refitted at the last of them. A layer that loses no input gets no bias if it has none. `loader` is
    iterated once for an order of the taps and once for the walk. Cost: one walk, and per tap one Cholesky
    factorisation.
    """
    others = other_taps(model, scores.units)
    points = reading_points(model, loader, scores.units, others)
    changed = copy_with(model, [])
    readers = _readers(model, plan, scores, found, others, {p.name for p in points})
    for reader in readers:
        if reader.loses:
            _refit(model, changed, reader, _sum([_unchanged(scores.moments[n]) for n in reader.taps]), ridge)
    at: dict[str, list[_Reader]] = {}
    for reader in readers:
        for name in reader.taps:
            at.setdefault(name, []).append(reader)
    joint: dict[str, JointMoments | None] = {}
    left = Counter(name for reader in readers for name in reader.taps)
    with masked(changed, plan, strict=False):  # experts do not ignore what goes by themselves
        around = partial(_without_experts, changed, plan)
        steps = joint_moments(model, changed, loader, scores.units, points, around)
        with closing(steps):  # type: ignore[type-var]
            for name, moments in steps:
                joint[name] = moments
                for reader in at.get(name, ()):
                    if reader.taps <= joint.keys() and any(joint[n] is not None for n in reader.taps):
                        parts = [joint[n] or _unchanged(scores.moments[n]) for n in sorted(reader.taps)]
                        _refit(model, changed, reader, _sum(parts), ridge)
                    left.subtract(reader.taps if reader.taps <= joint.keys() else ())
                joint = {n: m for n, m in joint.items() if left[n] > 0}
    small = _cut(changed, plan, kept(plan), backend)
    fold(small, plan, [c for c in found if c.weight is not None and c.axis not in {r.axis for r in readers}])
    return small


def _without_experts(changed: nn.Module, plan: Plan) -> AbstractContextManager[object]:
    return without_experts(changed, plan) or nullcontext()


@dataclass(frozen=True, eq=False)
class _Reader:
    """A weight that is refitted: the axis along which it reads, the positions that stay, and where they are heard."""

    axis: Axis
    taps: frozenset[str]
    stays: Tensor
    intercept: bool
    loses: bool
    shares: Tensor | None  # of a convolution's kernel, for what a constant adds


def _readers(
    model: nn.Module,
    plan: Plan,
    scores: Scores,
    found: Sequence[Correction],
    others: Sequence[Tap],
    names: Set[str],
) -> list[_Reader]:
    taps: dict[Axis, list[Tap]] = {}
    for tap in (*(t for g in scores.units.prunable for t in scores.units.groups[g].taps), *others):
        for axis in tap.weights:
            taps.setdefault(axis, []).append(tap)
    corrected, renaming = {c.axis: c for c in found}, Renaming(plan)
    single = {held.names[0] for held in tensors_of(model) if len(held.names) == 1}
    indices = kept(plan)
    made = []
    for axis, read in taps.items():
        heard = frozenset(tap.name for tap in read)
        if not heard <= names or renaming.after(axis.tensor) is None:
            continue
        shares = _shares(model, axis, read, scores)
        correction = corrected.get(axis)
        if correction is not None and correction.weight is not None:
            stays = indices[axis.tensor][axis.dim]
            made.append(_Reader(axis, heard, stays, correction.bias is not None, True, shares))
        elif correction is None and axis.tensor in single and not cannot_take(model, axis):
            place = bias_of(model, axis)
            intercept = place is not None and place[0]._parameters[place[1]] is not None
            stays = torch.arange(tensor_of(model, axis.tensor).shape[axis.dim])
            made.append(_Reader(axis, heard, stays, intercept, False, shares))
    return made


def _cut(changed: nn.Module, plan: Plan, indices: Mapping[str, Mapping[int, Tensor]], backend: str) -> nn.Module:
    """`changed` cut in place; biases that the plan does not know are cut like the outputs of their weights."""
    added = {n: p for n, p in changed.named_parameters() if n not in plan.shapes and may_be_added(changed, n, plan)}
    for name in added:
        changed.get_submodule(name.rpartition(".")[0])._parameters["bias"] = None
    small = apply(changed, plan, inplace=True, backend=backend)
    renaming = Renaming(plan)
    for name, bias in added.items():
        path = name.rpartition(".")[0]
        later = renaming.after(path)
        if later is None:
            continue
        module = small.get_submodule(later)
        outputs = indices.get(f"{path}.weight" if path else "weight", {}).get(made_dim(module))
        value = bias.detach() if outputs is None else bias.detach()[outputs.to(bias.device)]
        module.bias = nn.Parameter(value, requires_grad=bias.requires_grad)
    return small


def _unchanged(moments: Moments) -> JointMoments:
    """Of a model that has not been changed: the fit is that of one shot."""
    return JointMoments(
        moments.gram, moments.gram, moments.total, moments.total, moments.count, moments.per_unit
    )  # fmt: skip


def _shares(model: nn.Module, axis: Axis, taps: Sequence[Tap], scores: Scores) -> Tensor | None:
    """How much of a convolution's kernel counts for a constant."""
    return kernel_shares(model.get_submodule(axis.module), grids_of({t.name: t for t in taps}.values(), scores))


def _refit(model: nn.Module, changed: nn.Module, reader: _Reader, joint: JointMoments, ridge: float) -> None:
    axis, stays, intercept = reader.axis, reader.stays, reader.intercept
    before, weight = tensor_of(model, axis.tensor).detach(), tensor_of(changed, axis.tensor)
    groups = groups_of(changed.get_submodule(axis.module))
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
        shifts.append(within(carried, reader.shares))
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
