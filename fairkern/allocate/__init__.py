"""Scores → plan. The ToD threshold, budgets, latency as a cost. Imports neither torch.nn nor a model."""

from __future__ import annotations

from fairkern.allocate.budget import allocate
from fairkern.allocate.groups import Group
from fairkern.allocate.latency import corrected, fit
from fairkern.allocate.options import (
    Allocation,
    LimitOptions,
    Planning,
    PlanningOptions,
    Signal,
    Target,
    parse_target,
    refuse_unknown,
)
from fairkern.allocate.width_samples import widths

__all__ = [
    "Allocation",
    "Group",
    "LimitOptions",
    "Planning",
    "PlanningOptions",
    "Signal",
    "Target",
    "allocate",
    "corrected",
    "fit",
    "parse_target",
    "refuse_unknown",
    "widths",
]
