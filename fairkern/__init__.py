"""fairkern: the accelerated engine for FAIR-Pruner, structured pruning of neural networks.

`trace` a model, `score` its units in one pass over some data, get a `Scores.plan` for any budget, `apply` it.
"""

from __future__ import annotations

from fairkern import ops
from fairkern.api import (
    Plan,
    Report,
    Scores,
    UnitMap,
    apply,
    info,
    load_pruned,
    picture,
    recalibrate,
    save_pruned,
    score,
    summarise,
    trace,
)
from fairkern.errors import (
    ArtefactError,
    BackendError,
    BudgetError,
    FairkernError,
    InputError,
    NonFiniteError,
    PlanMismatchError,
    TimeLimitError,
)
from fairkern.pruning import prune
from fairkern.timing import latency, latency_table, plan_latency

__all__ = [
    "ArtefactError",
    "BackendError",
    "BudgetError",
    "FairkernError",
    "InputError",
    "NonFiniteError",
    "Plan",
    "PlanMismatchError",
    "Report",
    "Scores",
    "TimeLimitError",
    "UnitMap",
    "apply",
    "info",
    "latency",
    "latency_table",
    "load_pruned",
    "ops",
    "picture",
    "plan_latency",
    "prune",
    "recalibrate",
    "save_pruned",
    "score",
    "summarise",
    "trace",
]
