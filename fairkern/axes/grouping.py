"""Components of axis positions are units; units that touch the same axes, a group.

Array work throughout, by sorting and counting.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fairkern.axes.places import Places
from fairkern.axes.solver import FREE, Solver


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which positions belong to which unit of which group. Groups are numbered by the first place that each has."""

    labels: np.ndarray  # per node: its component
    group: np.ndarray  # per component; −1: none
    unit: np.ndarray  # per component: which of its group's units it is
    rows: list[list[tuple[int, np.ndarray]]]  # per group: the axes that it touches, and where
    _known: dict[tuple[bytes, bytes], np.ndarray | None] = field(default_factory=dict)  # by units and their positions

    @classmethod
    def of(cls, places: Places, solver: Solver) -> Grouping:
        group, rows = _in_trace_order(_alike(places, solver), places)
        unit = np.full(solver.count, -1, dtype=np.int32)
        for mine in rows:
            components = _units_in_order(places, mine)
            unit[components] = np.arange(len(components))
        return cls(solver.labels, group, unit, rows)

    def counted(self, nodes: np.ndarray) -> list[tuple[int, int]]:
        """Every group among these nodes and how often it is there, in order; without sorting."""
        counts = np.bincount(self.group[self.labels[nodes]] + 1)
        present = np.flatnonzero(counts[1:])
        return list(zip(present.tolist(), counts[1:][present].tolist(), strict=True))

    def positions(self, g: int, nodes: np.ndarray) -> np.ndarray | None:
        """`[units, per unit]`, ascending: where along `nodes` the units of a group lie. None if they do not hold
        equally many."""
        components = self.labels[nodes]
        mine = np.flatnonzero(self.group[components] == g)
        return self._per_unit(components[mine], mine)

    def on_axes(self, g: int, places: Places) -> list[tuple[int, np.ndarray]]:
        """The axes that a group touches, and `[units, per unit]` positions on each."""
        found: list[tuple[int, np.ndarray]] = []
        for axis, here in self.rows[g]:
            positions = self._per_unit(places.components[axis][here], here.astype(np.int64))
            assert positions is not None  # equal signatures
            found.append((axis, positions))
        return found

    def _per_unit(self, components: np.ndarray, position: np.ndarray) -> np.ndarray | None:
        """Of ascending positions. Most axes and taps of a model have those of others, which are given again."""
        unit = self.unit[components]
        key = unit.tobytes(), position.tobytes()
        if key not in self._known:
            self._known[key] = _by_unit(unit, position)
        return self._known[key]


def _by_unit(unit: np.ndarray, position: np.ndarray) -> np.ndarray | None:
    """`[units, per unit]`; None if they do not have equally many."""
    counts = np.bincount(unit)
    if len(counts) == 0 or (counts != counts[0]).any():
        return None
    return position[np.argsort(unit, kind="stable")].reshape(len(counts), counts[0])


def _alike(places: Places, solver: Solver) -> np.ndarray:
    """A number per component that nothing freezes, equal for those that touch the same axes; −1 for the others."""
    group = np.full(solver.count, -1, dtype=np.int32)
    free = solver.component_reason == FREE
    held = np.zeros(solver.count, dtype=bool)
    for components in places.components:
        held[components] = True
    members = np.flatnonzero(held & free)
    signatures = _signatures(places, free)[members]
    group[members] = np.searchsorted(np.unique(signatures), signatures)
    return group


def _signatures(places: Places, free: np.ndarray) -> np.ndarray:
    """A hash per component that is free of the multiset of axes that it touches: equal for units of one group."""
    z = np.arange(1, len(places.axes) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(31)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(29)
    out = np.zeros(len(free), dtype=np.uint64)
    for number, components in zip(z, places.components, strict=True):
        if free[components].any():
            np.add.at(out, components, number)
    return out


def _in_trace_order(group: np.ndarray, places: Places) -> tuple[np.ndarray, list[list[tuple[int, np.ndarray]]]]:
    """Groups renumbered by the first axis position that belongs to each; and per group, the axes and positions."""
    numbers: dict[int, int] = {}
    rows: list[list[tuple[int, np.ndarray]]] = []
    for axis, components in enumerate(places.components):
        for g, here in _by_group(group[components]):
            if numbers.setdefault(g, len(rows)) == len(rows):
                rows.append([])
            rows[numbers[g]].append((axis, here.astype(np.int32)))
    order = np.full(group.max(initial=-1) + 2, -1, dtype=np.int32)
    order[list(numbers)] = list(numbers.values())
    return order[group], rows


def _by_group(groups: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Every group along an axis, in the order of their first positions, and its positions, ascending."""
    here = np.flatnonzero(groups >= 0)
    mine = groups[here]
    if not len(mine) or (mine == mine[0]).all():
        return [(int(mine[0]), here)] if len(mine) else []
    order = np.argsort(mine, kind="stable")
    starts = np.flatnonzero(np.diff(mine[order], prepend=-1))
    found = [(int(mine[part[0]]), here[part]) for part in np.split(order, starts[1:])]
    return sorted(found, key=lambda item: int(item[1][0]))


def _units_in_order(places: Places, rows: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Components of a group, by their first position on the group's first axis."""
    axis, here = rows[0]
    components = places.components[axis][here]
    _, index = np.unique(components, return_index=True)
    return components[np.sort(index)]
