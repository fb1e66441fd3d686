"""Operators: tensors in, tensors out. They know nothing of models, and detach what they are given."""

from __future__ import annotations

import fairkern.ops._library  # noqa: F401  (registers the torch.library operators)
from fairkern.ops._registry import backends, describe
from fairkern.ops.eliminate import Elimination, View, eliminate
from fairkern.ops.gather import gather, gather_many
from fairkern.ops.gram import Gram, gram
from fairkern.ops.project import directions, project
from fairkern.ops.sliced import Placed, sliced_wasserstein
from fairkern.ops.taylor import TaylorSums, taylor, taylor_many, taylor_sums
from fairkern.ops.tod import tod_curve, tod_curves
from fairkern.ops.wasserstein import class_wasserstein, wasserstein_1d

__all__ = [
    "Elimination",
    "Gram",
    "Placed",
    "TaylorSums",
    "View",
    "backends",
    "class_wasserstein",
    "describe",
    "directions",
    "eliminate",
    "gather",
    "gather_many",
    "gram",
    "project",
    "sliced_wasserstein",
    "taylor",
    "taylor_many",
    "taylor_sums",
    "tod_curve",
    "tod_curves",
    "wasserstein_1d",
]
