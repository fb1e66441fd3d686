"""A model → what can be cut: run it once, follow every axis position, solve for units and groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fairkern.axes.accepts import check_inputs, check_model
from fairkern.axes.trace import trace as _trace
from fairkern.axes.units import solve
from fairkern.deadline import NO_LIMIT, Deadline
from fairkern.types import UnitMap

__all__ = ["unit_map"]


def unit_map(model: nn.Module, runs: Sequence[Any], deadline: Deadline = NO_LIMIT) -> UnitMap:
    """Trace `model` on each of `runs` (example inputs) and solve. Nothing is proven yet."""
    check_model(model)
    check_inputs(model, runs)
    return solve(model, _trace(model, runs, deadline))
