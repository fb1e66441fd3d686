"""Scores → plan. Costs, the ToD threshold, budgets. Imports neither torch.nn nor a model."""

from __future__ import annotations

from fairkern.allocate.budget import allocate
from fairkern.allocate.cost import Cost, per_unit
from fairkern.allocate.plan import build, random_removal
from fairkern.allocate.signals import Signal

__all__ = ["Cost", "Signal", "allocate", "build", "per_unit", "random_removal"]
