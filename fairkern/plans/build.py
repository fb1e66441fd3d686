"""Removed units of every group → a Plan: positions per axis, attributes, costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fairkern.errors import InputError
from fairkern.plans.cost import Cost, extents_after, told_apart
from fairkern.plans.depth import Depth
from fairkern.plans.left_alone import left_alone
from fairkern.plans.removals import NONE
from fairkern.plans.serving import serves, shares
from fairkern.types import (
    AttributeChange,
    Axis,
    ConfigChange,
    GroupAxis,
    IndexArray,
    Plan,
    PlanAxis,
    PlanGroup,
    Silence,
    SizeChange,
    UnitMap,
)


def build(
    units: UnitMap,
    removed: Sequence[IndexArray],
    request: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    stays: Mapping[int, str] | None = None,
) -> Plan:
    """The plan that takes these units out.

    Args:
        units: the map that the plan is for.
        removed: per group of the map (frozen ones too) the units that go: integer arrays, any order, each unit
            at most once; `[sets, count]` for a group of several sets; empty for a group that stays whole.
        request: what was asked, kept as it is.
        result: entries to add to the costs and counts that are computed here.
        stays: groups, by index, that a constraint of the request keeps whole, and why; said in `left_alone`.

    Returns:
        A Plan with the prunable groups in the map's order, the axes that lose positions sorted by name, the
        attributes that change, and in `result`: `params_before`, `params_after`, `flops_before`, `flops_after`,
        `groups`, `groups_cut`, `units`, `units_removed`, `serves` (for each server "yes", or why it cannot load what is
        left), and where there is any `config_left`: fields of the model's configuration that stay as they were since
        their groups differ, or since it refuses the number; `left_alone`: kinds of units of which none goes, and what a
        constraint keeps.

    Raises:
        InputError: a wrong number of arrays, units that do not exist or come twice, a group that is frozen or
            would keep fewer units than it needs.

    Cost: O(positions that go), after one pass over the map.

    Example:
        >>> from fairkern.types import AxisGroup
        >>> held = GroupAxis(Axis("fc1.weight", 0), 4, np.arange(4)[:, None])
        >>> layer = AxisGroup("fc1", "neuron", 4, axes=(held,), taps=())
        >>> units = UnitMap("Net", (layer,), (), (), (), (), (), {"fc1.weight": (4, 3)})
        >>> [(str(a.axis), a.removed.tolist()) for a in build(units, [np.array([3, 1])]).axes]
        [('fc1.weight:0', [1, 3])]
    """
    chosen = _checked(units, removed)
    depth = Depth(units, chosen)
    chosen = depth.spared(chosen, NONE)
    counts = np.array([units_.shape[-1] for units_ in chosen], dtype=np.int64)
    nothing = np.zeros_like(counts)
    order = {g: chosen[g] for g in told_apart(units)}
    params, flops = Cost(units, units.params, order), Cost(units, units.flops, order)
    prunable = units.prunable
    sizes = extents_after(units, counts)
    axes = tuple(sorted((*_axes(units, chosen), *depth.axes()), key=lambda a: (a.axis.tensor, a.axis.dim)))
    gone = (*_gone(units, axes), *depth.modules)
    axes = tuple(a for a in axes if not a.axis.tensor.startswith(gone))
    present = _present(units, depth.absent)
    alone = left_alone(units, chosen, stays or {}, (request or {}).get("drop"))
    config, left = _config(present, chosen)
    sites = tuple(
        SizeChange(s.module, s.call, s.function, s.place, before, after, s.at, s.outright)
        for s in units.sites
        for before, after in ((units.extents[s.extent].length, sizes[s.extent]),)
        if (before != after or (s.outright and axes)) and not f"{s.module}.".startswith(gone)
    )
    return Plan(
        model=units.model,
        groups=tuple(
            PlanGroup(group.name, group.kind, group.units, chosen[g], group.sets)
            for g, group in ((g, units.groups[g]) for g in prunable)
        ),
        axes=axes,
        attributes=tuple(
            a
            for a in (*_attributes(units, sizes, depth.absent), *depth.attributes())
            if not f"{a.module}.".startswith(gone)
        ),
        shapes={name: tuple(shape) for name, shape in units.shapes.items()},
        request=dict(request or {}),
        result={
            "params_before": _whole(params(nothing)),
            "params_after": _whole(params(counts) - Cost(units, depth.left_over(), order)(counts)),
            "flops_before": _whole(flops(nothing)),
            "flops_after": _whole(flops(counts)),
            "groups": len(prunable),
            "groups_cut": int(np.count_nonzero(counts)),
            "units": sum(units.groups[g].total for g in prunable),
            "units_removed": sum(units_.size for units_ in chosen),
            **({"config_left": left} if left else {}),
            **({"left_alone": alone} if alone else {}),
            "serves": serves(present, chosen),
            **(result or {}),
        },
        sites=sites,
        replacements=tuple(
            r
            for r in units.replacements
            if any(a.axis.tensor.startswith(f"{r.module}." if r.module else "") for a in axes)
        ),
        config=config,
        lists={path: names for path, names in _listed(units).items() if Axis(path, 0) in {a.axis for a in axes}},
        seen={module: units.seen[module] for module in dict.fromkeys(s.module for s in sites) if module in units.seen},
        branches=depth.branches(sizes),
        rows=tuple(depth.rows()),
    )


def _listed(units: UnitMap) -> dict[str, tuple[str, ...]]:
    """Lists of modules that are units or blocks, and the names there."""
    named = {path: entries.names for path, entries in units.lists.items()}
    return {**named, **{path: held.names for path, held in units.blocks.items()}}


def _gone(units: UnitMap, axes: Sequence[PlanAxis]) -> tuple[str, ...]:
    """What the names of modules and tensors begin with that go whole: experts of a list."""
    return tuple(
        f"{a.axis.tensor}.{units.lists[a.axis.tensor].names[k]}."
        for a in axes
        if a.axis.tensor in units.lists
        for k in a.removed.tolist()
    )


def _present(units: UnitMap, absent: Collection[int]) -> UnitMap:
    """The map whose configuration counts no groups that are gone with the branch that they lie in."""
    fields = (replace(f, groups=tuple(g for g in f.groups if g not in absent)) for f in units.config)
    return replace(units, config=tuple(f for f in fields if f.groups)) if absent else units


def _config(units: UnitMap, chosen: Sequence[IndexArray]) -> tuple[tuple[ConfigChange, ...], list[str]]:
    """Fields that change, and those that stay as they are: their groups differ, or the configuration refuses what one
    that counts the same groups would have to be."""
    counts = [gone.shape[-1] for gone in chosen]
    after: list[int | None] = []  # None: no number is right
    refused: set[int] = set()
    for field in units.config:
        found = set(shares(units, field, counts).values())
        right = found.pop() if len(found) == 1 else None
        whole = right is not None and (field.fixed or right.denominator == 1)
        after.append(int(right) if right is not None and whole else None)
        if whole and not field.fixed and field.admitted is not None and right not in (field.size, *field.admitted):
            refused.update(field.groups)
    changes, left = [], []
    for field, value in zip(units.config, after, strict=True):
        if value == field.size:
            continue
        if value is None or refused.intersection(field.groups):
            left.append(field.name)
        else:
            changes.append(ConfigChange(field.name, field.before, field.size if field.fixed else value))
    return tuple(changes), left


def _checked(units: UnitMap, removed: Sequence[IndexArray]) -> list[IndexArray]:
    if len(removed) != len(units.groups):
        raise InputError(f"removed units are given for {len(removed)} groups; the map has {len(units.groups)}")
    chosen = []
    for group, given in zip(units.groups, removed, strict=True):
        array = np.asarray(given)
        if array.size == 0:
            chosen.append(NONE)
            continue
        lead = () if group.sets == 1 else (group.sets,)
        if array.shape[:-1] != lead or array.dtype.kind not in "iu":
            expected = f"integers [{group.sets}, count], a row per set" if lead else "a flat array of integers"
            raise InputError(
                f"removed units of group {group.name!r} are {array.dtype} of shape {array.shape}; expected {expected}"
            )
        array = np.sort(array, axis=-1).astype(np.int64)
        if array.min() < 0 or array.max() >= group.units or (array[..., 1:] == array[..., :-1]).any():
            raise InputError(
                f"removed units of group {group.name!r} run from {array.min()} to {array.max()}; "
                f"expected distinct numbers from 0 to {group.units - 1}"
            )
        if group.frozen is not None:
            raise InputError(f"group {group.name!r} is frozen and cannot be cut: {group.frozen}")
        if group.units - array.shape[-1] < group.least:
            raise InputError(
                f"{array.shape[-1]} of the {group.units} units of group {group.name!r} would go; "
                f"at least {group.least} must stay"
            )
        chosen.append(array)
    return chosen


def _attributes(units: UnitMap, sizes: Sequence[int], absent: Collection[int]) -> tuple[AttributeChange, ...]:
    """Attributes that hold another size now; one that stands for several layers, where they all agree on it. `absent`:
    groups that are gone."""
    ends: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for a in units.attributes:
        if absent and units.extents[a.extent].parts and units.follows(a.extent) <= set(absent):
            continue
        ends.setdefault((a.module, a.attribute), set()).add((units.extents[a.extent].length, sizes[a.extent]))
    changes = [(*place, *next(iter(found))) for place, found in ends.items() if len(found) == 1]
    return tuple(AttributeChange(*change) for change in changes if change[2] != change[3])


def _axes(units: UnitMap, chosen: Sequence[IndexArray]) -> tuple[PlanAxis, ...]:
    """One entry per axis that loses positions. Several groups may hold positions of one axis (a concatenation)."""
    holders: dict[Axis, list[tuple[GroupAxis, IndexArray]]] = {}
    for group, array in zip(units.groups, chosen, strict=True):
        if not array.size:
            continue
        gathered: dict[int, IndexArray] = {}  # axes of a group often share one array of positions
        for held in group.axes:
            places = gathered.get(id(held.positions))
            if places is None:
                places = group.places(held, array)
                gathered[id(held.positions)] = places
            holders.setdefault(held.axis, []).append((held, places))
    joined: dict[tuple[int, ...], IndexArray] = {}  # what is concatenated is often read along several axes
    for parts in holders.values():
        together = tuple(id(places) for _, places in parts)
        if together not in joined:
            joined[together] = _joined([places for _, places in parts])
    return tuple(
        PlanAxis(
            axis,
            parts[0][0].length,
            joined[tuple(id(places) for _, places in parts)],
            next((held.silence for held, _ in parts if held.silence is not Silence.NONE), Silence.NONE),
        )
        for axis, parts in sorted(holders.items(), key=lambda item: (item[0].tensor, item[0].dim))
    )


def _joined(parts: Sequence[IndexArray]) -> IndexArray:
    """The positions of several groups on one axis; a row per set where any has sets."""
    if len(parts) == 1:
        return parts[0]
    if all(p.ndim == 1 for p in parts):
        return np.unique(np.concatenate(parts))
    rows = max(len(p) for p in parts if p.ndim == 2)
    return np.sort(np.concatenate([np.broadcast_to(p, (rows, p.shape[-1])) for p in parts], axis=1), axis=1)


def _whole(cost: float) -> int | float:
    return int(cost) if cost == int(cost) else cost
