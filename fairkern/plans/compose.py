"""Plans that were carried out one after the other, as one plan for the model that the first was made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fairkern.errors import PlanMismatchError
from fairkern.plans.build import build
from fairkern.plans.removals import NONE
from fairkern.plans.renaming import Renaming
from fairkern.types import AxisGroup, IndexArray, Plan, UnitMap

Left = dict[str, list[IndexArray]]  # per group the units of each of its sets


def compose(
    units: UnitMap,
    plans: Sequence[Plan],
    request: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    stays: Mapping[int, str] | None = None,
) -> Plan:
    """One plan that removes from the whole model what these plans removed in turn.

    Args:
        units: the map of the whole model, which the first plan was made for.
        plans: each for the model that the one before left; groups are told by name, units count in order. Sets of a
            group are those of the experts that the plans before have left, and experts of a list have moved up.
        request, result, stays: as for `build`.

    Raises PlanMismatchError: a plan that cuts a group of another size than the plans before it have left.

    Example:
        >>> from fairkern.types import Axis, AxisGroup, GroupAxis
        >>> def layer(n):
        ...     held = GroupAxis(Axis("fc1.weight", 0), n, np.arange(n)[:, None])
        ...     group = AxisGroup("fc1", "neuron", n, (held,), ())
        ...     return UnitMap("Net", (group,), (), (), (), (), (), {"fc1.weight": (n, 3)})
        >>> first = build(layer(5), [np.array([0, 2])])  # 1, 3, 4 stay
        >>> second = build(layer(3), [np.array([1])])  # of these, 1 and 4
        >>> compose(layer(5), [first, second]).groups[0].removed.tolist()
        [0, 2, 3]
    """
    left = _left(units, plans)
    removed = []
    for group in units.groups:
        gone = [np.setdiff1d(np.arange(group.units), row) for row in left[group.name]]
        removed.append(NONE if not gone[0].size else gone[0] if group.sets == 1 else np.stack(gone))
    return build(units, removed, request, result, stays)


def matching(units: UnitMap, plans: Sequence[Plan], current: UnitMap) -> UnitMap:
    """The map of what the plans left; groups that are not what is left of a group of the whole model are frozen."""
    left, within = _left(units, plans), _within(units)
    prunable, renamings = {units.groups[g].name for g in units.prunable}, [Renaming(plan) for plan in plans]

    def fits(group: AxisGroup) -> bool:
        name = _first_name(group.name, renamings)
        return name in prunable and [len(row) for row in _rows(left, within, name)] == [group.units] * group.sets

    return current.freeze(
        {g: "it is no group of the whole model" for g, group in enumerate(current.groups) if not fits(group)}
    )


def _left(units: UnitMap, plans: Sequence[Plan]) -> Left:
    """Units of every set of the first map that stay, ascending; sets of experts that have gone lose as many."""
    left = {group.name: [np.arange(group.units)] * group.sets for group in units.groups}
    within, renamings = _within(units), [Renaming(plan) for plan in plans]
    for k, plan in enumerate(plans):
        after = {name: list(rows) for name, rows in left.items()}
        for group in plan.groups:
            if not group.removed.size:
                continue
            name = _first_name(group.name, renamings[:k])
            rows = _rows(left, within, name)
            removed = np.atleast_2d(group.removed)
            if len(rows) != len(removed) or any(len(row) != group.units for row in rows):
                found = f"{len(rows)} × {len(rows[0])} units" if rows else "no such group"
                raise PlanMismatchError(
                    f"a plan cuts group {group.name!r} of {len(removed)} × {group.units} units; "
                    f"the plans before it left {found}"
                )
            first = removed.shape[1]
            after[name] = [row[first:] for row in left[name]]
            for part, row, gone in zip(_sets(left, within, name), rows, removed, strict=True):
                after[name][part] = np.delete(row, gone)
        left = after
    return left


def _first_name(name: str, renamings: Sequence[Renaming]) -> str:
    """The name, in the whole model, of a group of the model that the plans of these have left."""
    for renaming in reversed(renamings):
        name = renaming.before(name)
    return name


def _within(units: UnitMap) -> dict[str, AxisGroup]:
    """Groups with sets, and the group of the whole experts that their sets belong to."""
    whole = {(a.axis.tensor, a.axis.dim): g for g in units.groups for a in g.axes if len(a.positions) == g.total}
    found = {}
    for group in units.groups:
        holder = next((whole[place] for a in group.axes if (place := (a.axis.tensor, 0)) in whole), None)
        if group.sets > 1 and holder is not None and holder is not group:
            found[group.name] = holder
    return found


def _sets(left: Left, within: Mapping[str, AxisGroup], name: str) -> list[int]:
    """The sets of a group, as the first map counts them, whose expert is still there."""
    holder = within.get(name)
    if holder is None:
        return list(range(len(left.get(name, []))))
    return np.concatenate([row + k * holder.units for k, row in enumerate(left[holder.name])]).tolist()


def _rows(left: Left, within: Mapping[str, AxisGroup], name: str) -> list[IndexArray]:
    return [left[name][k] for k in _sets(left, within, name)]
