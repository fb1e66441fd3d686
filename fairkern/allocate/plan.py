"""Removed units of every group → a Plan: positions per axis, attributes, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from fairkern.allocate.cost import Cost, extents_after
from fairkern.errors import InputError
from fairkern.types import (
    AttributeChange,
    Axis,
    ConfigChange,
    GroupAxis,
    IndexArray,
    Plan,
    PlanAxis,
    PlanGroup,
    SizeChange,
    UnitMap,
)


def build(
    units: UnitMap,
    removed: Sequence[IndexArray],
    request: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan that takes these units out.

    Args:
        units: the map that the plan is for.
        removed: per group of the map (frozen ones too) the units that go: integer arrays, any order, each unit
            at most once; empty for a group that stays whole.
        request: what was asked, kept as it is.
        result: entries to add to the costs and counts that are computed here.

    Returns:
        A Plan with the prunable groups in the map's order, the axes that lose positions sorted by name, the
        attributes that change, and in `result`: `params_before`, `params_after`, `flops_before`, `flops_after`,
        `groups`, `groups_cut`, `units`, `units_removed`, and `config_left`: fields of the model's configuration that
        stay as they were since their groups differ.

    Raises:
        InputError: a wrong number of arrays, units that do not exist or come twice, a group that is frozen or
            would lose all its units.

    Cost: O(positions that go), after one pass over the map.

    Example:
        >>> from fairkern.types import AxisGroup
        >>> held = GroupAxis(Axis("fc1.weight", 0), 4, np.arange(4)[:, None], consumer=False)
        >>> layer = AxisGroup("fc1", "neuron", 4, axes=(held,), taps=())
        >>> units = UnitMap("Net", (layer,), (), (), (), (), (), {"fc1.weight": (4, 3)})
        >>> [(str(a.axis), a.removed.tolist()) for a in build(units, [np.array([3, 1])]).axes]
        [('fc1.weight:0', [1, 3])]
    """
    chosen = _checked(units, removed)
    counts = np.array([len(units_) for units_ in chosen], dtype=np.int64)
    nothing = np.zeros_like(counts)
    params, flops = Cost(units, units.params), Cost(units, units.flops)
    prunable = units.prunable
    sizes = extents_after(units, counts)
    axes = _axes(units, chosen)
    config, left = _config(units, chosen)
    return Plan(
        model=units.model,
        groups=tuple(
            PlanGroup(units.groups[g].name, units.groups[g].kind, units.groups[g].units, chosen[g]) for g in prunable
        ),
        axes=axes,
        attributes=tuple(
            AttributeChange(a.module, a.attribute, units.extents[a.extent].length, sizes[a.extent])
            for a in units.attributes
            if sizes[a.extent] != units.extents[a.extent].length
        ),
        shapes={name: tuple(shape) for name, shape in units.shapes.items()},
        request=dict(request or {}),
        result={
            "params_before": _whole(params(nothing)),
            "params_after": _whole(params(counts)),
            "flops_before": _whole(flops(nothing)),
            "flops_after": _whole(flops(counts)),
            "groups": len(prunable),
            "groups_cut": int(np.count_nonzero(counts)),
            "units": sum(units.groups[g].units for g in prunable),
            "units_removed": int(counts.sum()),
            **({"config_left": left} if left else {}),
            **(result or {}),
        },
        sites=tuple(
            SizeChange(s.module, s.call, s.function, s.place, units.extents[s.extent].length, sizes[s.extent])
            for s in units.sites
            if sizes[s.extent] != units.extents[s.extent].length
        ),
        replacements=tuple(
            r
            for r in units.replacements
            if any(a.axis.tensor.startswith(f"{r.module}." if r.module else "") for a in axes)
        ),
        config=config,
    )


def _config(units: UnitMap, chosen: Sequence[IndexArray]) -> tuple[tuple[ConfigChange, ...], list[str]]:
    """Fields that change, and those that stay as they are because their groups differ."""
    changes, left = [], []
    for field in units.config:
        sizes = {
            Fraction(field.size * (units.groups[g].units - len(chosen[g])), units.groups[g].units) for g in field.groups
        }
        if sizes == {field.size}:
            continue
        if len(sizes) == 1 and (after := sizes.pop()).denominator == 1:
            changes.append(ConfigChange(field.name, field.before, field.size if field.fixed else int(after)))
        else:
            left.append(field.name)
    return tuple(changes), left


def _checked(units: UnitMap, removed: Sequence[IndexArray]) -> list[IndexArray]:
    if len(removed) != len(units.groups):
        raise InputError(f"removed units are given for {len(removed)} groups; the map has {len(units.groups)}")
    chosen = []
    for group, given in zip(units.groups, removed, strict=True):
        array = np.asarray(given)
        if array.size == 0:
            chosen.append(np.zeros(0, dtype=np.int64))
            continue
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"removed units of group {group.name!r} are {array.dtype} of shape {array.shape}; "
                "expected a flat array of integers"
            )
        array = np.sort(array).astype(np.int64)
        if array[0] < 0 or array[-1] >= group.units or (array[1:] == array[:-1]).any():
            raise InputError(
                f"removed units of group {group.name!r} run from {array[0]} to {array[-1]}; "
                f"expected distinct numbers from 0 to {group.units - 1}"
            )
        if group.frozen is not None:
            raise InputError(f"group {group.name!r} is frozen and cannot be cut: {group.frozen}")
        if len(array) == group.units:
            raise InputError(f"all {group.units} units of group {group.name!r} would go; at least one must stay")
        chosen.append(array)
    return chosen


def _axes(units: UnitMap, chosen: Sequence[IndexArray]) -> tuple[PlanAxis, ...]:
    """One entry per axis that loses positions. Several groups may hold positions of one axis (a concatenation)."""
    holders: dict[Axis, list[tuple[GroupAxis, IndexArray]]] = {}
    for group, array in zip(units.groups, chosen, strict=True):
        if not len(array):
            continue
        gathered: dict[int, IndexArray] = {}  # axes of a group often share one array of positions
        for held in group.axes:
            places = gathered.get(id(held.positions))
            if places is None:
                places = gathered[id(held.positions)] = np.sort(held.positions[array].ravel())
            holders.setdefault(held.axis, []).append((held, places))
    return tuple(
        PlanAxis(
            axis,
            parts[0][0].length,
            parts[0][1] if len(parts) == 1 else np.unique(np.concatenate([places for _, places in parts])),
            any(held.consumer for held, _ in parts),
        )
        for axis, parts in sorted(holders.items(), key=lambda item: (item[0].tensor, item[0].dim))
    )


def _whole(cost: float) -> int | float:
    return int(cost) if cost == int(cost) else cost


def random_removal(units: UnitMap, fraction: float, seed: int) -> list[IndexArray]:
    """Units drawn at random from every prunable group, for proofs and tests; the global generators stay untouched.

    Args:
        units: the map.
        fraction: share of each group, between 0 and 1: `floor(fraction · n)` units, but at least 1 and at most
            n − 1; none from a group of one unit.
        seed: of an own NumPy generator; the same seed gives the same units.

    Returns:
        Per group of the map an ascending int64 array, empty for frozen groups; what `build` takes.

    Raises:
        InputError: a fraction out of range.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"fraction={fraction!r} is not a share of a group; expected a number from 0 to 1")
    generator = np.random.default_rng(seed)
    removed = []
    for group in units.groups:
        count = min(max(int(fraction * group.units), 1), group.units - 1) if group.frozen is None else 0
        removed.append(np.sort(generator.permutation(group.units)[:count]).astype(np.int64))
    return removed
