"""A group of units as functions that score them get it: what it is, what its units cost, what was measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from fairkern.plans.cost import per_unit
from fairkern.types import AxisGroup, FloatArray, Moments, Scores, UnitMap


class Known:
    """What the groups of some scores share."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores

    @cached_property
    def costs(self) -> tuple[FloatArray, FloatArray]:
        return per_unit(self.scores.units)


@dataclass(frozen=True, eq=False, repr=False)
class Group(AxisGroup):
    """What a function that is given as `removal=` or `protect=` gets of each group, and answers with a score per unit.

    An `AxisGroup`: `name`, `kind` ("channel", "neuron", "head"), `units` of each of its `sets`, `total` of all, `axes`,
    `taps`. And what scoring knows of it, arrays that cannot be written to. The function returns `total` numbers, set
    after set, of which low ones go first.
    """

    known: Known | None = field(default=None, repr=False)
    number: int = 0  # of the group in its map

    @classmethod
    def of(cls, known: Known, number: int) -> Group:
        group = known.scores.units.groups[number]
        return cls(**vars(group), known=known, number=number)

    @property
    def map(self) -> UnitMap:
        """The map that the group belongs to; `map.weights(model, group)` gives the weights of each unit."""
        return self._known.scores.units

    @property
    def signals(self) -> Mapping[str, FloatArray]:
        """By name, float64 `[total]`: "taylor", "wasserstein", "l1", "l2", with second moments "residual" and
        "activation"; those that are there of this group."""
        found = {name: values[self.number] for name, values in self._known.scores.signals.items()}
        return MappingProxyType({name: _read_only(values) for name, values in found.items() if len(values)})

    @property
    def l1(self) -> FloatArray | None:
        """Sums of magnitudes of the weights that make each unit, float64 `[total]`; None where they are not known."""
        return self.signals.get("l1")

    @property
    def l2(self) -> FloatArray | None:
        """Euclidean norms of the weights that make each unit, float64 `[total]`; None where they are not known."""
        return self.signals.get("l2")

    @property
    def means(self) -> Mapping[str, FloatArray]:
        """By tap name: the mean activation of each position of each unit, float64 `[units of the tap, positions]`."""
        held = self._known.scores.means
        found = {tap.name: held[tap.name][tap.positions] for tap in self.taps if tap.name in held}
        return MappingProxyType({name: _read_only(values) for name, values in found.items()})

    @property
    def moments(self) -> Mapping[str, Moments]:
        """By tap name, where second moments were kept: sums of what is read there, of all positions of the tap."""
        held = self._known.scores.moments
        return {tap.name: held[tap.name] for tap in self.taps if tap.name in held}

    @property
    def params(self) -> float:
        """Parameters that go with a unit, the other groups whole."""
        return float(self._known.costs[0][self.number]) / self.sets

    @property
    def flops(self) -> float:
        """FLOPs of a forward pass over the example inputs that go with a unit, the other groups whole."""
        return float(self._known.costs[1][self.number]) / self.sets

    @property
    def _known(self) -> Known:
        assert self.known is not None
        return self.known

    def __eq__(self, other: object) -> bool:
        """The group of the map is the same group, so that it can be looked for there."""
        mine = self.map.groups[self.number]
        return other is mine or (isinstance(other, Group) and other.map.groups[other.number] is mine)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        count = f"{self.sets} × {self.units}" if self.sets > 1 else f"{self.units}"
        return f"<Group {self.name!r}: {count} units of kind {self.kind!r}; {', '.join(self.signals)}>"


def _read_only(values: FloatArray) -> FloatArray:
    """The same numbers: a function that sorts them in place would change the scores."""
    seen = np.asarray(values).view()
    seen.flags.writeable = False
    return seen
