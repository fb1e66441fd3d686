"""Milliseconds as a function of how many units every group loses, from a measured table."""

from __future__ import annotations

import numpy as np

from fairkern.allocate.cost import Cost
from fairkern.errors import InputError
from fairkern.types import FloatArray, IndexArray, LatencyTable, UnitMap


class LatencyCost:
    """The predicted latency of a removal: every layer by the share of its weights that stays, and the rest.

    A layer's share is what is left of its parameters' elements; its time comes from the table by linear interpolation
    between the shares that were measured. What no layer accounts for follows the share of all FLOPs. Same calls as
    `Cost`. Raises InputError where the table was measured on another model.
    """

    def __init__(self, units: UnitMap, table: LatencyTable) -> None:
        if {name: tuple(shape) for name, shape in table.shapes.items()} != dict(units.shapes):
            raise InputError("the latency table was measured on another model than these scores: measure it again")
        names = [name for name in units.shapes if name in table.parameters]
        terms = dict(zip(table.parameters, units.params, strict=True))
        self.groups = len(units.groups)
        self._layers: list[tuple[Cost, float, FloatArray, FloatArray]] = []
        nothing = np.zeros(self.groups, dtype=np.int64)
        for path, row in table.layers.items():
            own = [terms[name] for name in names if name.rpartition(".")[0] == path]
            cost = Cost(units, own)
            self._layers.append((cost, cost(nothing), *_curve(row.shares, row.ms)))
        flops = Cost(units, units.flops)
        self._layers.append((flops, flops(nothing), *_curve(table.rest.shares, table.rest.ms)))

    def __call__(self, removed: IndexArray) -> float:
        """Milliseconds when group `g` loses `removed[g]` units."""
        return float(
            sum(
                np.interp(cost(removed) / whole if whole else 1.0, shares, ms)
                for cost, whole, shares, ms in self._layers
            )
        )

    def change(self, removed: IndexArray, returned: IndexArray) -> FloatArray:
        """By how much each group, alone, slows the model down when it gets `returned[g]` of its units back."""
        growth = np.zeros(self.groups)
        for cost, whole, shares, ms in self._layers:
            if whole:
                before = cost(removed)
                after = before + cost.change(removed, returned)
                growth += np.interp(after / whole, shares, ms) - np.interp(before / whole, shares, ms)
        return growth


def _curve(shares: FloatArray, ms: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Ascending shares; times made non-decreasing, so that a larger layer is never taken for a faster one."""
    order = np.argsort(shares, kind="stable")
    return np.asarray(shares)[order], np.maximum.accumulate(np.asarray(ms)[order])
