"""Scores → plan. The ToD threshold, budgets, latency as a cost. Imports neither torch.nn nor a model."""

from __future__ import annotations

from fairkern.allocate.budget import allocate
from fairkern.allocate.latency import corrected, fit
from fairkern.allocate.options import LimitOptions, Planning, PlanningOptions, Signal, refuse_unknown
from fairkern.allocate.width_samples import widths

__all__ = [
    "LimitOptions",
    "Planning",
    "PlanningOptions",
    "Signal",
    "allocate",
    "corrected",
    "fit",
    "refuse_unknown",
    "widths",
]
