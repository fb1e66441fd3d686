"""What `import fairkern as fk` has, all of it: imported as a whole, when any of it is first asked for."""

from __future__ import annotations

from fairkern import hf, ops, ranks
from fairkern.allocate import Group
from fairkern.api import apply, info, recalibrate, score, trace
from fairkern.compact import compact_checkpoint
from fairkern.errors import (
    ArtefactError,
    BackendError,
    BudgetError,
    FairkernError,
    InputError,
    NonFiniteError,
    PlanMismatchError,
    RankError,
    TimeLimitError,
)
from fairkern.evaluating import measured
from fairkern.healing import heal
from fairkern.pruning import prune
from fairkern.results import LatencyTable, Plan, Report, Scores, UnitMap
from fairkern.saving import load_pruned, save_pruned
from fairkern.summary import picture, summarise
from fairkern.sweeping import Sweep, sweep
from fairkern.timing import compare_latency, latency, latency_table, plan_latency

__all__ = [
    "ArtefactError",
    "BackendError",
    "BudgetError",
    "FairkernError",
    "Group",
    "InputError",
    "LatencyTable",
    "NonFiniteError",
    "Plan",
    "PlanMismatchError",
    "RankError",
    "Report",
    "Scores",
    "Sweep",
    "TimeLimitError",
    "UnitMap",
    "apply",
    "compact_checkpoint",
    "compare_latency",
    "heal",
    "hf",
    "info",
    "latency",
    "latency_table",
    "load_pruned",
    "measured",
    "ops",
    "picture",
    "plan_latency",
    "prune",
    "ranks",
    "recalibrate",
    "save_pruned",
    "score",
    "summarise",
    "sweep",
    "trace",
]
