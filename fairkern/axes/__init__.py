"""A model → what can be cut: run it once, follow every axis position, solve for units and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fairkern.axes.accepts import check_inputs, check_model
from fairkern.axes.config import config_fields
from fairkern.axes.trace import trace as _trace
from fairkern.axes.units import solve
from fairkern.deadline import NO_LIMIT, Deadline
from fairkern.types import SizeSite, UnitMap

__all__ = ["config_fields", "map_and_sites", "unit_map"]


def unit_map(model: nn.Module, runs: Sequence[Any], deadline: Deadline = NO_LIMIT) -> UnitMap:
    """Trace `model` on each of `runs` (example inputs) and solve. Nothing is proven yet."""
    return map_and_sites(model, runs, deadline)[0]


def map_and_sites(
    model: nn.Module, runs: Sequence[Any], deadline: Deadline = NO_LIMIT
) -> tuple[UnitMap, tuple[SizeSite, ...]]:
    """The unit map, and every size site that could be substituted where the proof finds that a group needs it."""
    check_model(model)
    check_inputs(model, runs)
    return solve(model, _trace(model, runs, deadline))
