"""Components of axis positions are units; units that touch the same axes, a group.

Array work throughout, by sorting and counting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fairkern.axes.places import Places
from fairkern.axes.solver import FREE, Solver


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which positions belong to which unit of which group. Groups are numbered by the first place that each has."""

    labels: np.ndarray  # per node: its component
    group: np.ndarray  # per component; −1: none
    unit: np.ndarray  # per component: which of its group's units it is
    rows: list[np.ndarray]  # per group: its places

    @classmethod
    def of(cls, places: Places, solver: Solver) -> Grouping:
        group = _in_trace_order(_alike(places, solver), places)
        rows = _rows(places, group)
        unit = np.full(solver.count, -1, dtype=np.int64)
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
        rows, found = self.rows[g], []
        for axis in np.unique(places.axis[rows]):
            here = rows[places.axis[rows] == axis]
            positions = self._per_unit(places.component[here], places.position[here])
            assert positions is not None  # equal signatures
            found.append((int(axis), positions))
        return found

    def _per_unit(self, components: np.ndarray, position: np.ndarray) -> np.ndarray | None:
        unit = self.unit[components]
        counts = np.bincount(unit)
        if len(counts) == 0 or (counts != counts[0]).any():
            return None
        return position[np.argsort(unit, kind="stable")].reshape(len(counts), counts[0])


def _alike(places: Places, solver: Solver) -> np.ndarray:
    """A number per component that nothing freezes, equal for those that touch the same axes; −1 for the others."""
    group = np.full(solver.count, -1, dtype=np.int64)
    held = np.zeros(solver.count, dtype=bool)
    held[places.component] = True
    members = np.flatnonzero(held & (solver.component_reason == FREE))
    _, inverse = np.unique(_signatures(places, solver.count)[members], return_inverse=True)
    group[members] = inverse.reshape(-1)
    return group


def _signatures(places: Places, count: int) -> np.ndarray:
    """A hash per component of the multiset of axes that it touches: equal for units of one group."""
    z = np.arange(1, len(places.axes) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(31)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(29)
    out = np.zeros(count, dtype=np.uint64)
    np.add.at(out, places.component, z[places.axis])
    return out


def _in_trace_order(group: np.ndarray, places: Places) -> np.ndarray:
    """Renumber groups by the first axis position that belongs to each."""
    g = group[places.component]
    in_one = np.flatnonzero(g >= 0)[::-1]
    first = np.zeros(g.max(initial=-1) + 1, dtype=np.int64)
    first[g[in_one]] = in_one  # the last that is written is the first that there is
    order = np.empty_like(first)
    order[np.argsort(first)] = np.arange(len(first))
    out = np.full_like(group, -1)
    hit = group >= 0
    out[hit] = order[group[hit]]
    return out


def _rows(places: Places, group: np.ndarray) -> list[np.ndarray]:
    """Per group, the places that belong to it."""
    g = group[places.component]
    rows = np.flatnonzero(g >= 0)
    rows = rows[np.argsort(g[rows], kind="stable")]
    starts = np.flatnonzero(np.diff(g[rows], prepend=-1))
    return np.split(rows, starts[1:]) if len(starts) else []


def _units_in_order(places: Places, rows: np.ndarray) -> np.ndarray:
    """Components of a group, by their first position on the group's first axis."""
    on_first = rows[places.axis[rows] == places.axis[rows[0]]]
    components = places.component[on_first]
    _, index = np.unique(components, return_index=True)
    return components[np.sort(index)]
