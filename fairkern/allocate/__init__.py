"""Scores → plan. Costs, the ToD threshold, budgets. Imports neither torch.nn nor a model."""

from __future__ import annotations

from fairkern.allocate.budget import allocate
from fairkern.allocate.compose import compose, matching
from fairkern.allocate.cost import Cost, per_unit
from fairkern.allocate.latency import corrected, fit
from fairkern.allocate.plan import build, random_removal
from fairkern.allocate.signals import Signal
from fairkern.allocate.widths import widths

__all__ = [
    "Cost",
    "Signal",
    "allocate",
    "build",
    "compose",
    "corrected",
    "fit",
    "matching",
    "per_unit",
    "random_removal",
    "widths",
]
