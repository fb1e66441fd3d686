"""fairkern: the accelerated engine for FAIR-Pruner, structured pruning of neural networks."""

from __future__ import annotations

from fairkern.errors import (
    ArtefactError,
    BackendError,
    BudgetError,
    FairkernError,
    InputError,
    NonFiniteError,
    PlanMismatchError,
)

__all__ = [
    "ArtefactError",
    "BackendError",
    "BudgetError",
    "FairkernError",
    "InputError",
    "NonFiniteError",
    "PlanMismatchError",
]
