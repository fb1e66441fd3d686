"""Unit maps written down by hand: groups and what a test adds to them, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairkern.types import Axis, AxisGroup, CallSite, GroupAxis, IndexArray, Side, Silence, Tap, UnitMap


def group(name: str, units: int, *axes: GroupAxis, kind: str = "channel", **more: Any) -> AxisGroup:
    """A group that holds the rows of `<name>.weight`, and these axes too."""
    return AxisGroup(name, kind, units, (held(f"{name}.weight", 0, units), *axes), (), **more)


def held(tensor: str, dim: int, units: int, silence: Silence = Silence.NONE) -> GroupAxis:
    """An axis with one position for each unit."""
    return GroupAxis(Axis(tensor, dim), units, np.arange(units)[:, None], silence)


def heard(units: int) -> tuple[Tap, ...]:
    """Where so many units are scored."""
    return (Tap((CallSite("next"),), Side.INPUT, 1, units, np.arange(units)[:, None], (Axis("next.weight", 1),)),)


def unit_map(*groups: AxisGroup, **more: Any) -> UnitMap:
    fields = {"frozen": (), "extents": (), "params": (), "flops": (), "attributes": (), "shapes": {}, **more}
    return UnitMap("Net", groups, **fields)


def gone(*units: list[Any]) -> list[IndexArray]:
    return [np.array(rows, dtype=np.int64) for rows in units]
