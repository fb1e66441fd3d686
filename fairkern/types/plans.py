"""Plans: which positions of which axes go, and which sizes change with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairkern.types.arrays import IndexArray
from fairkern.types.branches import Branch
from fairkern.types.configuration import ConfigChange
from fairkern.types.files import Files
from fairkern.types.sizes import Replacement, SiteNumber
from fairkern.types.units import Axis, Silence


@dataclass(frozen=True)
class PlanGroup:
    """One group's part of a plan: which of its units go."""

    name: str
    kind: str
    units: int  # of one set
    removed: IndexArray  # [removed] or, with several sets, [sets, removed]; ascending
    sets: int = 1

    @property
    def total(self) -> int:
        """Units over all sets."""
        return self.units * self.sets

    @property
    def rate(self) -> float:
        return self.removed.size / self.total


@dataclass(frozen=True)
class PlanAxis:
    """Positions that go from one axis, and how `masked` silences them."""

    axis: Axis
    length: int
    removed: IndexArray  # [positions] or, for a set per position of the tensor's dimension 0, [sets, positions]
    silence: Silence

    @property
    def consumer(self) -> bool:
        """Whether it is the axis of a weight that contracts over the units."""
        return self.silence is Silence.ZERO


@dataclass(frozen=True)
class AttributeChange:
    module: str
    attribute: str
    before: int
    after: int


@dataclass(frozen=True)
class SizeChange:
    """What a size site is given after the cut, in place of what it was given before (see `SizeSite`).

    `outright`: in place of any number up to that; then both may be the same.
    """

    module: str
    call: int | None
    function: str
    place: int
    before: int
    after: int
    at: str = ""
    outright: bool = False

    @property
    def number(self) -> SiteNumber:
        """Which number of which call it is."""
        return SiteNumber(self.module, self.at, self.call, self.place)

    @property
    def common(self) -> int:
        """The largest number that divides both sizes."""
        return math.gcd(self.before, self.after)


@dataclass(frozen=True)
class RowsChange:
    """An attribute (dotted) that holds an entry for every module of a list, so that it loses those of the list."""

    module: str
    attribute: str
    list: str
    rows: int  # how many there are before the cut


@dataclass(frozen=True)
class Plan:
    """Which positions of which axes go. Data, not code; applies without tracing again.

    `request` is what was asked (`{"keep_params": 0.5, …}`), `result` what the plan gives: parameters and
    FLOPs before and after, the solved tolerance.
    """

    model: str
    groups: tuple[PlanGroup, ...]
    axes: tuple[PlanAxis, ...]
    attributes: tuple[AttributeChange, ...]
    shapes: Mapping[str, tuple[int, ...]]
    request: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[SizeChange, ...] = ()
    replacements: tuple[Replacement, ...] = ()
    config: tuple[ConfigChange, ...] = ()
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # modules of a list that loses some, by its path
    seen: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # where code with size sites takes sizes, by module
    branches: Mapping[str, tuple[Branch, ...]] = field(default_factory=dict)  # axes of branches of which some go
    rows: tuple[RowsChange, ...] = ()
    files: Files | None = None  # how files hold the tensors; None: nobody has said, and it is by their own names

    def length(self, axis: Axis) -> int | None:
        """Positions of an axis (of a tensor, a list, branches) before the cut; None where there is no such axis."""
        counted = self.lists.get(axis.tensor, self.branches.get(axis.tensor))
        if counted is not None:
            return len(counted) if axis.dim == 0 else None
        shape = self.shapes.get(axis.tensor, ())
        return shape[axis.dim] if 0 <= axis.dim < len(shape) else None
